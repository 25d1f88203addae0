"""RMSNorm: scales a vector to root mean square 1, then by a learned weight (arXiv:1910.07467).

In: (..., D). Out: the same shape and dtype. The mean square is taken in float32 whatever the input is.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, d_norm: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_norm))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        wide_D = x_D.float()
        scale_1 = torch.rsqrt(wide_D.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide_D * scale_1).to(x_D.dtype) * self.weight  # weight after the cast, as Llama and Qwen3 do
