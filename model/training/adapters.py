"""Trainings of a part of a model: of adapters, or of the head alone, beside a base that is frozen.

Adapters (LoRA) are in a folder of their own, which belongs to one base: that whose weights have the sha256 it names.

In: a model with adapters (model/network/lora.py) and the folder of its base. Out: a folder with model.safetensors,
which holds the weights that were trained and no others, and config.json, that of the whole model with a key `lora`:
rank, alpha, targets and the sha256 of the base's weights. Or the reverse: the base, with the adapters of a folder.

Checkpoints of a training of adapters are such folders, too; those of a head alone hold the head, and config.json has
the key `head`. A finished training leaves the whole model, adapters merged, with the adapters beside it in adapter/.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from model.network.lora import add_lora, merge_lora
from model.network.lora_config import BASE, LoraConfig, lora_in
from model.network.registry import BASES, kind_of, save_model, write_model
from model.training.files import CONFIG, WEIGHTS, read_json, sha256
from model.training.weights import load_trained_weights, trained_weights

PARTS = {"lora": "adapters", "head": "a head"}  # keys of a config.json whose folder holds a part of a model
ADAPTER = "adapter"  # folder beside the weights of the merged model


def start_adapters(
    model: nn.Module, description: Mapping[str, Any], cfg: LoraConfig, base: Path, seed: int
) -> dict[str, Any]:
    """Give `model`, whose trunk comes from the folder `base`, new adapters. Returns `description` with what
    belongs to them.

    The head of a language model is frozen, that of any other kind of model is new and trained whole.
    """
    add_lora(model, cfg, seed, trains_head=has_new_head(description))
    return {**description, "lora": {**dataclasses.asdict(cfg), BASE: sha256(base / WEIGHTS)}}


def start_head(model: nn.Module, description: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Freeze the trunk of `model`, which comes from the folder `base`: it gets no gradients and no optimizer state.
    Returns `description` with what belongs to that."""
    model.trunk.requires_grad_(False)  # type: ignore[union-attr,operator]
    return {**description, "head": {BASE: sha256(base / WEIGHTS)}}


def save_trained(directory: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write the model of a finished training. Adapters are written into adapter/, and then merged in `model`.

    Every process may call it, rank 0 writes.
    """
    if "lora" in description:
        write_model(directory / ADAPTER, trained_weights(model), description)
        merge_lora(model)
    model.requires_grad_(True)
    save_model(directory, model, {name: value for name, value in description.items() if name not in PARTS})


def load_adapters(folder: Path, model: nn.Module, base: Path) -> None:
    """Give `model`, of the kind and with the trunk that the adapters were trained with, those in `folder`.

    ValueError when they were trained on another base than that in the folder `base`.
    """
    description = read_json(folder / CONFIG)
    if not isinstance(description, dict) or "lora" not in description:
        raise ValueError(f"{folder} is not a folder of adapters: {CONFIG} has no key 'lora'")
    if description["kind"] != kind_of(model):
        raise ValueError(
            f"{folder}: these adapters belong to a model of the kind {description['kind']}, got {kind_of(model)}; the"
            " model beside them has them merged already"
        )
    trained_on, digest = base_of(description), sha256(base / WEIGHTS)
    if trained_on != digest:
        raise ValueError(
            f"{folder}: these adapters belong to a base whose {WEIGHTS} has the sha256 {trained_on}, that of {base}"
            f" has {digest}; give the base that they were trained on"
        )
    add_lora(model, lora_in(description), seed=0, trains_head=has_new_head(description))
    load_trained_weights(folder / WEIGHTS, model)


def check_same_base(checkpoint: Path, description: Mapping[str, Any]) -> None:
    """ValueError when a checkpoint cannot be resumed by the training that `description` belongs to: it has another
    part of a model, or another base."""
    was, now = _in_words(read_json(checkpoint / CONFIG)), _in_words(description)
    if was != now:
        raise ValueError(f"{checkpoint} has {was}, this training has {now}; use another folder")


def base_of(description: Mapping[str, Any]) -> str | None:
    """The sha256 of the base's weights; None where the whole model is trained."""
    return next((description[part][BASE] for part in PARTS if part in description), None)


def _in_words(description: Mapping[str, Any]) -> str:
    found = [what for part, what in PARTS.items() if part in description]
    return f"{found[0]} on a base with the sha256 {base_of(description)}" if found else "a whole model"


def has_new_head(description: Mapping[str, Any]) -> bool:
    """Whether what is outside the trunk was not pretrained with it, as it is in a language model."""
    return description["kind"] not in BASES
