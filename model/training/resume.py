"""From which checkpoint a run goes on, and with which config: its newest whole one, or that of a shorter run.

In: the folder of checkpoints and a config. Out: the checkpoint, and the config as the run continues. Damaged
checkpoints are set aside.

A run with a stable phase can be extended: until the decay of the learning rate begins, it is the same for any number
of steps, but for two values that follow from it: the steps of the warm-up, and Muon's weight decay
(model/training/presets.py). The longer run keeps both, and so ends with the bits of a run that was trained with them
from its beginning.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from model.training.checkpoint import (
    FILES,
    STATE,
    complete_checkpoints,
    difference,
    remove_checkpoint,
    set_aside,
    step_of,
    train_config_of,
)
from model.training.config import TrainConfig
from model.training.files import fault_in
from model.training.schedule import horizon, is_extension, stable_end, steps_of_warmup, with_warmup_of

log = logging.getLogger(__name__)


def continued(root: Path, cfg: TrainConfig) -> TrainConfig:
    """`cfg`, with what it keeps of the shorter run whose checkpoints are below `root`, if it extends one."""
    whole = (path for path in reversed(complete_checkpoints(root)) if fault_in(path, (STATE,)) is None)
    newest = next(whole, None)
    if newest is None:
        return cfg
    was = train_config_of(newest)
    is_resumed = cfg.n_steps == was.n_steps and was.warmup_horizon is not None  # an extension that was stopped
    if not (is_resumed or cfg.n_steps > was.n_steps) or cfg.warmup_horizon not in (None, horizon(was)):
        return cfg
    kept = dataclasses.replace(with_warmup_of(was, cfg), muon_weight_decay=was.muon_weight_decay)
    return kept if is_resumed or is_extension(was, kept, 0) else cfg


def newest_whole(root: Path, cfg: TrainConfig) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go on from, and later ones that `drop_later` must remove: a run that is extended goes on from
    its stable phase. None: the training begins.

    Reads the files for their digests; among several processes rank 0 alone calls it.
    """
    found, later = complete_checkpoints(root), []
    while found:
        if fault := fault_in(found[-1], FILES):
            aside = set_aside(found.pop())
            how = f"goes on from the one before, {found[-1]}" if found else "starts again from its beginning"
            log.warning("%s; the damaged checkpoint is kept in %s, and the training %s", fault, aside, how)
        elif _is_past_extending(found[-1], cfg):
            later.append(found.pop())
        else:
            return found[-1], later
    if later:
        was = train_config_of(later[0])
        raise ValueError(
            f"{root} holds a run of n_steps={was.n_steps}, which n_steps={cfg.n_steps} would extend, but no whole"
            f" checkpoint from before its learning rate fell, of step {stable_end(was)} at the latest; train in"
            " another folder"
        )
    return None, []


def _is_past_extending(folder: Path, cfg: TrainConfig) -> bool:
    """Whether `cfg` extends the run of this checkpoint, which was made after its learning rate had begun to fall."""
    was = train_config_of(folder)
    return difference(was, cfg, 0) is None and difference(was, cfg, step_of(folder)) is not None


def drop_later(was: TrainConfig, cfg: TrainConfig, step: int, later: Sequence[Path]) -> None:
    """Log how a run is extended from `step`, and remove its checkpoints from then on."""
    log.warning(
        "the run of %d steps is extended to %d, from step %d of its stable phase; its warm-up of %d steps and"
        " muon_weight_decay=%.4g stay%s",
        *(was.n_steps, cfg.n_steps, step, steps_of_warmup(cfg.warmup_fraction, cfg), cfg.muon_weight_decay),
        f"; removed: {', '.join(path.name for path in later)}" if later else "",
    )
    for path in later:
        remove_checkpoint(path)
