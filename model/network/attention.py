"""Grouped-query attention (arXiv:2305.13245): QK-norm, rotary positions and biases by the switches of DecoderConfig.

In: (B, T, D). Out: (B, T, D). Steps: project to queries, keys and values; where the config says so, RMSNorm over
every query and key head (arXiv:2302.05442, as in Qwen3) and rotate; scaled dot product; project back. What a query
may see is decided outside, by `visibility`; a cache supplies the keys and values of earlier tokens.

Legend: B batch, T query position, S key position, D d_model, H heads, G kv heads, K d_head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.kv_cache import KVCache
from model.network.linear import Linear
from model.network.norm import RMSNorm
from model.network.rope import rotate
from model.network.shape import DecoderConfig

RotaryTables = tuple[Tensor, Tensor]  # cosine and signed sine of the positions at hand, (T, 1, K) or (B, T, 1, K)


class Attention(nn.Module):
    def __init__(self, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # which part of the cache is ours
        self.d_head = cfg.d_head
        self.is_grouped = cfg.n_kv_heads != cfg.n_heads
        d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        self.q_proj = Linear(cfg.d_model, d_queries, bias=cfg.qkv_bias)
        self.k_proj = Linear(cfg.d_model, d_keys, bias=cfg.qkv_bias)
        self.v_proj = Linear(cfg.d_model, d_keys, bias=cfg.qkv_bias)
        self.o_proj = Linear(d_queries, cfg.d_model, bias=cfg.output_bias)
        self.q_norm = RMSNorm(cfg.d_head, cfg.norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(cfg.d_head, cfg.norm_eps) if cfg.qk_norm else None

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTables | None, mask_BHTS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """`mask`: True = may look; None = what `visibility` means by it. `rotary`: None = no rotation."""
        heads = (*x_BTD.shape[:2], -1, self.d_head)
        q_BTHK, k_BTGK = self.q_proj(x_BTD).view(heads), self.k_proj(x_BTD).view(heads)
        v_BTGK = self.v_proj(x_BTD).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        if rotary is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, *rotary), rotate(k_BTGK, *rotary)
        q_BHTK, k_BGSK, v_BGSK = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.extend(self.layer, k_BGSK, v_BGSK)
        out_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=mask_BHTS,
            is_causal=mask_BHTS is None and x_BTD.size(1) > 1,
            enable_gqa=self.is_grouped,
        )
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


def visibility(
    n_new: int, n_seen: int, device: torch.device, window: int | None = None, mask_BTS: Tensor | None = None
) -> Tensor | None:
    """Which of the n_seen + n_new keys each of the n_new last positions may see, for SDPA: True = may look.

    The causal rule, or `mask` in its place; with a `window`, of those only the last `window` keys up to the query's
    own. (1 or B, 1, T, S), or None where SDPA needs no mask: one query that sees everything, or the plain triangle
    of tokens with nothing before them.
    """
    n_keys = n_seen + n_new
    if window is not None and n_keys <= window:
        window = None
    if mask_BTS is None and window is None and (n_new == 1 or n_seen == 0):
        return None
    sees_BTS = mask_BTS
    if sees_BTS is None:
        sees_BTS = torch.ones(1, n_new, n_keys, dtype=torch.bool, device=device).tril(n_seen)
    if window is not None:
        sees_BTS = sees_BTS & torch.ones(n_new, n_keys, dtype=torch.bool, device=device).triu(n_seen - window + 1)
    return sees_BTS.unsqueeze(1)
