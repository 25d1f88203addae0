"""Checkpoints: weights, optimiser and position of a run, in a folder that is there whole or not at all.

In: a TrainState. Out: `<root>/step-000123/` with model.safetensors, optimizer.safetensors (its state and the
generators'), config.json (what model it is), state.json (step, training config, what the data was) and complete.json,
which lists size and sha256 of the others.

Written to a hidden folder beside, flushed, renamed; complete.json comes last, and a folder without it does not exist
for anybody. values.json joins later with what validation said. Nothing is ever unpickled.
"""

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier
from model.network.shape import DecoderConfig, decoder_config
from model.network.size_check import check_size, shapes_in
from model.training.config import RUNTIME_ONLY, TrainConfig
from model.training.distributed import full_tensor_on_main, is_main, local_shard, shard_of
from model.training.files import (
    check_same_shapes,
    flush,
    read_json,
    read_tensors,
    replace_json,
    sha256,
    write_json,
    write_tensors,
)
from model.training.step import TrainState

WEIGHTS, OPTIMIZER, CONFIG, STATE = "model.safetensors", "optimizer.safetensors", "config.json", "state.json"
COMPLETE, VALUES = "complete.json", "values.json"
RNG_PREFIX = "rng."
ASIDE = ".damaged"  # folder of a run for its damaged checkpoints
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """What a checkpoint says beside weights and optimiser."""

    step: int
    train: TrainConfig
    notes: dict[str, Any]  # what the caller gave to `save_checkpoint`


def save_checkpoint(
    root: Path, state: TrainState, cfg: TrainConfig, description: Mapping[str, Any], notes: Mapping[str, Any]
) -> Path:
    """Write `state` below `root` and return its folder.

    `description` becomes config.json (see `describe`); `notes` are literals that a resume gets back. Among several
    processes each must call it: shards are put together, and rank 0 writes the same files as a single process would.
    """
    target = folder_of(root, state.step)
    weights, optimizer = named_weights(state.model), state.optimizer.state()
    if not is_main():
        return target
    root.mkdir(parents=True, exist_ok=True)
    part = root / f".{target.name}.partial"
    for leftover in (part, target):  # of a run that was killed while it saved this very step
        remove_checkpoint(leftover)
    part.mkdir()
    about = {"step": state.step, "train": dataclasses.asdict(cfg), "torch": torch.__version__, "notes": dict(notes)}
    try:
        write_tensors(part / WEIGHTS, weights)
        write_tensors(part / OPTIMIZER, optimizer | rng_state())
        write_json(part / CONFIG, dict(description))
        write_json(part / STATE, about)
    except OSError:  # a full disk: leave the room to others
        remove_checkpoint(part)
        raise
    files = {}
    for path in sorted(part.iterdir()):
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    flush(part)
    os.replace(part, target)  # noqa: PTH105  the tests kill a run exactly here
    flush(root)
    replace_json(target / COMPLETE, {"step": state.step, "files": files})
    return target


def load_checkpoint(folder: Path, state: TrainState, cfg: TrainConfig, *, is_checked: bool = False) -> Resumed:
    """Put a complete checkpoint into `state`, to the bit, with the generators of torch.

    Raises ValueError when a file is damaged (unless `is_checked` says that `fault_in` found none), or when the
    model or `cfg` are not those it was made with.
    """
    if not is_checked and (fault := fault_in(folder)):
        raise ValueError(f"{fault}; delete {folder} to go on from the checkpoint before it")
    about = read_json(folder / STATE)
    try:
        made_with = TrainConfig(**about["train"])
    except TypeError as error:
        raise ValueError(
            f"{folder / STATE}: not a training config of this version ({error}); go on with the one that wrote it,"
            " or train in another folder"
        ) from error
    for field in dataclasses.fields(TrainConfig):
        was, is_now = getattr(made_with, field.name), getattr(cfg, field.name)
        if field.metadata != RUNTIME_ONLY and was != is_now:
            raise ValueError(
                f"{folder} was made with {field.name}={was}, now it is {is_now}: a run cannot change half-way;"
                " train in another folder"
            )
    load_weights(folder / WEIGHTS, state.model)
    tensors = read_tensors(folder / OPTIMIZER)
    state.optimizer.load({name: t for name, t in tensors.items() if not name.startswith(RNG_PREFIX)})
    restore_rng(tensors)
    state.step = about["step"]
    return Resumed(step=about["step"], train=made_with, notes=about["notes"])


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def complete_checkpoints(root: Path) -> list[Path]:
    """Folders of complete checkpoints below `root`, oldest first."""
    found = [(int(m[1]), p) for p in root.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))]
    return [path for _, path in sorted(found) if (path / COMPLETE).exists()]


def save_values(folder: Path, values: Mapping[str, float]) -> None:
    """Put what validation said about a checkpoint beside it."""
    replace_json(folder / VALUES, dict(values))


def values_of(folder: Path) -> dict[str, float] | None:
    """What `save_values` put there, None where validation did not come to its end, or the file is damaged."""
    if not (folder / VALUES).exists():
        return None
    try:
        values = read_json(folder / VALUES)
        if isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values()):
            return values
        problem = f"{folder / VALUES}: not a table of numbers"
    except ValueError as error:
        problem = str(error)
    log.warning("%s; the checkpoint counts as not validated", problem)
    return None


def prune_checkpoints(root: Path, keep: int, best: str | None) -> None:
    """Remove all but the newest `keep` checkpoints and the one whose value `best` is lowest, and all leftovers."""
    complete = complete_checkpoints(root)
    kept = set(complete[-keep:])
    valued = [(v[best], p) for p in complete if best is not None and (v := values_of(p)) and best in v]
    if valued:
        kept.add(min(valued)[1])
    for path in [*root.glob("step-*"), *root.glob(".step-*.partial")]:
        if path not in kept:
            remove_checkpoint(path)


def set_aside(folder: Path) -> Path:
    """Move a damaged checkpoint out of the way, where a person can look at it. Returns its new place."""
    aside = folder.parents[1] / ASIDE / folder.name
    while aside.exists():
        aside = aside.with_name(f"{aside.name}.again")
    aside.parent.mkdir(exist_ok=True)
    os.replace(folder, aside)  # noqa: PTH105
    return aside


def remove_checkpoint(folder: Path) -> None:
    (folder / COMPLETE).unlink(missing_ok=True)  # first, so that half a folder never counts
    if folder.exists():
        shutil.rmtree(folder)


# Models: config.json and model.safetensors, of a checkpoint or of a finished run.


def describe(cfg: DecoderConfig, labels: tuple[str, ...] | None = None) -> dict[str, Any]:
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


def load_decoder(directory: Path) -> Decoder:
    """The decoder of a Checkpoint folder, on the CPU, in evaluation mode. ValueError when it holds no decoder."""
    cfg, _ = _read_description(directory, "decoder")
    check_size(cfg, shapes_in(directory / WEIGHTS), directory / CONFIG)
    model = Decoder(cfg)
    load_weights(directory / WEIGHTS, model)
    return model.eval()


def load_classifier(directory: Path) -> tuple[SequenceClassifier, tuple[str, ...]]:
    """The classifier of a Checkpoint folder, as in `load_decoder`, and its labels in the order of its classes."""
    cfg, description = _read_description(directory, "sequence_classifier")
    labels = description.get("labels")
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{directory / CONFIG}: labels={str(labels)[:100]} must be a list of two or more names")
    check_size(cfg, shapes_in(directory / WEIGHTS), directory / CONFIG)
    model = SequenceClassifier(cfg, len(labels))
    load_weights(directory / WEIGHTS, model)
    return model.eval(), tuple(labels)


_KINDS = {"decoder": "a language model (decoder)", "sequence_classifier": "a classifier (sequence_classifier)"}


def _read_description(directory: Path, kind: str) -> tuple[DecoderConfig, dict[str, Any]]:
    path = directory / CONFIG
    if not path.exists():
        raise ValueError(f"{directory} is not the folder of a model: it has no {CONFIG}")
    if (directory / COMPLETE).exists() and (fault := fault_in(directory, (CONFIG, WEIGHTS))):
        raise ValueError(f"{fault}; use the checkpoint before it")
    description = read_json(path)
    found = description.get("kind") if isinstance(description, dict) else type(description).__name__
    if found != kind:
        raise ValueError(f"{path}: describes {_KINDS.get(str(found), repr(found))}, expected {_KINDS[kind]}")
    try:
        return decoder_config(description["model"]), description
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a config of this version ({error})") from error


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Whole parameters by name (of shards: in rank 0 alone); weights that share memory appear once, under their
    first name."""
    weights = model.named_parameters()
    return {name: full_tensor_on_main(local_shard(weight.detach()), weight).contiguous() for name, weight in weights}


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the file's tensors into the model. ValueError names a tensor that is missing, unknown or misshapen."""
    tensors, weights = read_tensors(path), dict(model.named_parameters())
    check_same_shapes(str(path), weights, tensors)
    for name, weight in weights.items():
        local_shard(weight).copy_(shard_of(tensors[name], weight))


def fault_in(folder: Path, names: Collection[str] = (WEIGHTS, OPTIMIZER, CONFIG, STATE)) -> str | None:
    """The first of the files of a complete checkpoint that is not as it was written, in words; None = all are."""
    try:
        about = read_json(folder / COMPLETE)
    except ValueError as error:
        return str(error)
    files = about.get("files") if isinstance(about, dict) else None
    if not isinstance(files, dict) or not {WEIGHTS, OPTIMIZER, CONFIG, STATE} <= files.keys():
        return f"{folder / COMPLETE} does not list the files of a checkpoint"
    for name in names:
        path, entry = folder / name, files[name]
        n_bytes = path.stat().st_size if path.is_file() else None
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"{folder / COMPLETE} does not say what {name} holds"
        if n_bytes is None:
            return f"{path} is missing"
        if n_bytes != entry["bytes"]:
            return f"{path} has {n_bytes} bytes, expected {entry['bytes']}"
        if sha256(path) != entry["sha256"]:
            return f"{path} holds other bytes than were written"
    return None


# Generators of torch: no model here draws random numbers while it trains, but a loss may.


def rng_state() -> dict[str, Tensor]:
    states = {f"{RNG_PREFIX}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"{RNG_PREFIX}cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors[f"{RNG_PREFIX}cpu"].clone())
    for i in range(torch.cuda.device_count()):
        if (name := f"{RNG_PREFIX}cuda.{i}") in tensors:
            torch.cuda.set_rng_state(tensors[name].clone(), i)


# Files.
