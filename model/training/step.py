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

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.training.config import TrainConfig
from model.training.cross_entropy import backward_of_sum
from model.training.distributed import (
    accumulating,
    check_shares,
    in_group,
    is_fsdp,
    local_shard,
    replicated,
    sharded,
    total,
)
from model.training.loss import Batch, LossFunction, language_model_loss
from model.training.machine import precision
from model.training.optim import Optimizer
from model.training.schedule import lr_factor
from model.training.spikes import History, spike_of

if TYPE_CHECKING:  # the loop runs on whatever gives batches, also where there are no shards to read and no pyarrow
    pass

log = logging.getLogger(__name__)


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
    state: TrainState,
    batch: Batch,
    cfg: TrainConfig,
    loss_function: LossFunction = language_model_loss,
    n_rows: int | None = None,
) -> StepReport:
    """One update from one global batch. `batch` holds this process's rows of it, on any device; `n_rows` is the
    number of rows of the whole batch, None = `batch` is all of it."""
    model = state.model
    device = next(model.parameters()).device
    loss_sums, counts = [], []
    n_rows = batch["ids_BT"].size(0) if n_rows is None else n_rows
    check_shares(n_rows, cfg)
    micros = list(micro_batches(on_device(batch, device), cfg.micro_batch or n_rows))
    for i, micro in enumerate(micros):
        with accumulating(state.parallel, is_last=i == len(micros) - 1):
            with precision(device):
                loss_sum, n_supervised = state.loss(loss_function, micro)
            backward_of_sum(loss_sum)
        loss_sums.append(loss_sum.detach())
        counts.append(n_supervised)
    n_supervised = total(torch.stack(counts).sum())
    loss = total(torch.stack(loss_sums).sum()) / n_supervised
    gradients = [local_shard(weight.grad) for weight in model.parameters() if weight.grad is not None]
    gradient_norm = scale_and_clip(gradients, n_supervised, cfg.gradient_clip, are_parts=is_fsdp(model))
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
        n_tokens=n_rows * batch["ids_BT"].size(1),
        is_skipped=is_skipped,
    )


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """`batch` there. From pinned memory, because a copy from other memory waits until the GPU has nothing to do.

    documents_BT stays on the host: attention reads the borders of its segments there without waiting for the GPU.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    kept = {"documents_BT"} & batch.keys()
    pinned = {name: x if x.is_cuda or name in kept else x.pin_memory() for name, x in batch.items()}
    return {name: x if name in kept else x.to(device, non_blocking=True) for name, x in pinned.items()}


def is_spike(history: History, loss: Tensor, gradient_norm: Tensor, limit: float) -> bool:
    return spike_of(history, float(loss), float(gradient_norm)) > limit  # waits for the device


def micro_batches(batch: Batch, n_rows: int) -> Iterator[dict[str, Tensor]]:
    """`batch` cut along its rows, `n_rows` each."""
    total = next(iter(batch.values())).size(0)
    for first in range(0, total, n_rows):
        yield {name: tensor[first : first + n_rows] for name, tensor in batch.items()}


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
