"""The rows that are being written: their tokens, their place in the cache, and the logits of the next token of each.

In: contexts (prompts) that join and new tokens. Out: logits (B, V) of the rows that one pass served. Rows are always
in the first slots, so that a pass over all of them reads the cache without a copy. A pass either reads, several
tokens of each row that has more than its newest token unread (it joined, or it filled the context and goes on from
its newest half), padded on the right to the longest of those that are read with it; or it writes, with the newest
token of each other row. The two take turns, and a limit on the tokens of a reading pass bounds how long those that
write wait for it. Nothing that happens to one row changes what is stored of another.

Legend: N slots, B rows, T query position, D d_model, V vocab.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.network.decoder import Decoder
from model.network.kv_cache import KVCache


class Slots:
    def __init__(
        self,
        model: Decoder,
        n_slots: int,
        max_len: int,
        *,
        most_read: int | None = None,
        use_cache: bool = True,
        cache: KVCache | None = None,
    ) -> None:
        """Room for `n_slots` rows. `max_len`: tokens that a row reads at most before it ends or fills the context.

        `most_read`: tokens of a pass that reads, with padding; None = no limit. `cache`: with as many rows, which is
        used instead of a new one. Without any cache each pass reads all tokens again, with the same result, as a
        check.
        """
        self.model = model
        self.device = next(model.parameters()).device
        self.contexts: list[list[int]] = []  # by slot: what the next token is drawn from, at most max_seq_len ids
        self.cache = cache
        if cache is None and use_cache:
            self.cache = model.new_cache(n_slots, max_len)
        self._last_N = torch.zeros(n_slots, dtype=torch.int64, device=self.device)  # newest token of each row
        self._part: KVCache | None = None  # of the cache: the first rows, which wrote together last
        self.most_read, self._has_just_read = most_read, False
        self.n_last_read = 0  # tokens of the last pass, with padding, if it read; 0 if it wrote
        self._arrival: list[int] = []  # by slot: the number of its row in the order of joining
        self._n_joined = 0

    def resize(self, n_slots: int, max_len: int) -> None:
        """Room for more or for longer rows, or for fewer; all rows that are there keep their slots."""
        assert self.cache is not None and n_slots >= len(self.contexts)
        if not self.contexts:  # never hold two caches without need
            self.cache = self._part = None
            self.cache = self.model.new_cache(n_slots, max_len)
        else:
            for slot in range(len(self.contexts), self.cache.n_rows):
                self.cache.part([slot]).clear()
            self.cache, self._part = self.cache.resized(n_slots, max_len), None
        last_N = torch.zeros(n_slots, dtype=torch.int64, device=self.device)
        last_N[: len(self.contexts)] = self._last_N[: len(self.contexts)]
        self._last_N = last_N

    def join(self, slot: int, context: Sequence[int], n_read: int = 0) -> None:
        """Puts a row into `slot`, which is one of those taken, whose row is over, or the next one. The cache has the
        first `n_read` tokens of the row in this slot already."""
        if self.cache is not None:
            self.cache.part([slot]).truncate([n_read])
        self.contexts[slot : slot + 1] = [list(context)]
        self._arrival[slot : slot + 1] = [self._n_joined]
        self._n_joined += 1
        self._last_N[slot] = context[-1]

    def join_copy(self, slot: int, source: int, context: Sequence[int]) -> None:
        """As `join`, of a row whose context is the beginning of that of the row in `source`, which was read."""
        assert self.cache is not None
        self.cache.part([slot]).fill(self.cache.part([source]))
        self.join(slot, context, len(context) - 1)

    def wipe(self, slot: int) -> None:
        """Forgets the keys and values of a row that are not finite."""
        if self.cache is not None:
            self.cache.part([slot]).wipe()

    def leave(self, slot: int) -> None:
        """Drops the row of `slot`; the row of the last slot takes its place."""
        last = len(self.contexts) - 1
        if slot < last:
            self._last_N[slot] = self._last_N[last]
            if self.cache is not None:
                self.cache.move(last, slot)
        for by_slot in (self.contexts, self._arrival):
            by_slot[slot] = by_slot[last]  # type: ignore[index]
            by_slot.pop()

    def append(self, slots: Sequence[int], ids: Sequence[int], ids_B: Tensor) -> None:
        """A new token for each of these rows, on the host and on the device."""
        max_seq_len = self.model.cfg.max_seq_len
        self._last_N[self.index(slots)] = ids_B
        for slot, token in zip(slots, ids, strict=True):
            self.contexts[slot].append(token)
            if len(self.contexts[slot]) > max_seq_len:  # cached keys carry their positions and can't slide
                self.join(slot, self.contexts[slot][-max(1, max_seq_len // 2) :])

    def index(self, slots: Sequence[int]) -> slice | Tensor:
        """What selects these slots, in rising order, from a tensor: a slice without a transfer where they are the
        first ones."""
        if slots[-1] == len(slots) - 1:  # slots are in order
            return slice(len(slots))
        return torch.tensor(slots, device=self.device)

    def next_logits(self) -> tuple[list[int], Tensor]:
        """One pass: the slots of the rows whose next token can be drawn now, and its logits (B, V) float32.

        No slots if the rows that it read have more to read.
        """
        lengths = [0] * len(self.contexts) if self.cache is None else self.cache.lengths
        n_unread = [len(context) - length for context, length in zip(self.contexts, lengths, strict=False)]
        late = [slot for slot, n in enumerate(n_unread) if n > 1 or not lengths[slot]]
        if late and not (self._has_just_read and len(late) < len(self.contexts)):
            self._has_just_read = True
            return self._read(late, lengths, n_unread)
        self._has_just_read, self.n_last_read = False, 0
        ready = [slot for slot in range(len(self.contexts)) if slot not in late]
        return ready, self._logits(self._write(ready, late))

    def _write(self, ready: Sequence[int], waiting: Sequence[int]) -> Tensor:
        """The hidden state of the newest token of each row in `ready`, (B, D).

        Rows that still read and lie between them pass along, because leaving them out would copy the whole cache of
        the others; what is stored of their pass is forgotten.
        """
        assert self.cache is not None
        n_rows = ready[-1] + 1
        if self._part is None or self._part.n_rows != n_rows:
            self._part = self.cache.part(range(n_rows))
        between = [slot for slot in waiting if slot < n_rows]
        lengths = [self.cache.lengths[slot] for slot in between]
        x_BD = self.model.trunk(self._last_N[:n_rows, None], cache=self._part)[:, 0]
        if between:
            self.cache.part(between).truncate(lengths)
        return x_BD[self.index(ready)]

    def _read(self, late: list[int], lengths: Sequence[int], n_unread: Sequence[int]) -> tuple[list[int], Tensor]:
        """Reads the next tokens of the rows that came first, as many as fit in one pass."""
        slots, n_read = self._chosen(late, lengths, n_unread)
        chunks = [
            self.contexts[slot][lengths[slot] : lengths[slot] + n] for slot, n in zip(slots, n_read, strict=True)
        ]
        self.n_last_read = len(slots) * max(n_read)
        padded = [[*ids, *([0] * (max(n_read) - len(ids)))] for ids in chunks]
        part = self.cache.part(slots) if self.cache is not None else None
        x_BTD = self.model.trunk(torch.tensor(padded, device=self.device), cache=part)
        if part is not None:
            part.truncate([lengths[slot] + n for slot, n in zip(slots, n_read, strict=True)])
        done = [place for place, slot in enumerate(slots) if n_read[place] == n_unread[slot]]
        if not done:
            return [], x_BTD.new_zeros(0, self.model.cfg.vocab_size)
        last = [n_read[place] - 1 for place in done]
        x_BD = x_BTD[torch.tensor(done, device=self.device), torch.tensor(last, device=self.device)]
        return [slots[place] for place in done], self._logits(x_BD)

    def _chosen(
        self, late: list[int], lengths: Sequence[int], n_unread: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Which of the rows that have to read do so in the next pass, in the order of their slots, and how much."""
        most = self.most_read
        if self.cache is None or (most is None and not any(lengths[slot] for slot in late)):
            return late, [n_unread[slot] for slot in late]
        chosen: dict[int, int] = {}

        def turn(slot: int) -> int:
            """A prompt of many passes lets as many that came later go first, so that short ones need not wait."""
            return self._arrival[slot] + (0 if most is None else n_unread[slot] // most)

        for slot in sorted(late, key=turn):
            n_read = n_unread[slot] if most is None else min(n_unread[slot], most)
            widest, seen = max(n_read, *chosen.values(), 0), max(lengths[one] for one in (slot, *chosen))
            is_long = most is not None and widest * (len(chosen) + 1) > most
            if chosen and (is_long or seen + widest > self.cache.max_len):
                continue
            chosen[slot] = n_read
        slots = sorted(chosen)
        return slots, [chosen[slot] for slot in slots]

    def _logits(self, x_BD: Tensor) -> Tensor:
        return self.model.lm_head(x_BD).float()
