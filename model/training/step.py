"""The training step and the loop around it, for any model, batches and loss.

In: a TrainState, global batches by number, a TrainConfig. Out: an updated state; the caller is told every step and
decides where that goes. Steps of a step: for each micro-batch the summed loss and its gradient; divide the gradient
by the targets of the whole batch and clip it; update. The position in the data is `step`: update s + 1 reads
global batch s.

Several processes (model/training/distributed.py) take a share of the rows of a batch each, and every one of them
knows the loss and the gradient norm of the whole batch, so that all go on, stop or fail at the same step.

The loop saves before it validates, and ends in one of three ways: all steps are done; Interrupted, after SIGTERM or
SIGINT and a checkpoint; Diverged, when a loss is not a number.
"""

import contextlib
import gc
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.training.config import TrainConfig
from model.training.distributed import (
    accumulating,
    anywhere,
    check_shares,
    holds_shards,
    in_group,
    local,
    replicated,
    sharded,
    share,
    total,
)
from model.training.loss import Batch, LossFunction, language_model_loss
from model.training.optim import Optimizer
from model.training.schedule import lr_factor
from model.training.spikes import SPIKE, History, loss_spike_of, spike_of, with_step

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


@dataclass(slots=True)
class TrainState:
    """`step` updates are done; the next one reads global batch `step`."""

    model: nn.Module  # whose weights are trained; under FSDP a copy that holds shards
    optimizer: Optimizer
    step: int = 0
    history: History = field(default_factory=list)  # of the last steps, which spikes stand out from
    parallel: nn.Module | None = None  # the model's loss as DDP or FSDP has it; None in a single process

    def loss(self, loss_function: LossFunction, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.parallel is None:
            return loss_function(self.model, batch)
        return self.parallel(loss_function, batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One finished step. Tensors are 0-d and on the model's device, so that making a report waits for nothing."""

    step: int  # updates done, this one included
    loss: Tensor  # nats, mean over the supervised targets of the global batch
    gradient_norm: Tensor  # L2, before clipping
    learning_rate: float  # Muon's where there is one, else AdamW's
    n_tokens: int  # positions that passed through the model
    is_skipped: bool = False  # a spike, whose update was left out

    def values(self) -> dict[str, float]:
        """The numbers of the report, read from the device."""
        return {
            "loss": float(self.loss),
            "gradient_norm": float(self.gradient_norm),
            "learning_rate": self.learning_rate,
        }


def new_state(model: nn.Module, cfg: TrainConfig) -> TrainState:
    """A state at step 0. Within a process group the model is spread as cfg.parallel says."""
    if not in_group():
        return TrainState(model, Optimizer(model, cfg))
    check_shares(cfg.rows, cfg)
    if cfg.parallel == "ddp":
        return TrainState(model, Optimizer(model, cfg), parallel=replicated(model))
    parallel = sharded(model)
    return TrainState(parallel.model, Optimizer(parallel.model, cfg), parallel=parallel)


def train_step(
    state: TrainState, batch: Batch, cfg: TrainConfig, loss_function: LossFunction = language_model_loss
) -> StepReport:
    """One update from one global batch; `batch` may lie on another device than the model."""
    model = state.model
    device = next(model.parameters()).device
    loss_sums, counts = [], []
    n_rows = batch["ids_BT"].size(0)
    check_shares(n_rows, cfg)
    micros = list(micro_batches(on_device(share(batch), device), cfg.micro_batch or n_rows))
    for i, micro in enumerate(micros):
        with accumulating(state.parallel, is_last=i == len(micros) - 1):
            with precision(device):
                loss_sum, n_supervised = state.loss(loss_function, micro)
            loss_sum.backward()
        loss_sums.append(loss_sum.detach())
        counts.append(n_supervised)
    n_supervised = total(torch.stack(counts).sum())
    loss = total(torch.stack(loss_sums).sum()) / n_supervised
    gradients = [local(weight.grad) for weight in model.parameters() if weight.grad is not None]
    gradient_norm = scale_and_clip(gradients, n_supervised, cfg.gradient_clip, are_parts=holds_shards(model))
    factor = lr_factor(state.step, cfg)
    is_skipped = cfg.skip_spikes is not None and is_spike(state.history, loss, gradient_norm, cfg.skip_spikes)
    if not is_skipped:
        state.optimizer.step(factor)
    model.zero_grad(set_to_none=True)
    state.step += 1
    return StepReport(
        step=state.step,
        loss=loss,
        gradient_norm=gradient_norm,
        learning_rate=(cfg.muon_lr if cfg.muon_lr is not None else cfg.adamw_lr) * factor,
        n_tokens=batch["ids_BT"].numel(),
        is_skipped=is_skipped,
    )


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """`batch` there. From pinned memory, because a copy from other memory waits until the GPU has nothing to do."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    pinned = {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}


def is_spike(history: History, loss: Tensor, gradient_norm: Tensor, limit: float) -> bool:
    return spike_of(history, float(loss), float(gradient_norm)) > limit  # waits for the device


def micro_batches(batch: Batch, n_rows: int) -> Iterator[dict[str, Tensor]]:
    """`batch` cut along its rows, `n_rows` each."""
    total = next(iter(batch.values())).size(0)
    for first in range(0, total, n_rows):
        yield {name: tensor[first : first + n_rows] for name, tensor in batch.items()}


def precision(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 for products where the device has it natively; float32 on CPUs, which emulate it slowly."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


@torch.no_grad()
def scale_and_clip(
    gradients: list[Tensor], n_supervised: Tensor, clip: float | None, are_parts: bool = False
) -> Tensor:
    """Turn gradients of a sum into those of the mean, at most `clip` long. Returns the mean's L2 norm.

    `are_parts`: other processes hold the rest of every gradient.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    if are_parts:
        norm = total(norm.square()).sqrt()
    norm = norm / n_supervised
    factor = 1 / n_supervised
    if clip is not None:
        factor = factor * (clip / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm


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
    told_rise: float = 0.0,
) -> None:
    """Train from `state.step` to cfg.n_steps.

    `report(step, values)` hears of every step, in order: loss, gradient_norm, learning_rate, tokens_per_second; of
    a spike (model/training/spikes.py) of at least `told_rise` nats also by how many deviations, and whether its
    update was left out.
    `save()` runs every checkpoint_every steps and after the last; `validate()` every validate_every steps and
    after the last, always after a save that is due at the same step. Every process of a group calls all three.
    Raises Interrupted after a signal, Diverged when a loss is not finite.
    """
    reports = _Reports(state, batches, cfg, report, last_good, told_rise)
    log_every = cfg.log_every if cfg.skip_spikes is None else 1  # each step is judged by those before it
    with stop_signals() as is_stopped, frozen_garbage():
        while state.step < cfg.n_steps:
            reports.pending.append(train_step(state, batches.batch(state.step), cfg, loss_function))
            is_last = state.step == cfg.n_steps
            stops = anywhere(is_stopped())  # a signal to one process is one to all, at the same step
            saves = is_last or state.step % cfg.checkpoint_every == 0 or stops
            validates = is_last or state.step % cfg.validate_every == 0
            if saves or validates or state.step % log_every == 0:
                reports.read()
            if saves:
                checkpoint = save()
                if stops:
                    raise Interrupted(state.step, checkpoint)
            if validates and validate is not None:
                validate()
            if saves or validates:
                reports.since = time.perf_counter()  # the rate of training alone


class _Reports:
    """Steps whose numbers were not read from the device yet, and who is told of them when they are."""

    def __init__(
        self, state: TrainState, batches: "Batches", cfg: TrainConfig, report, last_good, told_rise: float
    ) -> None:
        self.state, self.batches, self.cfg = state, batches, cfg
        self.report, self.last_good, self.told_rise = report, last_good, told_rise
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
            spike_of(before, loss, norm) if step_report.is_skipped else loss_spike_of(before, loss, self.told_rise)
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


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT are recorded, not obeyed; the value is whether one came.

    Outside the main thread, where handlers cannot be set, it always says no.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: set outside Python
