"""The next batch is built in a thread while a step runs, and reaches a GPU in one copy.

In: batches by number, a range of numbers, a device. Out: an iterator of this process's rows of each batch, as int64
and float32 tensors on the device, except for those ON_HOST. Steps on CUDA: the thread builds batch k + 1, narrows its
numbers and packs them into pinned memory, of which there are two halves that take turns; asking for the batch copies
a half to the device, on the stream that computes, and widens the numbers there. A batch is a function of its number
alone, so that the thread changes no bit and a resume needs nothing from it.

On a CPU there is no thread: building a batch takes less than a thousandth of a step, and the thread would take a core
from the step.

Narrow numbers: token ids, targets and positions are int64 in a batch; where all are from -100 to
65,435 they travel as 16 bits, else as 32.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.training.distributed import n_processes, rank

if TYPE_CHECKING:  # this module also runs where there are no shards to read and no pyarrow
    from model.data.batches import Batches

IN_A_THREAD = frozenset({"cuda"})  # kinds of devices whose batches are built ahead
LOWEST, HIGHEST_16 = -100, (1 << 16) - 101  # numbers that 16 bits hold after adding 100; -100 is IGNORE_INDEX
ALIGNMENT = 16  # bytes; of each tensor in a packed batch
ON_HOST = frozenset({"documents_BT"})  # attention reads their borders on the host, without waiting for the GPU


@contextlib.contextmanager
def prefetched(
    batches: "Batches", numbers: Iterable[int], device: torch.device
) -> Iterator[Iterator[Mapping[str, Tensor]]]:
    """Within the block: this process's rows of the batches with these numbers, in order; on a GPU already there.

    An error of a batch is raised where that batch is asked for. At the end of the block the thread has ended too.
    """
    if device.type not in IN_A_THREAD:
        yield (batches.batch(k, rank(), n_processes()) for k in numbers)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        yield _ahead(batches, iter(numbers), device, thread)  # leaving the block waits for the batch in work


def _ahead(
    batches: "Batches", numbers: Iterator[int], device: torch.device, thread: ThreadPoolExecutor
) -> Iterator[Mapping[str, Tensor]]:
    own_rank, n_ranks = rank(), n_processes()
    halves = (Half(device), Half(device))

    def begin(turn: int) -> "Future[Packed] | None":
        k = next(numbers, None)
        return None if k is None else thread.submit(lambda: halves[turn].pack(batches.batch(k, own_rank, n_ranks)))

    turn, building = 0, begin(0)
    while building is not None:
        packed = building.result()
        building = begin(1 - turn)
        yield halves[turn].to_device(packed)
        turn = 1 - turn


@dataclass(frozen=True, slots=True)
class Packed:
    data: Tensor  # uint8
    parts: tuple[tuple[str, torch.dtype, torch.Size, slice], ...]  # name, type, shape and bytes of each tensor
    on_host: Mapping[str, Tensor]  # those that do not travel


class Half:
    """Host memory for one batch on its way to `device`; pinned for a GPU, and reused for every second batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.cuda.Event() if device.type == "cuda" else None

    def pack(self, batch: Mapping[str, Tensor]) -> Packed:
        """The narrowed `batch` in this memory. Waits until the batch before has left it."""
        narrow = {name: narrowed(tensor) for name, tensor in batch.items() if name not in ON_HOST}
        on_host = {name: tensor for name, tensor in batch.items() if name in ON_HOST}
        parts, end = [], 0
        for name, tensor in narrow.items():
            parts.append((name, tensor.dtype, tensor.shape, slice(end, end + tensor.nbytes)))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if self.copied is not None:
            self.copied.synchronize()
        if len(self.memory) < end:
            self.memory = torch.empty(end, dtype=torch.uint8, pin_memory=self.copied is not None)
        for name, dtype, shape, place in parts:
            self.memory[place].view(dtype).view(shape).copy_(narrow[name])
        return Packed(self.memory[:end], tuple(parts), on_host)

    def to_device(self, packed: Packed) -> dict[str, Tensor]:
        """The batch on the device, except for what stays ON_HOST, with int64 numbers."""
        data = packed.data.to(self.device, non_blocking=True, copy=True)
        if self.copied is not None:
            self.copied.record()
        moved = {name: widened(data[place].view(dtype).view(shape)) for name, dtype, shape, place in packed.parts}
        return {**moved, **packed.on_host}


def narrowed(tensor: Tensor) -> Tensor:
    """Whole numbers in as few bits as hold all of them; other tensors as they are."""
    if tensor.dtype != torch.int64 or not tensor.numel():
        return tensor
    lowest, highest = (int(number) for number in tensor.aminmax())
    if lowest >= LOWEST and highest <= HIGHEST_16:
        return (tensor - LOWEST).to(torch.int16)  # wraps: few operations know unsigned numbers
    limits = torch.iinfo(torch.int32)
    return tensor.to(torch.int32) if limits.min <= lowest and highest <= limits.max else tensor


def widened(tensor: Tensor) -> Tensor:
    """The numbers that were narrowed, int64."""
    if tensor.dtype == torch.int16:
        return (tensor.to(torch.int64) & 0xFFFF) + LOWEST
    return tensor.to(torch.int64) if tensor.dtype == torch.int32 else tensor
