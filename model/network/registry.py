"""Kinds of models: what config.json says of a model, and the module that it describes.

In: the folder of a model or of a checkpoint (config.json and model.safetensors). Out: the model with its weights, and
the labels of its classes where it has some. Or the reverse: a model and its description, written into a folder.

A new kind of model is one entry in KINDS: the word for it in config.json, its trunk, its head, and how it is built.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder
from model.network.encoder import Encoder, MaskedLM
from model.network.heads import SequenceClassifier, SpanClassifier, TokenClassifier
from model.network.shape import DecoderConfig, EncoderConfig, decoder_config, encoder_config
from model.network.size_check import check_size, shapes_in
from model.training.distributed import is_main
from model.training.files import COMPLETE, CONFIG, WEIGHTS, fault_in, flush, read_json, replace_json, write_tensors
from model.training.weights import load_weights, named_weights

Labels = tuple[str, ...]
Problem = Literal["single_label", "multi_label"]  # of a sequence_classifier
Config = DecoderConfig | EncoderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    title: str  # what messages call it
    trunk: str | None  # name in TRUNKS; None = either, and config.json then has a key `trunk`
    head: tuple[str, ...]  # first parts of the names of weights that do not belong to the trunk
    build: Callable[[Any, Labels], nn.Module]
    has_labels: bool = False  # config.json then has `labels`, in the order of the classes


KINDS = {
    "decoder": Kind(
        title="a language model (decoder)",
        trunk="decoder",
        head=("lm_head",),
        build=lambda cfg, labels: Decoder(cfg),
    ),
    "encoder": Kind(
        title="an encoder without a head (encoder)",
        trunk="encoder",
        head=("pooler",),
        build=lambda cfg, labels: Encoder(cfg),
    ),
    "masked_lm": Kind(
        title="a masked language model (masked_lm)",
        trunk="encoder",
        head=("head", "lm_head"),
        build=lambda cfg, labels: MaskedLM(cfg),
    ),
    "sequence_classifier": Kind(
        title="a classifier (sequence_classifier)",
        trunk=None,
        head=("head", "score"),
        build=lambda cfg, labels: SequenceClassifier(cfg, len(labels)),
        has_labels=True,
    ),
    "token_classifier": Kind(
        title="a classifier of tokens (token_classifier)",
        trunk=None,
        head=("head", "score"),
        build=lambda cfg, labels: TokenClassifier(cfg, len(labels)),
        has_labels=True,
    ),
    "span_classifier": Kind(
        title="a model that finds a span in a text (span_classifier)",
        trunk=None,
        head=("head", "score"),
        build=lambda cfg, labels: SpanClassifier(cfg),
    ),
}
BASES = ("decoder", "encoder", "masked_lm")  # kinds that may be fine-tuned for a task
Network = Decoder | Encoder | MaskedLM
TRUNKS: Mapping[str, Callable[[Mapping[str, Any]], Config]] = {"decoder": decoder_config, "encoder": encoder_config}


def kind_of(model: nn.Module) -> str:
    """The kind of a model of ours."""
    classes = {
        Decoder: "decoder",
        Encoder: "encoder",
        MaskedLM: "masked_lm",
        SequenceClassifier: "sequence_classifier",
        TokenClassifier: "token_classifier",
        SpanClassifier: "span_classifier",
    }
    return classes[type(model)]


def describe(
    cfg: Config, labels: Labels | None = None, *, kind: str | None = None, problem: Problem = "single_label"
) -> dict[str, Any]:
    """config.json of a model.

    `kind` is by default "sequence_classifier" with `labels` (in the order of the classes), and otherwise what
    pretraining makes of such a config: "decoder" or "masked_lm". With the problem "multi_label" a text may have
    several labels or none.
    """
    trunk = "encoder" if isinstance(cfg, EncoderConfig) else "decoder"
    if kind is None:
        kind = {"encoder": "masked_lm", "decoder": "decoder"}[trunk] if labels is None else "sequence_classifier"
    return {
        "kind": kind,
        **({"trunk": trunk} if KINDS[kind].trunk is None else {}),
        "model": dataclasses.asdict(cfg),
        **({} if labels is None else {"labels": list(labels)}),
        **({} if problem == "single_label" else {"problem": problem}),
    }


def config_of(description: Mapping[str, Any]) -> Config:
    """The config of the model that a config.json describes."""
    trunk = KINDS[description["kind"]].trunk or description["trunk"]
    return TRUNKS[trunk](description["model"])


def save_model(directory: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json, each by a rename. Every process may call it, rank 0 writes."""
    write_model(directory, named_weights(model), description)


def write_model(directory: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """As `save_model`, of `weights` alone: those of a whole model, or of its adapters."""
    if not is_main():
        return
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f".{WEIGHTS}.part"
    write_tensors(part, weights)
    flush(part)
    os.replace(part, directory / WEIGHTS)  # noqa: PTH105
    replace_json(directory / CONFIG, dict(description))


def load_model(directory: Path, device: torch.device | str = "cpu", *kinds: str) -> tuple[Any, Labels | None]:
    """The model in `directory`, in evaluation mode, and the labels of its classes, if it has any.

    Raises ValueError when there is none, when it is of none of `kinds` (without any: of all that there are), or when
    its files are damaged.
    """
    description, cfg = read_config(directory, *kinds)
    path, about = directory / CONFIG, KINDS[description["kind"]]
    labels = _labels_in(description, path) if about.has_labels else None
    check_size(cfg, shapes_in(directory / WEIGHTS), path)
    with torch.random.fork_rng([]):  # torch's modules draw weights before they get those of the file
        model = about.build(cfg, labels or ())
    load_weights(directory / WEIGHTS, model)
    return model.eval().to(device), labels


def read_config(directory: Path, *kinds: str) -> tuple[dict[str, Any], Config]:
    """config.json of the model in `directory`, and the config of its network; errors as in `load_model`."""
    description, path = _read_description(directory, kinds or tuple(KINDS)), directory / CONFIG
    trunk = KINDS[description["kind"]].trunk or description.get("trunk")
    if not isinstance(trunk, str) or trunk not in TRUNKS:
        raise ValueError(f"{path}: trunk={str(trunk)[:40]!r} must be one of {', '.join(TRUNKS)}")
    try:
        return description, TRUNKS[trunk](description["model"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a config of this version ({error})") from error


def load_decoder(directory: Path, device: torch.device | str = "cpu") -> Decoder:
    """As `load_model`. ValueError when the folder holds no decoder."""
    return cast(Decoder, load_model(directory, device, "decoder")[0])


def load_encoder(directory: Path, device: torch.device | str = "cpu") -> Encoder | MaskedLM:
    """As `load_model`. ValueError when the folder holds no encoder, with or without the head of masked tokens."""
    return cast(Encoder | MaskedLM, load_model(directory, device, "encoder", "masked_lm")[0])


def load_base_network(directory: Path, device: torch.device | str = "cpu") -> Network:
    """As `load_model`. ValueError when the folder holds no model that a task may begin with."""
    return cast(Network, load_model(directory, device, *BASES)[0])


def load_classifier(directory: Path, device: torch.device | str = "cpu") -> tuple[SequenceClassifier, Labels]:
    """As `load_model`. ValueError when the folder holds no classifier."""
    return cast(tuple[SequenceClassifier, Labels], load_model(directory, device, "sequence_classifier"))


def _read_description(directory: Path, expected: tuple[str, ...]) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.exists():
        raise ValueError(f"{directory} is not the folder of a model: it has no {CONFIG}")
    if (directory / COMPLETE).exists() and (fault := fault_in(directory, (CONFIG, WEIGHTS))):
        raise ValueError(f"{fault}; use the checkpoint before it")
    description = read_json(path)
    kind = str(description.get("kind") if isinstance(description, dict) else type(description).__name__)
    if kind not in expected:
        found = KINDS[kind].title if kind in KINDS else repr(kind)
        wanted = " or ".join(KINDS[one].title for one in expected)
        raise ValueError(f"{path}: describes {found}, expected {wanted}")
    if "lora" in description:
        raise ValueError(f"{directory} holds adapters and not the base that they belong to; give the finished model")
    if "head" in description:
        raise ValueError(f"{directory} holds a head and not the base that it belongs to; give the finished model")
    return description


def _labels_in(description: Mapping[str, Any], path: Path) -> Labels:
    labels = description.get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: labels={str(labels)[:100]} must be a list of two or more names")
    return tuple(labels)
