"""The loop around training steps: reports, checkpoints, validation, and how a training ends.

In: a TrainState, global batches by number, a TrainConfig. Out: the trained state; the caller receives the values of
every step and decides where they go. The position in the data is `step`: update s + 1 reads global batch s.

The loop saves before it validates, and ends in one of three ways: all steps are done; Interrupted, after SIGTERM or
SIGINT and a checkpoint; Diverged, when a loss is not a number.
"""

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model.training.config import TrainConfig
from model.training.distributed import any_process
from model.training.launch import stop_signals
from model.training.loss import LossFunction, language_model_loss
from model.training.prefetch import prefetched
from model.training.schedule import stable_end
from model.training.spikes import SPIKE, loss_spike_of, spike_of, with_step
from model.training.step import StepReport, TrainState, train_step

if TYPE_CHECKING:  # the loop runs on whatever gives batches, also where there are no shards to read and no pyarrow
    from model.data.batches import Batches

log = logging.getLogger(__name__)


class Interrupted(RuntimeError):
    """Training was asked to stop; `checkpoint` holds all that was done."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped after step {step} by a signal; run it again to go on from {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint


class Diverged(ValueError):
    """A loss or gradient is not a finite number: the learning rate, or the data, is at fault."""


def fit(
    state: TrainState,
    batches: "Batches",
    cfg: TrainConfig,
    *,
    loss_function: LossFunction = language_model_loss,
    report: Callable[[int, Mapping[str, float]], None],
    save: Callable[[], Path],
    validate: Callable[[], None] | None = None,
    last_good: Callable[[], Path | None] = lambda: None,
    min_spike_rise: float = 0.0,
) -> None:
    """Train from `state.step` to cfg.n_steps.

    `report(step, values)` hears of every step, in order: loss, gradient_norm, learning_rate, tokens_per_second; of
    a spike (model/training/spikes.py) of at least `min_spike_rise` nats also by how many deviations, and whether its
    update was left out.
    `save()` runs every checkpoint_every steps, at the end of the stable phase and after the last step, `validate()`
    every validate_every steps and after the last, always after a save that is due at the same step. Every process of
    a group calls all three.
    Raises Interrupted after a signal, Diverged when a loss is not finite.
    """
    reports = _Reports(state, batches, cfg, report, last_good, min_spike_rise)
    log_every = cfg.log_every if cfg.skip_spikes is None else 1  # each step is judged by those before it
    extendable = stable_end(cfg)  # a longer run can continue from this step
    device = next(state.model.parameters()).device
    numbers = range(state.step, cfg.n_steps)
    with stop_signals() as is_signalled, frozen_garbage(), prefetched(batches, numbers, device) as ahead:
        for k, batch in zip(numbers, ahead, strict=True):
            reports.pending.append(train_step(state, batch, cfg, loss_function, batches.n_rows(k)))
            is_last = state.step == cfg.n_steps
            is_stopped = any_process(is_signalled())  # a signal to one process is one to all, at the same step
            is_saved = is_last or state.step % cfg.checkpoint_every == 0 or is_stopped or state.step == extendable
            is_validated = is_last or state.step % cfg.validate_every == 0
            if is_saved or is_validated or state.step % log_every == 0:
                reports.read()
            if is_saved:
                checkpoint = save()
                if is_stopped:
                    raise Interrupted(state.step, checkpoint)
            if is_validated and validate is not None:
                validate()
            if is_saved or is_validated:
                reports.since = time.perf_counter()  # the rate of training alone


class _Reports:
    """Steps whose numbers were not read from the device yet, and who is told of them when they are."""

    def __init__(
        self, state: TrainState, batches: "Batches", cfg: TrainConfig, report, last_good, min_spike_rise: float
    ) -> None:
        self.state, self.batches, self.cfg = state, batches, cfg
        self.report, self.last_good, self.min_spike_rise = report, last_good, min_spike_rise
        self.pending: list[StepReport] = []
        self.since = time.perf_counter()

    def read(self) -> None:
        """Read and report all of them, in order. Raises Diverged when a number is not finite."""
        values = [step_report.values() for step_report in self.pending]
        seconds = max(time.perf_counter() - self.since, 1e-9)
        rate = sum(step_report.n_tokens for step_report in self.pending) / seconds
        for step_report, numbers in zip(self.pending, values, strict=True):
            if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
                raise Diverged(_divergence(step_report.step, numbers, self.batches, self.last_good()))
            spike = self.spike(step_report, numbers)
            self.report(step_report.step, {**numbers, **spike, "tokens_per_second": rate})
        self.pending.clear()
        self.since = time.perf_counter()

    def spike(self, step_report: StepReport, numbers: Mapping[str, float]) -> dict[str, float]:
        """`spike`, in deviations, where the loss is one or its update was left out; the step enters the history."""
        loss, norm = numbers["loss"], numbers["gradient_norm"]
        before = self.state.history
        self.state.history = with_step(before, loss, norm)
        deviations = (
            spike_of(before, loss, norm)
            if step_report.is_skipped
            else loss_spike_of(before, loss, self.min_spike_rise)
        )
        if deviations <= SPIKE and not step_report.is_skipped:
            return {}
        documents = self.batches.documents_of_batch(step_report.step - 1)
        log.warning(
            "step %d: spike, %.1f deviations above those before: loss %.4f, gradient norm %.4f%s. Its batch holds %s",
            *(step_report.step, deviations, loss, norm, "; update left out" if step_report.is_skipped else ""),
            _listed(documents, most=3),
        )
        return {"spike": deviations, "skipped": float(step_report.is_skipped)}


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Within the block Python's collector leaves alone what exists at its beginning: modules and weights are many
    objects, and a look through all of them every few hundred steps is a pause."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _listed(documents: list[str], most: int = 20) -> str:
    return f"{len(documents)} documents: {', '.join(documents[:most])}{' ...' if len(documents) > most else ''}"


def _divergence(step: int, numbers: Mapping[str, float], batches: "Batches", checkpoint: Path | None) -> str:
    documents = batches.documents_of_batch(step - 1)
    return (
        f"step {step}: loss {numbers['loss']}, gradient norm {numbers['gradient_norm']}: not finite. Its batch holds"
        f" {_listed(documents)}."
        f" Last good checkpoint: {checkpoint or 'none yet'}. Lower the learning rates, or look at these documents"
    )
