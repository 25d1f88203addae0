"""Several processes that train one model: their numbers, the tensors they exchange, and how they fail together.

In: the environment that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), rows of a global
batch, gradients. Out: this process's rows, sums over all processes, full tensors of shards. Without torchrun there is
one process: no group is created, every function here is the identity, and the half second that importing torch's
sharded tensors takes is saved.

Two ways to hold a model (TrainConfig.parallel): with "ddp" each process has all weights, and gradients are summed
while backward still runs (arXiv:2006.15704); with "fsdp" each has a shard of every weight, gradient and momentum, and
a layer is gathered while it computes (model/training/fsdp.py). Gradients are sums, never means: the caller, who knows
the supervised targets of the whole batch, divides once. Nothing is pickled: processes exchange tensors, and text on
failure.

Legend: N matrices of one shape, R rows, C columns.
"""

import contextlib
import datetime
import inspect
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from model.training.config import TrainConfig
from model.training.machine import training_device
from model.training.schedule import warmup_rows

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TIMEOUT = datetime.timedelta(minutes=30)  # of a collective: the others wait while rank 0 writes a checkpoint
# Buffers are tables that never change. The option has a new name since torch 2.13.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
GROUPS = itertools.count()  # of this process: each group has keys of its own in torchrun's store
FAILURE = "failure"  # key of the store under which the first process to fail writes its error
MESHES: dict[str, DeviceMesh] = {}  # all processes of the group that exists, by kind of device
HELD: list[tuple[dist.ProcessGroup, weakref.ref]] = []  # groups that a model in DDP still refers to; see `replicated`


# Numbers of processes.


def in_group() -> bool:
    """Whether this process is within `process_group`, with others."""
    return dist.is_available() and dist.is_initialized()


def n_processes() -> int:
    return dist.get_world_size() if in_group() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, also before and after the group exists."""
    return dist.get_rank() if in_group() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process is the one that writes files and reports progress."""
    return rank() == 0


# Beginning and end.


@contextlib.contextmanager
def process_group(store: Store | None = None) -> Iterator[None]:
    """Within the block the processes that torchrun started can exchange tensors; nothing happens without torchrun.

    When one fails, it publishes its error before it ends, and the others raise RuntimeError with that error.
    `store` is where they meet, by default torchrun's.
    """
    if n_processes() == 1 or in_group():
        yield
        return
    own_rank, size = rank(), n_processes()
    if store is None:
        store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"gristmill.{next(GROUPS)}", store)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(training_device())
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"  # gloo beside NCCL: flags on the host wait for no kernel
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    except Exception as error:
        raise_cause(store, error)
        raise
    finally:
        MESHES.clear()
        dist.destroy_process_group()


def raise_cause(store: Store, error: Exception) -> None:
    """Publish why this process fails, or, if another process failed first, raise that process's error instead."""
    own = f"process {rank()}: {type(error).__name__}: {error}"
    is_consequence = type(error) is RuntimeError or isinstance(error, dist.DistError)
    try:
        first = store.compare_set(FAILURE, "", own).decode()
    except (RuntimeError, dist.DistError):  # the store was in the process that failed
        first = own
    if is_consequence and first != own:
        raise RuntimeError(f"process {rank()} of {n_processes()} ends because another failed: {first}") from error
    if is_consequence and any(word in str(error) for word in ("Connection", "connection", "Timed out", "timed out")):
        raise RuntimeError(
            f"process {rank()} of {n_processes()} lost another that ended without a message (killed, or out of"
            " memory?); start the training again to resume from its last checkpoint"
        ) from error


# Batches, sums and agreements. Every process must call these in the same order.


def check_all_shares(cfg: TrainConfig, size: int | None = None) -> None:
    """`check_shares` of the batches of all sizes that a training has, smallest first."""
    for n_rows in sorted({*warmup_rows(cfg), cfg.rows}):
        check_shares(n_rows, cfg, size)


def check_shares(n_rows: int, cfg: TrainConfig, size: int | None = None) -> None:
    """ValueError when a global batch of `n_rows` rows cannot be shared out among `size` processes (the group's)."""
    size = size or (dist.get_world_size() if in_group() else 1)
    micro_batch = cfg.micro_batch or n_rows
    if n_rows < size:
        where = f" (the first batches, by batch_warmup_fraction={cfg.batch_warmup_fraction}, of rows={cfg.rows})"
        where = where if n_rows in warmup_rows(cfg) else ""
        raise ValueError(f"rows={n_rows}{where} leave some of {size} processes without a row; start at most {n_rows}")
    most, least = (-(-n // micro_batch) for n in (-(-n_rows // size), n_rows // size))
    if cfg.parallel == "fsdp" and most != least:  # a pass gathers weights, which takes all processes
        raise ValueError(
            f"rows={n_rows} over {size} processes make {most} micro-batches of micro_batch={micro_batch} in some"
            f" and {least} in others, which parallel='fsdp' cannot do; let rows be a multiple of {size}"
        )


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if in_group():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process: a byte through the hosts, which waits for no device."""
    if not in_group():
        return flag
    flags = torch.tensor([flag], dtype=torch.uint8)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def broadcast_int(number: int) -> int:
    """The number that rank 0 has."""
    if not in_group():
        return number
    numbers = torch.tensor([number])
    dist.broadcast(numbers, src=0)
    return int(numbers.item())


def gather_on_main(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, in host memory and of one shape, by rank; nothing on the others than rank 0."""
    if not in_group():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(n_processes())] if is_main() else None
    dist.gather(tensor, gathered, dst=0)
    return gathered or []


# The model in several processes.


class Objective(nn.Module):
    """A loss as the forward pass of a module: DDP and FSDP act before and after a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss_function: Callable, batch: Mapping[str, Tensor]) -> Any:
        return loss_function(self.model, batch)


def replicated(model: nn.Module) -> DistributedDataParallel:
    """The loss of `model` in DDP; gradients are summed, in buckets, while backward computes the next ones.

    The C++ part of DDP refers to the group. Where that is the last reference, torch 2.13 destroys the group while it
    holds Python's lock, and waits for threads of gloo that may need this lock: a deadlock. So the group is kept until
    the model is gone, and then freed by Python, which releases the lock first.
    """
    options: dict[str, Any] = {SYNC_BUFFERS: False}
    parallel = DistributedDataParallel(Objective(model), gradient_as_bucket_view=True, **options)

    def summed(_, bucket) -> torch.futures.Future[Tensor]:
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    parallel.register_comm_hook(None, summed)
    HELD[:] = [(group, owner) for group, owner in HELD if owner() is not None]
    if dist.group.WORLD is not None:
        HELD.append((dist.group.WORLD, weakref.ref(parallel)))
    return parallel


def whole_mesh(device: torch.device) -> DeviceMesh:
    """All processes of the group, in a row."""
    if device.type not in MESHES:
        MESHES[device.type] = init_device_mesh(device.type, (n_processes(),))
    return MESHES[device.type]


@contextlib.contextmanager
def accumulating(parallel: nn.Module | None, is_last: bool) -> Iterator[None]:
    """Within the block gradients of a micro-batch are computed; they are summed over the processes after the last."""
    if isinstance(parallel, DistributedDataParallel) and not is_last:
        with parallel.no_sync():
            yield
        return
    if isinstance(parallel, Objective):
        parallel.set_requires_gradient_sync(is_last)  # type: ignore[operator]  (fully_shard made it an FSDPModule)
    yield


def is_fsdp(model: nn.Module) -> bool:
    return any(is_sharded(weight) for weight in model.parameters())


# Shards. Outside FSDP a weight is its own shard and its own full tensor.


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    if not in_group():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def local_shard(tensor: Tensor) -> Tensor:
    """The part of a weight or gradient that this process holds, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(part: Tensor, weight: Tensor) -> Tensor:
    """The tensor of which this process holds `part`, sharded as `weight` is. Every process must call it."""
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    sizes = {"shape": weight.shape, "stride": weight.stride()}
    return DTensor.from_local(
        part.contiguous(), weight.device_mesh, weight.placements, run_check=False, **sizes
    ).full_tensor()


def full_tensor_on_main(part: Tensor, weight: Tensor) -> Tensor:
    """The `full_tensor` in rank 0's main memory, an empty tensor elsewhere: saving takes no more of a GPU than one
    tensor. Without shards: `part` itself."""
    if not is_sharded(weight):
        return part
    tensor = full_tensor(part, weight)
    return tensor.cpu() if is_main() else tensor.new_empty(0)


def shard_of(tensor: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `weight` is and on its device."""
    tensor = tensor.to(weight.device)
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return local_shard(distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None))


@torch.no_grad()
def gather_weights(source: nn.Module, target: nn.Module) -> None:
    """Give `target`, whose weights may be released, the full weights of the sharded `source`."""
    for weight, shards in zip(target.parameters(), source.parameters(), strict=True):
        weight.data = full_tensor(local_shard(shards), shards)


@torch.no_grad()
def release_weights(model: nn.Module) -> None:
    """Keep names and modules, and free the memory."""
    for weight in model.parameters():
        weight.data = weight.new_empty(0)
