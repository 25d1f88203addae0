"""Pairs of answers to the rows of a batch: a preferred and a rejected one, each pair in one row.

In: two rendered conversations (model/data/chat.py) that differ in their answers. Out: a row with the beginning that
both have in common, the rest of the chosen one and the rest of the rejected one. The beginning is read once for both:
it is most of a pair where questions are long. The rest of each attends to the beginning and to itself, and its
positions go on from the beginning, so that each conversation is computed as if it stood alone. Because a row is a
whole pair, a batch may be divided by rows: into micro-batches, among threads and processes.

Legend: N pairs, B rows of a batch, T position, P supervised positions of a row, 2 = chosen, rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.data.batch_layout import IGNORE_INDEX, rows_of_rank
from model.data.chat import Rendered
from model.data.conversations import supervised_places
from model.data.examples import padded, padded_right

if TYPE_CHECKING:
    from torch import Tensor

COMMON, CHOSEN, REJECTED = 0, 1, 2  # parts of a row


@dataclass(frozen=True, slots=True)
class Pair:
    """A row; all arrays are int64 (T,)."""

    ids: np.ndarray
    targets: np.ndarray  # the next token of the same conversation where it is supervised, else IGNORE_INDEX
    positions: np.ndarray
    parts: np.ndarray  # COMMON, then CHOSEN, then REJECTED

    @property
    def n_tokens(self) -> tuple[int, int]:
        """Supervised tokens of the chosen and of the rejected answer."""
        is_supervised = self.targets >= 0
        chosen, rejected = (int((is_supervised & (self.parts == part)).sum()) for part in (CHOSEN, REJECTED))
        return chosen, rejected


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """What is learned from. `references` are the log-probabilities of the answers under the reference model."""

    ids: list[str]  # of the examples
    pairs: list[Pair]
    references: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # float64 (N, 2); none = no reference
    n_cut: int = 0  # pairs with a conversation that is longer than the model reads, and of which a part is not read
    left_out: tuple[str, ...] = ()  # ids of the pairs of which no difference, or no answer, is read

    @property
    def packs(self) -> bool:
        return False  # a row is a pair

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; int64 (N,)."""
        return np.array([len(pair.ids) for pair in self.pairs], np.int64)

    def n_rows(self, places: np.ndarray) -> int:
        return len(places)

    def batch(
        self, places: np.ndarray, width: int | None = None, rank: int = 0, n_ranks: int = 1
    ) -> "dict[str, Tensor]":
        """Tensors of the process's share of the pairs at `places`, each in a row of `width` tokens, None = those of
        the longest of all of them.

        ids_BT, targets_BT, positions_BT and parts_BT as in `Pair`; lengths_B; supervised_BP, the positions in a row
        that have a target (-1 = none); and references_B2, float64, where there are some.
        """
        import torch

        width = width or max(len(self.pairs[place].ids) for place in places)
        places = places[rows_of_rank(len(places), rank, n_ranks)]
        pairs = [self.pairs[place] for place in places]
        batch = padded([pair.ids for pair in pairs], width)
        targets_BT = padded_right([pair.targets for pair in pairs], width, IGNORE_INDEX)
        named = {
            "targets_BT": targets_BT,
            "positions_BT": padded_right([pair.positions for pair in pairs], width, 0),
            "parts_BT": padded_right([pair.parts for pair in pairs], width, REJECTED),
            "supervised_BP": supervised_places(targets_BT >= 0),
        }
        if len(self.references):
            named["references_B2"] = self.references[places]
        return batch | {name: torch.from_numpy(values) for name, values in named.items()}


def encoded_pairs(
    ids: Sequence[str],
    prompts: Sequence[Rendered],
    chosen: Sequence[Rendered],
    rejected: Sequence[Rendered],
    *,
    max_tokens: int,
    truncation_side: str = "right",
    shares_beginning: bool = True,
) -> EncodedPairs:
    """The rows of the pairs, with at most `max_tokens` inputs per conversation (see `without_excess`).

    `chosen` and `rejected` are whole conversations, of which only what follows the prompt is supervised. A pair is
    left out, and named, if no difference of its answers is read, or nothing of one of them.
    """
    kept, pairs, left_out, n_cut = [], [], [], 0
    for name, prompt, *both in zip(ids, prompts, chosen, rejected, strict=True):
        n_prompt = len(prompt.ids)
        answers = [Rendered(one.ids, one.is_supervised & (np.arange(len(one.ids)) >= n_prompt)) for one in both]
        read = without_excess(answers[0], answers[1], n_prompt, max_tokens, truncation_side)
        if not all(one.is_supervised[1:].any() for one in read) or np.array_equal(read[0].ids, read[1].ids):
            left_out.append(name)
            continue
        n_cut += any(len(one.ids) - 1 > max_tokens for one in both)
        kept.append(name)
        pairs.append(pair_of(*read, shares_beginning=shares_beginning))
    return EncodedPairs(kept, pairs, n_cut=n_cut, left_out=tuple(left_out))


def pair_of(chosen: Rendered, rejected: Rendered, *, shares_beginning: bool = True) -> Pair:
    """The row of a pair, in which each conversation is without its last token, which is only a target.

    A token that both conversations have in common is read twice where it predicts a supervised one, because it then
    has two targets. `shares_beginning` is False for models that count distances along the row, such as those with
    windows of attention: then each conversation is read whole.
    """
    n_common = _n_common(chosen, rejected) if shares_beginning else 0
    rest = [_targets(one)[n_common:] for one in (chosen, rejected)]
    lengths = [n_common, *map(len, rest)]
    common = np.full(n_common, IGNORE_INDEX, np.int64)
    return Pair(
        ids=np.concatenate([chosen.ids[:n_common], chosen.ids[n_common:-1], rejected.ids[n_common:-1]]),
        targets=np.concatenate([common, *rest]),
        positions=np.concatenate([np.arange(n_common), *(n_common + np.arange(len(one)) for one in rest)]),
        parts=np.repeat([COMMON, CHOSEN, REJECTED], lengths),
    )


def without_excess(
    chosen: Rendered, rejected: Rendered, n_prompt: int, max_tokens: int, side: str
) -> tuple[Rendered, Rendered]:
    """Both conversations with at most `max_tokens` inputs each.

    On the side "left" both lose the same tokens at their beginning, while the prompt, their first `n_prompt` tokens,
    has some; what is still too long loses its end, as everything does on the side "right".
    """
    first = 0
    if side == "left":
        excess = max(len(chosen.ids), len(rejected.ids)) - (max_tokens + 1)
        first = max(0, min(excess, n_prompt - 1))
    kept = slice(first, first + max_tokens + 1)
    return tuple(Rendered(one.ids[kept], one.is_supervised[kept]) for one in (chosen, rejected))  # type: ignore[return-value]


def _n_common(chosen: Rendered, rejected: Rendered) -> int:
    """Inputs at the beginning that are equal and predict nothing that is supervised."""
    most = min(len(chosen.ids), len(rejected.ids)) - 1
    ends = chosen.is_supervised[1 : most + 1] | rejected.is_supervised[1 : most + 1]
    ends |= chosen.ids[:most] != rejected.ids[:most]
    return int(ends.argmax()) if ends.any() else most


def _targets(one: Rendered) -> np.ndarray:
    return np.where(one.is_supervised[1:], one.ids[1:], IGNORE_INDEX)


def n_tokens_of(pairs: Sequence[Pair]) -> np.ndarray:
    """Supervised tokens of the answers, int64 (N, 2)."""
    return np.array([pair.n_tokens for pair in pairs], np.int64).reshape(-1, 2)
