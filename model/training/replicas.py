"""Replicas of a small model in threads of a CPU: each computes the gradient of its own rows.

In: a model, a number of threads, batches. Out: gradients of a whole batch in the model's weights. Steps: the rows are
divided into one share per replica; every replica, which has the weights in common with the model and gradients of its
own, runs forward and backward on its share; the gradients are added in the order of the replicas.

The operations of a small model are so short that threads which divide each of them spend their time on waiting for
each other, more than a thousand times per step; beside another busy process each wait lasts until the scheduler runs
the other thread again. Replicas wait a few times per step.

Which rows a replica gets depends on the number of rows and replicas, never on the load of the machine, so that the
weights are the same to the bit. Another number of threads adds in another order, as it does within operations.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.data.batch_layout import rows_of_rank
from model.training.compilation import is_compiled
from model.training.distributed import in_group

MAX_REPLICAS = 4  # Python runs one thread at a time, and spends a tenth of a small step itself
MAX_PARAMETERS = 2**25  # each replica has a gradient of its own; larger products divide well among threads
Result = TypeVar("Result")


def replicas_for(model: nn.Module, n_threads: int, n_rows: int) -> "Replicas | None":
    """Replicas for `n_threads` threads and batches of up to `n_rows` rows; None where they do not apply."""
    weights = list(model.parameters())
    n_replicas = min(n_threads, n_rows, MAX_REPLICAS)
    if n_replicas < 2 or weights[0].device.type != "cpu" or in_group() or is_compiled(model):
        return None
    if sum(weight.numel() for weight in weights) > MAX_PARAMETERS:
        return None
    return Replicas(model, n_replicas, n_threads // n_replicas)


class Replicas:
    """The model itself, for the calling thread, and copies with the same weights for other threads."""

    def __init__(self, model: nn.Module, n_replicas: int, n_threads_each: int) -> None:
        self.models = [model, *(replica_of(model) for _ in range(n_replicas - 1))]
        self.n_threads_each = n_threads_each  # threads that divide an operation
        # torch keeps the number for each thread
        self.pool = ThreadPoolExecutor(n_replicas - 1, "replica", torch.set_num_threads, (n_threads_each,))

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def each(self, function: Callable[..., Result], *columns: Sequence) -> list[Result]:
        """`map(function, *columns)`, each call in a thread of its own; at most as many calls as there are models.

        Returns or raises when all calls have ended.
        """
        first, *others = zip(*columns, strict=True)
        futures = [self.pool.submit(function, *arguments) for arguments in others]
        try:
            result = function(*first)
        finally:
            wait(futures)
        return [result, *(future.result() for future in futures)]

    def accumulate(self, passes: Callable[[nn.Module, Mapping[str, Tensor]], Result], batch: Mapping[str, Tensor]):
        """`passes` of each model and its rows of `batch`, which add gradients to the model's weights; then all
        gradients are in the first model. Returns the results in the order of the rows."""
        shares = shares_of(batch, len(self.models))
        models = self.models[: len(shares)]
        generator = torch.get_rng_state()
        try:
            results = self.each(passes, models, shares)
            if len(shares) > 1 and not torch.equal(torch.get_rng_state(), generator):
                raise ValueError(
                    "the loss or the model draws from torch's generator, in an order that depends on which thread is"
                    " faster; draw from row_seeds_B (model/training/draws.py), or train with n_threads=1"
                )
            for weight, *others in zip(*(model.parameters() for model in models), strict=True):
                for other in others:
                    if other.grad is not None:
                        weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
        finally:
            for model in models[1:]:
                model.zero_grad(set_to_none=True)
        return results


def replica_of(model: nn.Module) -> nn.Module:
    """A copy that shares weights and buffers with `model`; trainable weights have gradients of their own."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    trainable = {id(weight): nn.Parameter(weight.detach()) for weight in model.parameters() if weight.requires_grad}
    return copy.deepcopy(model, shared | trainable).train()


def shares_of(batch: Mapping[str, Tensor], n_shares: int) -> list[dict[str, Tensor]]:
    """Consecutive rows of `batch`, in shares that differ by at most one row; fewer shares where rows are fewer."""
    n_rows = next(iter(batch.values())).size(0)
    n_shares = min(n_shares, n_rows)
    shares = (rows_of_rank(n_rows, number, n_shares) for number in range(n_shares))
    return [{name: tensor[rows] for name, tensor in batch.items()} for rows in shares]
