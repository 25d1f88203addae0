"""Rotary positions (arXiv:2104.09864) in the rotate-half layout, so that Hugging Face weights need no permutation.

In: queries or keys (B, T, H, K) and the positions they stand at. Out: the same, each pair (i, i + K/2) turned by
position / theta^(2i/K). Scores then depend on the distance of two tokens alone.

Legend: B batch, T position, H heads, K d_head.
"""

import torch
from torch import Tensor


def rotary_tables(max_seq_len: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine, each (max_seq_len, 1, d_head) float32; the 1 stands for the heads.

    The sign of rotate_half (first half negative) lies in the sine, so that turning needs a roll and no negation.
    """
    frequency = 1.0 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)
    angle_TK = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), frequency)
    cos, sin = angle_TK.cos(), angle_TK.sin()
    return torch.cat([cos, cos], dim=-1).unsqueeze(1), torch.cat([-sin, sin], dim=-1).unsqueeze(1)


def rotate(x_BTHK: Tensor, cos_T1K: Tensor, signed_sin_T1K: Tensor) -> Tensor:
    half = x_BTHK.size(-1) // 2
    return torch.addcmul(x_BTHK * cos_T1K, x_BTHK.roll(half, dims=-1), signed_sin_T1K)
