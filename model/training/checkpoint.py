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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.training.config import RUNTIME_ONLY, TrainConfig
from model.training.distributed import is_main
from model.training.files import (
    COMPLETE,
    CONFIG,
    WEIGHTS,
    fault_in,
    flush,
    read_json,
    read_tensors,
    replace_json,
    sha256,
    write_json,
    write_tensors,
)
from model.training.step import TrainState
from model.training.weights import load_weights, named_weights

OPTIMIZER, STATE, VALUES = "optimizer.safetensors", "state.json", "values.json"
FILES = (WEIGHTS, OPTIMIZER, CONFIG, STATE)  # of a complete checkpoint, beside COMPLETE
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
    if not is_checked and (fault := fault_in(folder, FILES)):
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
