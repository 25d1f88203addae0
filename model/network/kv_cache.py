"""Keys and values of the tokens seen so far, in memory that is taken once.

In: the keys and values of new tokens, layer by layer. Out: those of all tokens up to now, as views, no copies.
The position moves on once a pass, after the last layer.

Legend: N rows, B batch (the rows still kept), S key position, G kv heads, K d_head.
"""

import torch
from torch import Tensor

from model.network.shape import DecoderConfig


class KVCache:
    def __init__(
        self, cfg: DecoderConfig, n_rows: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Room for `max_len` tokens in each of `n_rows` rows. ValueError when max_len exceeds max_seq_len."""
        if not 1 <= max_len <= cfg.max_seq_len:
            raise ValueError(f"max_len={max_len} of a cache must lie between 1 and max_seq_len={cfg.max_seq_len}")
        shape = (cfg.n_layers, n_rows, cfg.n_kv_heads, max_len, cfg.d_head)
        self.keys_LNGSK = torch.empty(shape, device=device, dtype=dtype)
        self.values_LNGSK = torch.empty(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self.position = 0  # tokens seen, the index of the next one in its row

    @property
    def n_rows(self) -> int:
        return self.keys_LNGSK.size(1)

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S, K) of all tokens including the new ones."""
        end = self.position + k_BGTK.size(2)
        self.keys_LNGSK[layer, :, :, self.position : end] = k_BGTK
        self.values_LNGSK[layer, :, :, self.position : end] = v_BGTK
        return self.keys_LNGSK[layer, :, :, :end], self.values_LNGSK[layer, :, :, :end]

    def advance(self, n_tokens: int) -> None:
        self.position += n_tokens

    def clear(self) -> None:
        self.position = 0

    def keep_rows(self, rows_B: Tensor) -> None:
        """Go on with the rows of these numbers (int64) in this order; one may be named twice, or not at all."""
        self.keys_LNGSK = self.keys_LNGSK.index_select(1, rows_B)
        self.values_LNGSK = self.values_LNGSK.index_select(1, rows_B)
