"""Rows that are written together, one pass at a time: they join and leave between two passes.

In: rows (a prompt with its settings). Out: per pass what it drew for each row that it served. Steps of a pass: logits
(slots.py); what constraints forbid (constraints.py); draw (sampling.py); tell each row its token. `generate` runs a
batch until all rows are over; the engine of a server lets rows join at any time.

What goes wrong in one row, logits that are not finite or a constraint that fails, is that row's own: it is returned
with the row, and the others go on. The text of a row does not depend on the others (generate.py).

Legend: B rows, V vocab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.generation.constraints import Writing, permitted
from model.generation.logprobs import TokenLogprob, token_logprobs
from model.generation.sample_config import SampleConfig
from model.generation.sampling import RowSampler
from model.generation.slots import Slots
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache

Finish = Literal["stop", "length"]  # a stop id or the end of what a constraint allows; as many tokens as were asked


@dataclass(eq=False, slots=True)
class Row:
    index: int  # in the list of prompts
    cfg: SampleConfig
    number: int  # what it draws with beside the seed
    prompt: Sequence[int]
    writing: Writing | None = None  # what it wrote under its constraint
    n_logprobs: int | None = None  # of each token; None = none, k = its own and those of the k likeliest
    n_new: int = 0
    slot: int = -1

    @property
    def n_read(self) -> int:
        """Tokens that are read of it at most; the last new token never is."""
        return len(self.prompt) + self.cfg.max_new_tokens - 1

    @property
    def may_write(self) -> tuple[Writing | None, int, tuple[int, ...]]:
        return self.writing, self.cfg.max_new_tokens - self.n_new, self.cfg.stop_ids

    def take(self, token: int) -> Finish | None:
        """Takes a new token; whether, and why, it was the last one."""
        if token in self.cfg.stop_ids:
            return "stop"
        self.n_new += 1
        if self.writing is not None:
            self.writing.push(token)
            if not self.writing.may_continue:
                return "stop"
        return "length" if self.n_new >= self.cfg.max_new_tokens else None


@dataclass(slots=True)
class Drawn:
    """What a pass did for a row."""

    row: Row
    token: int | None = None  # None: the row wrote nothing, because it drew a stop id or failed
    finish: Finish | None = None
    logprob: TokenLogprob | None = None
    error: Exception | None = None  # the row can't go on


class Batch:
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
        """Arguments as those of Slots."""
        self.slots = Slots(model, n_slots, max_len, most_read=most_read, use_cache=use_cache, cache=cache)
        self.rows: list[Row] = []  # by slot
        self._sampler = RowSampler(n_slots, model.cfg.vocab_size, self.slots.device)

    def join(
        self,
        row: Row,
        *,
        instead_of: Row | None = None,
        context: Sequence[int] | None = None,
        n_read: int = 0,
    ) -> None:
        """Puts `row` into the slot of a row that is over, or into the next one.

        `context`: what it continues, None = its prompt; of a row that was taken out, also what it has written. The
        cache of the slot has the first `n_read` tokens of that already.
        """
        context = row.prompt if context is None else context
        self._place(row, len(self.rows) if instead_of is None else instead_of.slot, context)
        self.slots.join(row.slot, context, n_read)

    def join_copy(self, row: Row, source: Row) -> None:
        """Puts `row` into the next slot; its prompt is that of `source`, which has read it already."""
        self._place(row, len(self.rows), row.prompt)
        self.slots.join_copy(row.slot, source.slot, row.prompt)

    def _place(self, row: Row, slot: int, context: Sequence[int]) -> None:
        row.slot = slot
        self.rows[slot : slot + 1] = [row]
        self._sampler.join(slot, row.cfg, row.number, context, row.n_new)

    def leave(self, row: Row) -> None:
        """Drops a row, whether it is over or not; the row of the last slot takes its place."""
        slot = row.slot
        self.slots.leave(slot)
        self._sampler.leave(slot)
        self.rows[slot] = self.rows[-1]
        self.rows[slot].slot = slot
        self.rows.pop()
        row.slot = -1

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """One pass over the model. Rows that are over stay until the caller drops or replaces them, as it must do
        before the next step. Empty if the pass only read, and did not reach the end of a prompt."""
        slots, logits_BV = self.slots.next_logits()
        if not slots:
            return []
        rows = [self.rows[slot] for slot in slots]
        allowed_BV, errors = self._allowed(logits_BV, rows)
        ids_B = self._sampler.draw(allowed_BV, slots)
        ids, is_finite = _on_host(ids_B, logits_BV)
        logprobs = token_logprobs(logits_BV, ids, [row.n_logprobs for row in rows])
        found = []
        for place, (row, token) in enumerate(zip(rows, ids, strict=True)):
            error = errors.get(place)
            if not is_finite[place]:
                error = _not_finite(row)
                self.slots.wipe(row.slot)
            found.append(Drawn(row, error=error) if error else _taken(row, token, logprobs[place]))
        self._append(slots, ids, ids_B, found)
        return found

    def _append(self, slots: list[int], ids: list[int], ids_B: Tensor, found: Sequence[Drawn]) -> None:
        """The new tokens become part of the contexts of rows that go on."""
        going = [place for place, one in enumerate(found) if one.finish is None and one.error is None]
        if not going:
            return
        if len(going) < len(slots):
            slots, ids = [slots[place] for place in going], [ids[place] for place in going]
            ids_B = ids_B[torch.tensor(going, dtype=torch.int64, device=ids_B.device)]
        self.slots.append(slots, ids, ids_B)

    def _allowed(self, logits_BV: Tensor, rows: Sequence[Row]) -> tuple[Tensor, dict[int, Exception]]:
        """The logits without what constraints forbid, and the errors of constraints by place."""
        try:
            return permitted(logits_BV, [row.may_write for row in rows]), {}
        except Exception:  # find whose it is; it is that row's end
            errors: dict[int, Exception] = {}
            parts = []
            for place, row in enumerate(rows):
                own_1V = logits_BV[place : place + 1]
                try:
                    parts.append(permitted(own_1V, [row.may_write]))
                except Exception as error:
                    errors[place] = error
                    parts.append(own_1V)
            return torch.cat(parts), errors


def _taken(row: Row, token: int, logprob: TokenLogprob | None) -> Drawn:
    n_before = row.n_new
    try:
        finish = row.take(token)
    except Exception as error:
        return Drawn(row, error=error)
    return Drawn(row, token, finish, logprob) if row.n_new > n_before else Drawn(row, finish=finish)


def _on_host(ids_B: Tensor, logits_BV: Tensor) -> tuple[list[int], list[bool]]:
    """The drawn ids, and whether the logits of each row are finite, by the only transfer of a step."""
    # A NaN or an infinity stays one in the sum. Float64 holds every id exactly.
    ids, sums = torch.stack([ids_B.double(), logits_BV.sum(dim=-1, dtype=torch.float64)]).tolist()
    return [int(token) for token in ids], [math.isfinite(total) for total in sums]


def _not_finite(row: Row) -> ValueError:
    return ValueError(
        f"the model's logits are not finite at new token {row.n_new + 1} of prompt {row.index}: its training"
        " diverged, or its weights are damaged; take an earlier checkpoint"
    )
