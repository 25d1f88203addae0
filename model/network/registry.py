"""Kinds of models: what config.json says of a model, and the module that it describes.

In: the folder of a model or of a checkpoint (config.json and model.safetensors). Out: the model with its weights, and
the labels of its classes where it has some. Or the reverse: a model and its description, written into a folder.

A new kind of model is one entry in KINDS: the word for it in config.json, its head, and how it is built.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier
from model.network.shape import DecoderConfig, decoder_config
from model.network.size_check import check_size, shapes_in
from model.training.distributed import is_main
from model.training.files import COMPLETE, CONFIG, WEIGHTS, fault_in, flush, read_json, replace_json, write_tensors
from model.training.weights import load_weights, named_weights

Labels = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    title: str  # what messages call it
    has_labels: bool  # config.json then holds `labels`, in the order of the classes
    head: tuple[str, ...]  # first parts of the names of weights that do not belong to the trunk
    build: Callable[[DecoderConfig, Labels], nn.Module]


KINDS = {
    "decoder": Kind(
        title="a language model (decoder)",
        has_labels=False,
        head=("lm_head",),
        build=lambda cfg, labels: Decoder(cfg),
    ),
    "sequence_classifier": Kind(
        title="a classifier (sequence_classifier)",
        has_labels=True,
        head=("score",),
        build=lambda cfg, labels: SequenceClassifier(cfg, len(labels)),
    ),
}


def describe(cfg: DecoderConfig, labels: Labels | None = None) -> dict[str, Any]:
    """config.json of a decoder, or of a classifier with `labels` in the order of its classes."""
    if labels is None:
        return {"kind": "decoder", "model": dataclasses.asdict(cfg)}
    return {"kind": "sequence_classifier", "model": dataclasses.asdict(cfg), "labels": list(labels)}


def save_model(directory: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json, each by a rename. Every process may call it, rank 0 writes."""
    weights = named_weights(model)
    if not is_main():
        return
    part = directory / f".{WEIGHTS}.part"
    write_tensors(part, weights)
    flush(part)
    os.replace(part, directory / WEIGHTS)  # noqa: PTH105
    replace_json(directory / CONFIG, dict(description))


def load_model(
    directory: Path, device: torch.device | str = "cpu", kind: str | None = None
) -> tuple[Any, Labels | None]:
    """The model in `directory`, in evaluation mode, and the labels of its classes, if it has any.

    Raises ValueError when there is none, when it is not of `kind`, or when its files are damaged.
    """
    description = _read_description(directory, kind)
    path, about = directory / CONFIG, KINDS[description["kind"]]
    try:
        cfg = decoder_config(description["model"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a config of this version ({error})") from error
    labels = _labels_in(description, path) if about.has_labels else None
    check_size(cfg, shapes_in(directory / WEIGHTS), path)
    with torch.random.fork_rng([]):  # torch's modules draw weights before they get those of the file
        model = about.build(cfg, labels or ())
    load_weights(directory / WEIGHTS, model)
    return model.eval().to(device), labels


def load_decoder(directory: Path, device: torch.device | str = "cpu") -> Decoder:
    """As `load_model`. ValueError when the folder holds no decoder."""
    return cast(Decoder, load_model(directory, device, "decoder")[0])


def load_classifier(directory: Path, device: torch.device | str = "cpu") -> tuple[SequenceClassifier, Labels]:
    """As `load_model`. ValueError when the folder holds no classifier."""
    return cast(tuple[SequenceClassifier, Labels], load_model(directory, device, "sequence_classifier"))


def _read_description(directory: Path, expected: str | None) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.exists():
        raise ValueError(f"{directory} is not the folder of a model: it has no {CONFIG}")
    if (directory / COMPLETE).exists() and (fault := fault_in(directory, (CONFIG, WEIGHTS))):
        raise ValueError(f"{fault}; use the checkpoint before it")
    description = read_json(path)
    kind = str(description.get("kind") if isinstance(description, dict) else type(description).__name__)
    if kind not in KINDS or kind != (expected or kind):
        found = KINDS[kind].title if kind in KINDS else repr(kind)
        wanted = KINDS[expected].title if expected is not None else " or ".join(one.title for one in KINDS.values())
        raise ValueError(f"{path}: describes {found}, expected {wanted}")
    return description


def _labels_in(description: Mapping[str, Any], path: Path) -> Labels:
    labels = description.get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: labels={str(labels)[:100]} must be a list of two or more names")
    return tuple(labels)
