"""One training step, for any model, batch and loss.

In: a TrainState, the global batch of its step, a TrainConfig. Out: an updated state and a StepReport. Steps: for
each micro-batch the summed loss and its gradient; divide the gradient by the supervised targets of the whole batch
and clip it; update. The position in the data is `step`: update s + 1 reads global batch s.

Several processes (model/training/distributed.py) have different rows of a batch each, and all of them learn the loss,
the number of targets and the gradient norm of the whole batch, so that all update, stop or fail at the same step.

An update is left out where the batch has no supervised target (its mean would be 0 / 0), and on request where the
step is a spike (model/training/spikes.py). On a CPU the host reads these flags. On a device that works asynchronously
they stay there and the update is conditional, because a read would make the host wait in the middle of a step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from model.training.config import TrainConfig
from model.training.cross_entropy import backward_of_sum
from model.training.distributed import (
    Objective,
    accumulating,
    check_all_shares,
    check_shares,
    in_group,
    is_fsdp,
    local_shard,
    replicated,
    total,
)
from model.training.draws import with_row_seeds
from model.training.fsdp import Initialise, sharded
from model.training.loss import Batch, LossFunction, language_model_loss
from model.training.machine import precision
from model.training.optim import Optimizer
from model.training.prefetch import ON_HOST
from model.training.replicas import Replicas
from model.training.schedule import lr_factor
from model.training.spikes import History, history_on_device, is_spike_on_device, spike_of, with_step_on_device

# Positions that cost as much as a pass: gradients are added to all weights, 12 bytes each, where a position is 6
# operations per weight.
PASS_COST = 64


@dataclass(slots=True)
class TrainState:
    """`step` updates are done; the next one reads global batch `step`."""

    model: nn.Module  # whose weights are trained; under FSDP a copy that has shards
    optimizer: Optimizer
    step: int = 0
    history: History = field(default_factory=list)  # of the last steps, which spikes are compared with
    parallel: nn.Module | None = None  # the model's loss as DDP or FSDP has it; None in a single process
    is_asynchronous: bool = False  # the device works on while the host goes ahead; reading a tensor waits for it
    history_2W: Tensor | None = None  # the same history on such a device, where steps go ahead of what was read
    replicas: Replicas | None = None  # threads compute with one each; None = they divide operations

    def use_replicas(self, replicas: Replicas | None) -> None:
        """From now on; those before it end."""
        if self.replicas is not None:
            self.replicas.close()
        self.replicas = self.optimizer.muon.replicas = replicas

    def loss(self, loss_function: LossFunction, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.parallel is None:
            return loss_function(self.model, batch)
        return self.parallel(loss_function, batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One finished step. Tensors are 0-d and on the model's device, so that making a report waits for nothing."""

    step: int  # updates done, this one included
    loss: Tensor  # nats, mean over the supervised targets of the global batch; NaN without any
    gradient_norm: Tensor  # L2, before clipping; NaN without a target
    is_empty: Tensor  # bool: no supervised target, and so no update
    is_spike: Tensor  # bool: a spike whose update was left out
    learning_rate: float  # Muon's where there is one, else AdamW's
    n_tokens: int  # positions of the global batch, with all of its padding

    @property
    def numbers(self) -> Tensor:
        """(4,) float64, on the device: loss, gradient norm, is_empty, is_spike."""
        return torch.stack([x.double() for x in (self.loss, self.gradient_norm, self.is_empty, self.is_spike)])


def new_state(model: nn.Module, cfg: TrainConfig, initialise: Initialise | None = None) -> TrainState:
    """A state at step 0. Within a process group the model is spread as cfg.parallel says.

    With "fsdp" the weights of `model` may be on the meta device; `initialise` then fills the shards.
    """
    parallel = None
    if in_group():
        check_all_shares(cfg)
        parallel = replicated(model) if cfg.parallel == "ddp" else sharded(model, initialise)
    trained = parallel.model if isinstance(parallel, Objective) else model
    is_asynchronous = next(trained.parameters()).device.type != "cpu"
    return TrainState(trained, Optimizer(trained, cfg), parallel=parallel, is_asynchronous=is_asynchronous)


def train_step(
    state: TrainState,
    batch: Batch,
    cfg: TrainConfig,
    loss_function: LossFunction = language_model_loss,
    n_rows: int | None = None,
) -> StepReport:
    """One update from one global batch. `batch` holds this process's rows of it, on any device; `n_rows` is the
    number of rows of the whole batch, None = `batch` is all of it.

    The loss function also finds row_seeds_B in its batch, for numbers that it draws (model/training/draws.py).
    """
    n_rows = batch["ids_BT"].size(0) if n_rows is None else n_rows
    check_shares(n_rows, cfg)
    device = next(state.model.parameters()).device
    rows = with_row_seeds(on_device(batch, device), cfg.seed, state.step, n_rows)
    loss_sum, n_supervised = accumulate_gradients(state, rows, cfg, loss_function)
    loss = loss_sum / n_supervised
    gradients = [local_shard(weight.grad) for weight in state.model.parameters() if weight.grad is not None]
    gradient_norm = scale_and_clip(gradients, n_supervised, cfg.gradient_clip, are_shards=is_fsdp(state.model))
    is_empty = n_supervised == 0
    is_spike = spike_flag(state, loss, gradient_norm, is_empty, cfg.skip_spikes)
    factor = lr_factor(state.step, cfg)
    is_applied = ~(is_empty | is_spike)
    if state.is_asynchronous:
        state.optimizer.step(factor, is_applied)
    elif is_applied:  # the memory of a CPU is the host's
        state.optimizer.step(factor)
    state.model.zero_grad(set_to_none=True)
    state.step += 1
    return StepReport(
        step=state.step,
        loss=loss,
        gradient_norm=gradient_norm,
        is_empty=is_empty,
        is_spike=is_spike,
        learning_rate=(cfg.muon_lr if cfg.muon_lr is not None else cfg.adamw_lr) * factor,
        n_tokens=n_rows * batch["ids_BT"].size(1),
    )


def accumulate_gradients(
    state: TrainState, batch: Batch, cfg: TrainConfig, loss_function: LossFunction
) -> tuple[Tensor, Tensor]:
    """The summed loss of the global batch and its supervised targets, over all processes; gradients of the sum are
    in the weights."""
    micro_batch = cfg.micro_batch or batch["ids_BT"].size(0)
    if state.replicas is None:
        loss_sum, n_supervised = passes(partial(state.loss, loss_function), batch, micro_batch, state.parallel)
    else:
        rows_each = -(-micro_batch // len(state.replicas.models))
        sums = state.replicas.accumulate(
            lambda model, rows: passes(partial(loss_function, model), rows, rows_each), batch
        )
        loss_sum, n_supervised = (torch.stack(sum_of_replica).sum() for sum_of_replica in zip(*sums, strict=True))
    n_supervised = total(n_supervised)
    return total(loss_sum), n_supervised


def passes(
    loss: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch, n_rows: int, parallel: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of losses and supervised targets of `batch`, and gradients, by forward and backward passes of `n_rows`."""
    loss_sums, counts = [], []
    micros = list(micro_batches(batch, n_rows))
    for i, micro in enumerate(micros):
        with accumulating(parallel, is_last=i == len(micros) - 1):
            with precision(micro["ids_BT"].device):
                loss_sum, n_supervised = loss(micro)
            backward_of_sum(loss_sum)
        loss_sums.append(loss_sum.detach())
        counts.append(n_supervised)
    return torch.stack(loss_sums).sum(), torch.stack(counts).sum()


def spike_flag(
    state: TrainState, loss: Tensor, gradient_norm: Tensor, is_empty: Tensor, limit: float | None
) -> Tensor:
    """Whether the step is a spike whose update is to be left out, 0-d bool. Without a `limit` none is."""
    if limit is None:
        return torch.zeros_like(is_empty)
    if not state.is_asynchronous:
        deviations = spike_of(state.history, float(loss), float(gradient_norm))
        return torch.full_like(is_empty, deviations > limit)
    if state.history_2W is None:
        state.history_2W = history_on_device(state.history, loss.device)
    values_2 = torch.stack([loss, gradient_norm])
    is_spike = is_spike_on_device(state.history_2W, values_2, limit) & ~is_empty
    state.history_2W = with_step_on_device(state.history_2W, values_2, ~is_empty)
    return is_spike


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """`batch` there. From pinned memory, because a copy from other memory waits until the GPU has nothing to do.

    What is in ON_HOST stays where it is.
    """
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    pinned = {name: x if x.is_cuda or name in ON_HOST else x.pin_memory() for name, x in batch.items()}
    return {name: x if name in ON_HOST else x.to(device, non_blocking=True) for name, x in pinned.items()}


def micro_batches(batch: Batch, n_rows: int) -> Iterator[dict[str, Tensor]]:
    """The rows of `batch`, at most `n_rows` at a time, and on a CPU fewer where that leaves out much padding."""
    total = next(iter(batch.values())).size(0)
    for first in range(0, total, n_rows):
        micro = {name: tensor[first : first + n_rows] for name, tensor in batch.items()}
        # On a device the lengths are not on the host, and processes of a group make equally many passes.
        if "lengths_B" in micro and micro["lengths_B"].device.type == "cpu" and not in_group():
            yield from of_like_lengths(micro)
        else:
            yield micro


def of_like_lengths(batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The rows of `batch` in their order, divided where the padding that this saves costs more than a pass."""
    lengths_B = batch["lengths_B"]
    longest = int(lengths_B.max())
    batch = {name: x[:, :longest] if name.endswith("_BT") else x for name, x in batch.items()}
    before_B = lengths_B.cummax(0).values[:-1]  # the longest of the rows up to a border, and of those after it
    after_B = lengths_B.flip(0).cummax(0).values.flip(0)[1:]
    n_before_B = torch.arange(1, len(lengths_B))
    saved_B = n_before_B * (longest - before_B) + (len(lengths_B) - n_before_B) * (longest - after_B)
    if len(lengths_B) == 1 or saved_B.max() < PASS_COST:
        yield batch
        return
    border = int(n_before_B[saved_B.argmax()])
    for rows in (slice(border), slice(border, None)):
        yield from of_like_lengths({name: x[rows] for name, x in batch.items()})


@torch.no_grad()
def scale_and_clip(
    gradients: list[Tensor], n_supervised: Tensor, clip: float | None, are_shards: bool = False
) -> Tensor:
    """Turn gradients of a sum into those of the mean, at most `clip` long. Returns the L2 norm of the mean's gradient
    before clipping.

    `are_shards`: other processes have the rest of every gradient.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    if are_shards:
        norm = total(norm.square()).sqrt()
    norm = norm / n_supervised
    factor = 1 / n_supervised
    if clip is not None:
        factor = factor * (clip / (norm + 1e-6)).clamp(max=1.0)
    # a few kernels on CUDA, where one per gradient costs its launch
    torch._foreach_mul_(gradients, factor)  # type: ignore[reportPrivateImportUsage]
    return norm
