"""Keys and values of the tokens seen so far, in memory that is taken once.

In: the keys and values of new tokens, layer by layer. Out: those of all tokens up to now, as views, no copies.
The position moves on once a pass, after the last layer.

Legend: B batch, S key position, G kv heads, K d_head.
"""

import torch
from torch import Tensor

from model.config import DecoderConfig


class KVCache:
    def __init__(self, cfg: DecoderConfig, n_rows: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (cfg.n_layers, n_rows, cfg.n_kv_heads, cfg.max_seq_len, cfg.d_head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.position = 0  # tokens seen

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S, K) of all tokens including the new ones."""
        end = self.position + k_BGTK.size(2)
        self.keys[layer, :, :, self.position : end] = k_BGTK
        self.values[layer, :, :, self.position : end] = v_BGTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        self.position += n_tokens

    def clear(self) -> None:
        self.position = 0
