"""Keys and values of the tokens read so far, in memory that is allocated once.

In: keys and values of new tokens, layer by layer. Out: those of all tokens of the rows, as views where slots adjoin.
Each row lives in a slot and has a length of its own, so that rows of different lengths need no padding between them,
and a row may join or leave while the others keep their place. `part` selects the rows of a pass. A pass calls
`begin`, then `extend` in each layer, then `advance`. Lengths are kept twice: on the host, which chooses sizes by
them, and on the device, where a pass uses them without a transfer.

Legend: L layers, N slots, B rows of a pass, T new tokens, S key position, G kv heads, K d_head.
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from model.network.shape import DecoderConfig

# On a CPU, what a row may read behind its end before a call of its own is faster: a call costs about as much as 80
# keys of 3 heads of 64.
ROW_BYTES = 2**17


class KVCache:
    """All slots, or a part of them, which shares memory and lengths with the whole."""

    positions_BT: Tensor | None = None  # where the tokens of this pass go; None if all rows have the same length
    ends: list[int] | None = None  # how many keys each row has, if a pass of one token is faster row by row

    def __init__(
        self, cfg: DecoderConfig, n_slots: int, max_len: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Room for `max_len` tokens in each of `n_slots` slots. Raises ValueError if max_len exceeds max_seq_len."""
        if not 1 <= max_len <= cfg.max_seq_len:
            raise ValueError(f"max_len={max_len} of a cache must lie between 1 and max_seq_len={cfg.max_seq_len}")
        if n_slots < 1:
            raise ValueError(f"n_slots={n_slots} of a cache must be at least 1")
        shape = (cfg.n_layers, n_slots, cfg.n_kv_heads, max_len, cfg.d_head)
        # Zeros, because a masked key gets weight 0, and 0 times what memory happens to contain may be NaN.
        self.keys_LNGSK = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LNGSK = torch.zeros(shape, device=device, dtype=dtype)
        self.max_len = max_len
        self._lengths = [0] * n_slots
        self._lengths_N = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self._select(range(n_slots))

    def part(self, slots: Sequence[int]) -> Self:
        """The rows in `slots`, in this order. Only slots that follow each other are read without a copy."""
        part = copy.copy(self)
        part._select(slots)
        return part

    def _select(self, slots: Sequence[int]) -> None:
        self.slots, first = list(slots), slots[0]
        end, device = first + len(slots), self._lengths_N.device
        if self.slots == list(range(first, end)):  # all that a row's end needs, and nothing is sent to the device
            self._rows, slots_B = slice(first, end), torch.arange(first, end, device=device)
        else:
            self._rows = slots_B = torch.tensor(self.slots, device=device)
        self._slots_B1 = slots_B.unsqueeze(1)

    @property
    def n_rows(self) -> int:
        return len(self.slots)

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values together."""
        n_layers, _, n_kv_heads, _, d_head = self.keys_LNGSK.shape
        return 2 * n_layers * n_kv_heads * d_head * self.keys_LNGSK.element_size()

    @property
    def lengths(self) -> list[int]:
        return [self._lengths[slot] for slot in self.slots]

    def begin(self, n_new: int) -> int:
        """Prepares a pass of `n_new` tokens per row; returns how many tokens the longest row has already."""
        lengths = self.lengths
        self._n_seen = max(lengths)
        self._end = self._n_seen + n_new
        self.positions_BT = self.ends = None
        if min(lengths) < self._n_seen:
            new_T = torch.arange(n_new, device=self._lengths_N.device)
            self.positions_BT = self._lengths_N[self._rows].unsqueeze(1) + new_T
            if n_new == 1 and self._n_padded_bytes(lengths) > ROW_BYTES * len(lengths):
                self.ends = [length + 1 for length in lengths]
        return self._n_seen

    def _n_padded_bytes(self, lengths: Sequence[int]) -> int:
        """Of the keys and values behind the end of each row, in one layer; 0 where rows are always read together."""
        if self._lengths_N.device.type != "cpu":
            return 0
        n_keys = self._n_seen * len(lengths) - sum(lengths)
        return n_keys * self.bytes_per_token // self.keys_LNGSK.size(0)

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new keys and values of a layer; returns those of all tokens, (B, G, S, K).

        S is the longest row. What follows the tokens of a shorter one has no meaning, the caller must mask it.
        """
        for memory_NGSK, new_BGTK in ((self.keys_LNGSK[layer], k_BGTK), (self.values_LNGSK[layer], v_BGTK)):
            if self.positions_BT is None:
                memory_NGSK[self._rows, :, self._n_seen : self._end] = new_BGTK
            else:
                memory_NGSK[self._slots_B1, :, self.positions_BT] = new_BGTK.transpose(1, 2)
        if self._n_seen == 0:  # all keys are new: nothing to read, and scattered slots cost no copy
            return k_BGTK, v_BGTK
        return (
            self.keys_LNGSK[layer, self._rows, :, : self._end],
            self.values_LNGSK[layer, self._rows, :, : self._end],
        )

    def advance(self, n_new: int) -> None:
        for slot in self.slots:
            self._lengths[slot] += n_new
        self._lengths_N[self._rows] += n_new

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forgets what follows the first `lengths` tokens of each row, such as the padding of a prompt."""
        for slot, length, held in zip(self.slots, lengths, self.lengths, strict=True):
            if not 0 <= length <= held:
                raise ValueError(f"slot {slot} has {held} tokens and can't be truncated to {length}")
            self._lengths[slot] = length
        self._lengths_N[self._rows] = torch.tensor(lengths, device=self._lengths_N.device)

    def clear(self) -> None:
        self.truncate([0] * self.n_rows)

    def wipe(self) -> None:
        """Overwrites all keys and values of the rows: a NaN among them would reach whoever follows in these slots."""
        self.keys_LNGSK[:, self._rows] = self.values_LNGSK[:, self._rows] = 0

    def fill(self, source: Self) -> None:
        """Every row becomes a copy of the only row of `source`, so that a common beginning is computed once."""
        length = source.lengths[0]
        self.keys_LNGSK[:, self._rows, :, :length] = source.keys_LNGSK[:, source._rows, :, :length]
        self.values_LNGSK[:, self._rows, :, :length] = source.values_LNGSK[:, source._rows, :, :length]
        for slot in self.slots:
            self._lengths[slot] = length
        self._lengths_N[self._rows] = length

    def taken(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values of tokens `start` to `end` of the only row, (L, G, T, K) each."""
        keys_LGTK, values_LGTK = (x[:, self.slots[0], :, start:end] for x in (self.keys_LNGSK, self.values_LNGSK))
        return keys_LGTK.clone(), values_LGTK.clone()

    def put(self, keys_LGTK: Tensor, values_LGTK: Tensor) -> None:
        """Adds to the only row tokens that were read elsewhere, as `taken` returned them."""
        start, n_new = self.lengths[0], keys_LGTK.size(2)
        self.keys_LNGSK[:, self.slots[0], :, start : start + n_new] = keys_LGTK
        self.values_LNGSK[:, self.slots[0], :, start : start + n_new] = values_LGTK
        self.advance(n_new)

    def resized(self, n_slots: int, max_len: int) -> Self:
        """A cache with these sizes and the rows of this one, which have to fit it. The old memory is not freed."""
        length = max(self._lengths)
        assert length <= max_len and not any(self._lengths[n_slots:]), "a row does not fit the new size"
        (n_layers, _, n_kv_heads, _, d_head), n_kept = self.keys_LNGSK.shape, min(n_slots, len(self._lengths))
        other = copy.copy(self)
        for name in ("keys_LNGSK", "values_LNGSK"):
            old_LNGSK = getattr(self, name)
            new_LNGSK = old_LNGSK.new_zeros(n_layers, n_slots, n_kv_heads, max_len, d_head)
            new_LNGSK[:, :n_kept, :, :length] = old_LNGSK[:, :n_kept, :, :length]
            setattr(other, name, new_LNGSK)
        other.max_len = max_len
        other._lengths = [*self._lengths[:n_kept], *[0] * (n_slots - n_kept)]
        other._lengths_N = torch.tensor(other._lengths, device=self._lengths_N.device)
        other._select(range(n_slots))
        return other

    def move(self, source: int, target: int) -> None:
        """Continues the row of slot `source` in slot `target`, whose own row is over. All other slots stay."""
        length = self._lengths[source]
        self.keys_LNGSK[:, target, :, :length] = self.keys_LNGSK[:, source, :, :length]
        self.values_LNGSK[:, target, :, :length] = self.values_LNGSK[:, source, :, :length]
        self._lengths[target] = length
        self._lengths_N[target] = self._lengths_N[source]
