"""The rows that are being written: their tokens, their place in the cache, and the logits of the next token of each.

In: contexts (prompts) that join and new tokens. Out: logits (B, V), row b in slot b. Rows are always in the first
slots, so that a pass over all of them reads the cache without a copy. A row that joins, or that filled the context
and goes on from its newest half, is read alone, in its own slot: all tokens but the last, padded on the right to the
longest of those that are read with it. Its last token then takes part in the common pass. So nothing that happens to
one row changes what is stored of another.

Legend: N slots, B rows, T query position, V vocab.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.decoder import Decoder
from model.network.kv_cache import KVCache


class Slots:
    def __init__(
        self, model: Decoder, n_slots: int, max_len: int, *, use_cache: bool = True, cache: KVCache | None = None
    ) -> None:
        """Room for `n_slots` rows. `max_len`: tokens that a row reads at most before it ends or fills the context.

        `cache`: with as many rows, which is used instead of a new one. Without any cache each pass reads all tokens
        again, with the same result, as a check.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.contexts: list[list[int]] = []  # by slot: what the next token is drawn from, at most max_seq_len ids
        self.cache = cache
        if cache is None and use_cache:
            self.cache = model.new_cache(n_slots, max_len)
        self._last_N = torch.zeros(n_slots, dtype=torch.int64, device=self.device)  # newest token of each row
        self._all: KVCache | None = None  # the part of the cache that all rows are in

    def join(self, slot: int, context: Sequence[int], n_read: int = 0) -> None:
        """Puts a row into `slot`, which is one of those taken, whose row is over, or the next one. The cache has the
        first `n_read` tokens of the row in this slot already."""
        if self.cache is not None:
            self.cache.part([slot]).truncate([n_read])
        self.contexts[slot : slot + 1] = [list(context)]
        self._last_N[slot] = context[-1]

    def leave(self, slot: int) -> None:
        """Drops the row of `slot`; the row of the last slot takes its place."""
        last = len(self.contexts) - 1
        if slot < last:
            self._last_N[slot] = self._last_N[last]
            if self.cache is not None:
                self.cache.move(last, slot)
        self.contexts[slot] = self.contexts[last]
        self.contexts.pop()

    def append(self, ids: Sequence[int], ids_B: Tensor) -> None:
        """A new token for each row, on the host and on the device."""
        max_seq_len = self.model.cfg.max_seq_len
        self._last_N[: len(ids)] = ids_B
        for slot, token in enumerate(ids):
            self.contexts[slot].append(token)
            if len(self.contexts[slot]) > max_seq_len:  # cached keys carry their positions and can't slide
                self.join(slot, self.contexts[slot][-max(1, max_seq_len // 2) :])

    def next_logits(self) -> Tensor:
        """Logits (B, V) float32 of the token that follows each row."""
        n_rows = len(self.contexts)
        lengths = [0] * n_rows if self.cache is None else self._part().lengths
        unread = [context[length:] for context, length in zip(self.contexts, lengths, strict=True)]
        late = [slot for slot in range(n_rows) if len(unread[slot]) > 1]
        if not any(lengths) or len(late) == n_rows:
            return self._logits(self._read(range(n_rows), unread))
        if late:
            self._read(late, [unread[slot][:-1] for slot in late])
        return self._logits(self.model.trunk(self._last_N[:n_rows, None], cache=self._part())[:, 0])

    def _part(self) -> KVCache:
        assert self.cache is not None
        n_rows = len(self.contexts)
        if self._all is None or self._all.n_rows != n_rows:
            self._all = self.cache.part(range(n_rows))
        return self._all

    def _read(self, slots: Sequence[int], unread: Sequence[Sequence[int]]) -> Tensor:
        """Reads the next tokens of rows; returns the last hidden state of each, (B, D)."""
        lengths = [len(ids) for ids in unread]
        padded = [[*ids, *([0] * (max(lengths) - len(ids)))] for ids in unread]
        part = self.cache.part(slots) if self.cache is not None else None
        before = [] if part is None else part.lengths
        x_BTD = self.model.trunk(torch.tensor(padded, device=self.device), cache=part)
        if part is not None:
            part.truncate([n_read + length for n_read, length in zip(before, lengths, strict=True)])
        last_B = torch.tensor(lengths, device=self.device) - 1
        return x_BTD[torch.arange(len(slots), device=self.device), last_B]

    def _logits(self, x_BD: Tensor) -> Tensor:
        return self.model.lm_head(x_BD).float()
