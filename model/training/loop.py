"""The loop around training steps: when to report, save and validate, and how a training ends.

In: a TrainState, global batches by number, a TrainConfig. Out: the trained state; the caller receives the values of
every step and decides where they go.

The loop saves before it validates, and ends in one of four ways: all steps are done; a validation ends it early;
Interrupted, after SIGTERM or SIGINT and a checkpoint; Diverged (model/training/reports.py), when a loss is not a
number.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.training.config import TrainConfig
from model.training.distributed import any_process
from model.training.launch import stop_signals
from model.training.loss import LossFunction, language_model_loss
from model.training.prefetch import prefetched
from model.training.reports import Report, Reports
from model.training.schedule import stable_end
from model.training.step import TrainState, train_step

if TYPE_CHECKING:  # the loop runs on whatever gives batches, also where there are no shards to read and no pyarrow
    from model.data.batches import Batches


class Interrupted(RuntimeError):
    """Training was asked to stop; `checkpoint` holds all that was done."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped after step {step} by a signal; run it again to go on from {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint


def fit(
    state: TrainState,
    batches: "Batches",
    cfg: TrainConfig,
    *,
    loss_function: LossFunction = language_model_loss,
    report: Report,
    save: Callable[[], Path],
    validate: Callable[[], None] | None = None,
    saves_validated: bool = False,
    is_over: Callable[[], bool] = lambda: False,
    last_good: Callable[[], Path | None] = lambda: None,
    min_spike_rise: float = 0.0,
) -> None:
    """Train from `state.step` to cfg.n_steps, or until `is_over()` at the start or after a validation.

    `report(step, values)` is called once per step, in order, with what model/training/reports.py describes. It may
    lag behind by cfg.log_every steps, but not at a save or a validation. A training that was killed and resumed
    repeats the steps since its last checkpoint, and reports them again.
    `save()` runs every checkpoint_every steps, at the end of the stable phase and after the last step, `validate()`
    every validate_every steps and after the last, always after a save that is due at the same step;
    `saves_validated`: one is due at every validated step. Every process of a group calls all of them.
    Raises Interrupted after a signal, Diverged when a loss is not finite.
    """
    reports = Reports(state, batches, report, last_good, min_spike_rise)
    # on a CPU, where the history is on the host, a step is compared with those before it
    log_every = cfg.log_every if cfg.skip_spikes is None or state.is_asynchronous else 1
    extendable = stable_end(cfg)  # a longer run can continue from this step
    device = next(state.model.parameters()).device
    numbers = range(state.step, state.step if is_over() else cfg.n_steps)
    with stop_signals() as is_signalled, frozen_garbage(), prefetched(batches, numbers, device) as ahead:
        for k, batch in zip(numbers, ahead, strict=True):
            reports.pending.append(train_step(state, batch, cfg, loss_function, batches.n_rows(k)))
            is_last = state.step == cfg.n_steps
            is_stopped = any_process(is_signalled())  # a signal to one process is one to all, at the same step
            is_validated = is_last or state.step % cfg.validate_every == 0
            is_saved = is_last or state.step % cfg.checkpoint_every == 0 or is_stopped or state.step == extendable
            is_saved = is_saved or (saves_validated and is_validated)
            if is_saved or is_validated or state.step % log_every == 0:
                reports.read()
            if is_saved:
                checkpoint = save()
                if is_stopped:
                    raise Interrupted(state.step, checkpoint)
            if is_validated and validate is not None:
                validate()
                if is_over():
                    return
            if is_saved or is_validated:
                reports.restart_clock()  # the rate of training alone


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Within the block Python's collector leaves alone what exists at its beginning: modules and weights are many
    objects, and visiting them all every few hundred steps is a pause."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
