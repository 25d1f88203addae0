"""Grouped-query attention with QK-norm and rotary positions, as in Qwen3 (arXiv:2505.09388).

In: (B, T, D). Out: (B, T, D). Steps: project; RMSNorm over every query and key head; rotate; scaled dot product;
project back. Causal unless a mask is given; a cache supplies the keys and values of earlier tokens.

Legend: B batch, T query position, S key position, D d_model, H heads, G kv heads, K d_head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import DecoderConfig
from model.kv_cache import KVCache
from model.norm import RMSNorm
from model.rope import rotate


class Attention(nn.Module):
    def __init__(self, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer  # which part of the cache is ours
        self.d_head = cfg.d_head
        self.is_grouped = cfg.n_kv_heads != cfg.n_heads
        self.q_proj = nn.Linear(cfg.d_model, cfg.n_heads * cfg.d_head, bias=False)
        self.k_proj = nn.Linear(cfg.d_model, cfg.n_kv_heads * cfg.d_head, bias=False)
        self.v_proj = nn.Linear(cfg.d_model, cfg.n_kv_heads * cfg.d_head, bias=False)
        self.o_proj = nn.Linear(cfg.n_heads * cfg.d_head, cfg.d_model, bias=False)
        self.q_norm = RMSNorm(cfg.d_head, cfg.norm_eps)
        self.k_norm = RMSNorm(cfg.d_head, cfg.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        cos_T1K: Tensor,
        sin_T1K: Tensor,
        mask_B1TS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`mask`: True = may look; it replaces the causal rule and must hold it where that is wanted."""
        heads = (*x_BTD.shape[:2], -1, self.d_head)
        q_BTHK = rotate(self.q_norm(self.q_proj(x_BTD).view(heads)), cos_T1K, sin_T1K)
        k_BTGK = rotate(self.k_norm(self.k_proj(x_BTD).view(heads)), cos_T1K, sin_T1K)
        v_BTGK = self.v_proj(x_BTD).view(heads)
        q_BHTK, k_BGSK, v_BGSK = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        is_causal = mask_B1TS is None
        if cache is not None:
            n_seen, n_new = cache.position, x_BTD.size(1)
            k_BGSK, v_BGSK = cache.extend(self.layer, k_BGSK, v_BGSK)
            if is_causal and n_seen:  # SDPA's own causal mask would start at key 0
                mask_B1TS = later_rows_mask(n_new, n_seen, x_BTD.device) if n_new > 1 else None
                is_causal = False
        out_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=mask_B1TS, is_causal=is_causal, enable_gqa=self.is_grouped
        )
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


def later_rows_mask(n_new: int, n_seen: int, device: torch.device) -> Tensor:
    """(n_new, n_seen + n_new), True = may look: the last rows of a causal mask."""
    return torch.ones(n_new, n_seen + n_new, dtype=torch.bool, device=device).tril(n_seen)
