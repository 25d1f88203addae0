"""Random numbers for losses that draw: a function of (seed, batch, row), and of nothing else.

In: the seed of a training, the number of a global batch, the numbers of its rows. Out: a seed per row, and uniform
numbers from it. torch's generators would give other numbers on another number of processes, with another micro-batch
and after a resume; these are the same wherever and whenever a row is computed, and are made on the row's device.

A counter goes through the finaliser of SplitMix64 (doi:10.1145/2660193.2660195, Stafford's variant 13), whose 64 bits
pass as random. int64 arithmetic wraps around on CPUs and on CUDA alike.

Legend: B rows, N numbers per row.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.data.batch_layout import rows_of_rank
from model.training.distributed import n_processes, rank

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: the step of the counter
SHIFTS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def row_seeds(seed: int, batch: int, rows: range, device: torch.device | str = "cpu") -> Tensor:
    """A seed (int64, B) for each of the `rows` of global batch number `batch`."""
    base = _mixed_int(_mixed_int(seed & MASK) + batch)
    return _mixed(_counted(torch.arange(rows.start, rows.stop, device=device), base))


def uniform_of_rows(row_seeds_B: Tensor, n: int) -> Tensor:
    """`n` numbers per row (float32, (B, N)), uniform in [0, 1), that depend on the row's seed alone.

    A loss that draws for several purposes takes them from one call, or adds a constant of its own to the seeds.
    """
    bits_BN = _mixed(_counted(torch.arange(n, device=row_seeds_B.device), row_seeds_B.unsqueeze(1)))
    return _shifted_right(bits_BN, 40).float() * 2.0**-24  # 24 bits, as many as a float32 holds


def with_row_seeds(batch: Mapping[str, Tensor], seed: int, number: int, n_rows: int) -> dict[str, Tensor]:
    """`batch`, this process's rows of the `n_rows` of global batch `number`, with row_seeds_B."""
    ids_BT = batch["ids_BT"]
    first = rows_of_rank(n_rows, rank(), n_processes()).start
    return {**batch, "row_seeds_B": row_seeds(seed, number, range(first, first + len(ids_BT)), ids_BT.device)}


def _counted(counter: Tensor, start: Tensor | int) -> Tensor:
    start = _signed(start) if isinstance(start, int) else start
    return start + (counter + 1) * _signed(GOLDEN)


def _mixed(x: Tensor) -> Tensor:
    for shift, factor in SHIFTS:
        x = (x ^ _shifted_right(x, shift)) * _signed(factor)
    return x


def _shifted_right(x: Tensor, n_bits: int) -> Tensor:
    """Zeros come in from the left; >> of int64 would copy the sign."""
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)


def _mixed_int(x: int) -> int:
    x = (x + GOLDEN) & MASK
    for shift, factor in SHIFTS:
        x = ((x ^ (x >> shift)) * factor) & MASK
    return x


def _signed(x: int) -> int:
    """The int64 with the bits of an unsigned number."""
    x &= MASK
    return x - (1 << 64) if x >> 63 else x
