"""Norms: RMSNorm scales a vector to root mean square 1 (arXiv:1910.07467), LayerNorm also centres it
(arXiv:1607.06450). A learned weight per element follows, and in LayerNorm a bias unless it is left out.

In: (..., D). Out: the same shape and dtype, also where the weight is wider: under autocast the residual stream is
bfloat16 and norms are computed in float32. Mean square and variance are float32 whatever the input is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.network.shape import LayerShape


def new_norm(cfg: LayerShape) -> nn.Module:
    if cfg.norm == "rmsnorm":
        return RMSNorm(cfg.d_model, cfg.norm_eps)
    return LayerNorm(cfg.d_model, eps=cfg.norm_eps, bias=cfg.norm == "layernorm")


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, whose output has the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        wide_D = input.to(self.weight.dtype)
        return F.layer_norm(wide_D, self.normalized_shape, self.weight, self.bias, self.eps).to(input.dtype)


class RMSNorm(nn.Module):
    def __init__(self, d_norm: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_norm))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        unit_D: Tensor = _UnitRms.apply(x_D.float(), self.eps)  # type: ignore[assignment]
        # The weight comes after the cast where it is as narrow as the input, as in Llama and Qwen3.
        return (unit_D.to(self.weight.dtype) * self.weight).to(x_D.dtype)


class _UnitRms(torch.autograd.Function):
    """u = x s with s = 1 / sqrt(mean(x^2) + eps), and dx = s (du - u mean(du u)).

    The gradient written out takes half the passes over memory, and half the tensors, of the one by autograd.
    """

    @staticmethod
    def forward(ctx: Any, x_D: Tensor, eps: float) -> Tensor:
        length_1 = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True)
        scale_1 = torch.rsqrt(length_1.square_().div_(x_D.size(-1)).add_(eps))
        unit_D = x_D * scale_1
        ctx.save_for_backward(unit_D, scale_1)
        return unit_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_D: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        unit_D, scale_1 = ctx.saved_tensors
        along_1 = (gradient_D * unit_D).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient_D, unit_D, along_1, value=-1).mul_(scale_1), None
