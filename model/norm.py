"""Norms: RMSNorm scales a vector to root mean square 1 (arXiv:1910.07467), LayerNorm also centres it and adds a bias
(arXiv:1607.06450); then a learned weight an element.

In: (..., D). Out: the same shape and dtype. Mean square and variance are taken in float32 whatever the input is.
"""

import torch
from torch import Tensor, nn

from model.config import DecoderConfig


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
        wide_D = x_D.float()
        scale_1 = torch.rsqrt(wide_D.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide_D * scale_1).to(x_D.dtype) * self.weight  # weight after the cast, as Llama and Qwen3 do
