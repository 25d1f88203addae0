"""Rotary positions (arXiv:2104.09864) in the rotate-half layout, so that Hugging Face weights need no permutation.

In: queries or keys (B, T, H, K) and their positions. Out: the same, each pair (i, i + K/2) turned by position *
frequency i, which is theta^(-2i/K) unless a RopeScaling stretches it. Scores then depend on the distance between two
tokens alone.

Legend: B batch, T position, H heads, K d_head.
"""

import math

import torch
from torch import Tensor

from model.network.shape import RopeScaling


def rotary_tables(frequency_K: Tensor, max_seq_len: int) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of every position, each (max_seq_len, 1, d_head) float32; the 1 is for the heads.

    The sine has the sign of rotate_half (negative in the first half), so that turning needs a roll and no negation.
    """
    angle_TK = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), frequency_K)
    cos, sin = angle_TK.cos(), angle_TK.sin()
    return torch.cat([cos, cos], dim=-1).unsqueeze(1), torch.cat([-sin, sin], dim=-1).unsqueeze(1)


def frequencies(d_head: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per token of each pair, (d_head / 2,) float32."""
    frequency = 1.0 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    return frequency if scaling is None else scaled(frequency, scaling)


def scaled(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies (radians per token) for a context `scaling.factor` times as long.

    linear divides them all (position interpolation, arXiv:2306.15595). llama3 (arXiv:2407.21783) divides those that
    turn less than low_freq_factor times within the old context, keeps those that turn more than high_freq_factor
    times, which distinguish neighbours, and blends in between by the number of turns.
    """
    if scaling.kind == "linear" or scaling.original_max_seq_len is None:
        return frequency / scaling.factor
    turns = scaling.original_max_seq_len * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotate(x_BTHK: Tensor, cos_T1K: Tensor, signed_sin_T1K: Tensor) -> Tensor:
    """The heads turned, in their dtype. The tables have a row per position, (T, 1, K), or per text, (B, T, 1, K).

    Tables that are wider than the heads, as under autocast, do the computation in their own width.
    """
    half = x_BTHK.size(-1) // 2
    return torch.addcmul(x_BTHK * cos_T1K, x_BTHK.roll(half, dims=-1), signed_sin_T1K).to(x_BTHK.dtype)
