"""Norms: RMSNorm scales a vector to root mean square 1 (arXiv:1910.07467), LayerNorm also centres it and adds a bias
(arXiv:1607.06450); then a learned weight an element.

In: (..., D). Out: the same shape and dtype. Mean square and variance are taken in float32 whatever the input is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.network.shape import DecoderConfig


def new_norm(cfg: DecoderConfig) -> nn.Module:
    """The norm over d_model that `cfg` names."""
    if cfg.norm == "layernorm":
        return nn.LayerNorm(cfg.d_model, eps=cfg.norm_eps)
    return RMSNorm(cfg.d_model, cfg.norm_eps)


class RMSNorm(nn.Module):
    def __init__(self, d_norm: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_norm))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        unit_D: Tensor = _UnitRms.apply(x_D.float(), self.eps)  # type: ignore[assignment]
        return unit_D.to(x_D.dtype) * self.weight  # weight after the cast, as Llama and Qwen3 do


class _UnitRms(torch.autograd.Function):
    """u = x s with s = 1 / sqrt(mean(x^2) + eps), and dx = s (du - u mean(du u)): the gradient written out needs half
    the passes over memory, and half the tensors, of the one that autograd puts together."""

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
