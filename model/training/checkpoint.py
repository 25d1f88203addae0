"""Checkpoints: weights, optimiser and position of a run, in a folder that is there whole or not at all.

In: a TrainState. Out: `<root>/step-000123/` with model.safetensors, optimizer.safetensors (its state and that of the
random generators), config.json (the kind and shape of the model), state.json (step, training config, notes of the
run) and complete.json, which lists size and sha256 of the others.

Steps: copy the state to host memory; write the files to a hidden folder beside, flush, rename; write complete.json.
A folder without it is ignored. Validation results are added later as values.json. Nothing is ever unpickled. Weights
that are frozen are not stored: where adapters are trained, a checkpoint holds these alone.
"""

import concurrent.futures
import copy
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.training.config import RUNTIME_ONLY, TrainConfig
from model.training.distributed import gather_on_main, is_fsdp, is_main, rank
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
from model.training.schedule import horizon, is_extension
from model.training.selection import Selection
from model.training.step import TrainState
from model.training.weights import load_trained_weights, trained_weights

OPTIMIZER, STATE, VALUES = "optimizer.safetensors", "state.json", "values.json"
FILES = (WEIGHTS, OPTIMIZER, CONFIG, STATE)  # of a complete checkpoint, beside COMPLETE
RNG_PREFIX = "rng."
LENGTH = ("n_steps", "decay_fraction", "warmup_horizon")  # what an extension of a run changes
ASIDE = ".damaged"  # folder of a run for its damaged checkpoints
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """The part of a checkpoint that is neither weights nor optimiser."""

    step: int
    train: TrainConfig
    notes: dict[str, Any]  # what the caller gave to `snapshot_of`


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A TrainState at one step, copied to host memory: training may go on while it is written."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # its state, and the generators' of all processes
    description: Mapping[str, Any]
    about: Mapping[str, Any]


def snapshot_of(
    state: TrainState,
    cfg: TrainConfig,
    description: Mapping[str, Any],
    notes: Mapping[str, Any],
    pinned: dict[str, Tensor] | None = None,
) -> Snapshot | None:
    """A copy of `state` on rank 0, None on the others. Every process of a group must call it: shards are gathered.

    `description` becomes config.json (see model/network/registry.py); `notes` are literals that a resume gets back.
    `pinned` holds the buffers of a snapshot that is no longer needed; from a GPU one copies into page-locked memory,
    which is slow to allocate, so that they are kept and used again.
    """
    generators = rng_states()
    weights, optimizer = trained_weights(state.model), state.optimizer.state()
    if not is_main():
        return None
    pinned = {} if pinned is None else pinned
    if not is_fsdp(state.model):  # gathered shards are copies in host memory already
        weights = {name: _host_copy(f"weights {name}", tensor, pinned) for name, tensor in weights.items()}
        optimizer = {name: _host_copy(f"optimizer {name}", tensor, pinned) for name, tensor in optimizer.items()}
    if pinned:
        torch.cuda.current_stream().synchronize()  # the copies do not wait, the thread must not see half of them
    about = {"step": state.step, "train": dataclasses.asdict(cfg), "torch": torch.__version__}
    return Snapshot(
        step=state.step,
        weights=weights,
        optimizer=optimizer | generators,
        description=dict(description),
        about={**about, "notes": copy.deepcopy(dict(notes))},
    )


def _host_copy(name: str, tensor: Tensor, pinned: dict[str, Tensor]) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    if name not in pinned:
        pinned[name] = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned[name].copy_(tensor, non_blocking=True)


def write_checkpoint(root: Path, snapshot: Snapshot) -> Path:
    """Write `snapshot` below `root` and return its folder, which is complete then."""
    target = folder_of(root, snapshot.step)
    root.mkdir(parents=True, exist_ok=True)
    part = root / f".{target.name}.partial"
    for leftover in (part, target):  # of a run that was killed while it saved this very step
        remove_checkpoint(leftover)
    part.mkdir()
    digests = {}
    try:
        digests[WEIGHTS] = write_tensors(part / WEIGHTS, snapshot.weights)
        digests[OPTIMIZER] = write_tensors(part / OPTIMIZER, snapshot.optimizer)
        write_json(part / CONFIG, snapshot.description)
        write_json(part / STATE, snapshot.about)
    except OSError:  # a full disk: leave the room to others
        remove_checkpoint(part)
        raise
    files = {}
    for path in sorted(part.iterdir()):
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digests.get(path.name) or sha256(path)}
    flush(part)
    os.replace(part, target)  # noqa: PTH105  the tests kill a run exactly here
    flush(root)
    replace_json(target / COMPLETE, {"step": snapshot.step, "files": files})
    return target


class CheckpointWriter:
    """Writes snapshots in a thread, while training goes on, one at a time; then calls `on_written` in the training's
    own thread. An error of the thread comes out, as it was raised, of the next call."""

    def __init__(self, root: Path, on_written: Callable[[Path], None]) -> None:
        self.root, self.on_written = root, on_written
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint-writer")
        self.writing: concurrent.futures.Future[Path] | None = None

    def start(self, snapshot: Snapshot) -> None:
        assert self.writing is None, "the snapshot's buffers are those of the write before"
        self.writing = self.thread.submit(write_checkpoint, self.root, snapshot)

    def poll(self) -> None:
        """Finish a write that has ended. Waits for nothing."""
        if self.writing is not None and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the write, if there is one. Raises what it raised."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            self.on_written(writing.result())

    def wait(self) -> None:
        """Wait for the write and leave its outcome to `finish`."""
        concurrent.futures.wait([self.writing] if self.writing is not None else [])

    def close(self) -> None:
        self.thread.shutdown(wait=True)


def load_checkpoint(folder: Path, state: TrainState, cfg: TrainConfig, *, is_checked: bool = False) -> Resumed:
    """Put a complete checkpoint into `state`, to the bit, with the generators of torch.

    Raises ValueError when a file is damaged (unless `is_checked` asserts that `fault_in` found none), or when the
    model or `cfg` are not those it was made with. `cfg` may extend the run (model/training/schedule.py).
    """
    if not is_checked and (fault := fault_in(folder, FILES)):
        raise ValueError(f"{fault}; delete {folder} to go on from the checkpoint before it")
    was, about = train_config_of(folder), read_json(folder / STATE)
    if name := difference(was, cfg, about["step"]):
        raise ValueError(
            f"{folder} was made with {name}={getattr(was, name)}, now it is {getattr(cfg, name)}: a run cannot change"
            " half-way; train in another folder"
        )
    load_trained_weights(folder / WEIGHTS, state.model)
    tensors = read_tensors(folder / OPTIMIZER)
    state.optimizer.load({name: t for name, t in tensors.items() if not name.startswith(RNG_PREFIX)})
    restore_rng(tensors)
    state.step = about["step"]
    return Resumed(step=about["step"], train=was, notes=about["notes"])


def train_config_of(folder: Path) -> TrainConfig:
    """The config that the run of a checkpoint has. ValueError when another version of this program wrote it."""
    try:
        return TrainConfig(**read_json(folder / STATE)["train"])
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / STATE}: not a training config of this version ({error}); go on with the one that wrote it,"
            " or train in another folder"
        ) from error


def difference(was: TrainConfig, now: TrainConfig, step: int) -> str | None:
    """The first field by which `now` is another run than `was`; None where it goes on from `step` of it."""
    free = set(LENGTH) if horizon(was) == horizon(now) and is_extension(was, now, step) else set()
    if was.schedule == now.schedule != "warmup_stable_decay":
        free.add("decay_fraction")  # which only that schedule reads
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.metadata != RUNTIME_ONLY]
    names.sort(key=LENGTH.__contains__)  # the length last: what else differs is why this is no extension
    return next((name for name in names if name not in free and getattr(was, name) != getattr(now, name)), None)


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


def load_best(folder: Path, model: nn.Module) -> None:
    """Put the trained weights of a checkpoint into `model`. ValueError when a file of it is damaged."""
    if fault := fault_in(folder, (WEIGHTS,)):
        raise ValueError(
            f"{fault}; it is the best checkpoint, whose weights are the result: delete {folder.parent} to train again"
        )
    load_trained_weights(folder / WEIGHTS, model)


def prune_checkpoints(root: Path, keep: int, selection: Selection | None, also: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, the best one and that of step `also`, and all leftovers."""
    complete = complete_checkpoints(root)
    kept = {*complete[-keep:], *(path for path in complete if step_of(path) == also)}
    if selection is not None:
        valued = [
            (step_of(p), v[selection.metric]) for p in complete if selection.metric in (v := values_of(p) or {})
        ]
        best = selection.best(valued)
        kept |= {folder_of(root, best[0])} if best is not None else set()
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


# Generators of torch, of every process: a loss may draw. The first one's have the names of a single process's.


def rng_states() -> dict[str, Tensor]:
    """The generators of all processes by name, on rank 0. Every process of a group must call it."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    gathered = {kind: gather_on_main(state) for kind, state in own.items()}
    return {_rng_name(kind, i): state for kind, states in gathered.items() for i, state in enumerate(states)}


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """This process's generators; those of a process that the checkpoint does not know stay as they are."""
    setters = {
        "cpu": torch.set_rng_state,
        **({"cuda": torch.cuda.set_rng_state} if torch.cuda.is_available() else {}),
    }
    for kind, set_state in setters.items():
        if (state := tensors.get(_rng_name(kind, rank()))) is not None:
            set_state(state.clone())


def _rng_name(kind: str, number: int) -> str:
    return f"{RNG_PREFIX}{kind}" + (f".{number}" if number or kind == "cuda" else "")
