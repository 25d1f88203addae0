"""Conversations to the rows of a batch: several in one row, each of which sees itself alone.

In: rendered conversations (model/data/chat.py). Out: ids_BT with targets for the supervised tokens, the number of the
conversation that a token belongs to, and its position in it. Steps: cut what is longer than the model reads; drop the
last token of each conversation, which is a target only; put the longest first, each into the row with the least room
that suffices (packing.py); lay them out side by side. No conversation is affected by those that share its row: its
tokens attend to each other alone and its positions begin at 0, so that the loss of the rows is the sum of the losses
of the conversations.

Legend: N conversations, B rows of a batch, T position, P supervised positions of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from model.data.batch_layout import IGNORE_INDEX, rows_of_rank
from model.data.chat import ANSWERS, ChatTemplate, Conversation, Rendered
from model.data.chat_fitting import with_newest
from model.data.packing import best_fit

if TYPE_CHECKING:
    from torch import Tensor

NO_CONVERSATION = -1  # number of a cell without a token
# Tokens up to which conversations share a row on a CPU, whose attention computes every pair of tokens of a row: in
# rows of 256 that is a twentieth of a step of a small model, in rows of 1,024 a quarter.
ROOM_ON_CPU = 256


@dataclass(frozen=True)
class EncodedConversations:
    """What is learned from: conversations of at least two tokens, with a supervised one after the first."""

    ids: list[str]  # of the examples
    rendered: list[Rendered]
    n_cut: int = 0  # conversations that were longer than the model reads, and of which a part is not read
    unsupervised: tuple[str, ...] = ()  # ids of those that were left out, because no supervised token is read
    room: int | None = ROOM_ON_CPU  # tokens up to which conversations share a row; None = the width of the batch

    @property
    def packs(self) -> bool:
        return True

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each conversation; int64 (N,)."""
        return self._lengths

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(one.ids) - 1 for one in self.rendered], np.int64)

    def n_rows(self, places: np.ndarray) -> int:
        return len(rows_of(self.lengths[places], self.room)[1])

    def batch(
        self, places: np.ndarray, width: int | None = None, rank: int = 0, n_ranks: int = 1
    ) -> "dict[str, Tensor]":
        """Process `rank`'s rows of the conversations at `places`, as `packed_rows` lays them out."""
        return packed_rows([self.rendered[place] for place in places], width, self.room, rank, n_ranks)


def encoded_conversations(
    template: ChatTemplate,
    ids: Sequence[str],
    conversations: Sequence[Conversation],
    rendered: Sequence[Rendered],
    max_tokens: int,
    truncation_side: str = "right",
    trained: Sequence[str] | None = ANSWERS,
) -> EncodedConversations:
    """The `rendered` conversations with at most `max_tokens` tokens each. On the side "right" their end is cut; on
    the side "left" their oldest turns are left out, and if that does not suffice, the beginning of the last is cut.

    Those without a supervised token after that are left out, and named.
    """
    kept_ids, kept, unsupervised, n_cut = [], [], [], 0
    part, newest = slice(max_tokens), rendered
    if truncation_side == "left":
        part = slice(-max_tokens, None)
        newest = with_newest(template, conversations, rendered, max_tokens, trained)
    for name, one, rest in zip(ids, rendered, newest, strict=True):
        read = Rendered(rest.ids[part], rest.is_supervised[part])
        if not read.is_supervised[1:].any():
            unsupervised.append(name)
            continue
        n_cut += len(one.ids) > max_tokens
        kept_ids.append(name)
        kept.append(read)
    return EncodedConversations(kept_ids, kept, n_cut, tuple(unsupervised))


def rows_of(lengths: np.ndarray, room: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The row of each conversation, and the used cells of each row; the fullest rows are first.

    Conversations share rows of `room` tokens (None = the longest length); a longer one has a row of its own.
    """
    longest = int(lengths.max())
    room = min(room or longest, longest)
    rows = np.empty(len(lengths), np.int64)
    is_alone = lengths > room
    n_alone = int(is_alone.sum())
    rows[is_alone] = np.arange(n_alone)
    if n_alone < len(lengths):
        rows[~is_alone] = n_alone + best_fit(lengths[~is_alone], room)
    used = np.bincount(rows, lengths).astype(np.int64)
    order = np.argsort(-used, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return number[rows], used[order]


def packed_rows(
    conversations: Sequence[Rendered],
    width: int | None = None,
    room: int | None = None,
    rank: int = 0,
    n_ranks: int = 1,
) -> "dict[str, Tensor]":
    """Tensors of a batch, all int64: process `rank`'s share of the rows of `width` tokens, None = the longest of the
    conversations; `room` as in `rows_of`, None = the width.

    ids_BT; targets_BT, the next token where it is supervised; documents_BT, the number of the token's conversation in
    `conversations` (-1 = no token); positions_BT from 0 in each conversation; lengths_B, the used cells of each row;
    and supervised_BP, the positions in a row that have a target (-1 = none).
    """
    import torch

    lengths = np.array([len(one.ids) - 1 for one in conversations], np.int64)
    width = max(int(lengths.max()), width or 0)
    rows, used = rows_of(lengths, room)
    share = rows_of_rank(len(used), rank, n_ranks)
    shape = (share.stop - share.start, width)
    ids_BT, positions_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets_BT, documents_BT = np.full(shape, IGNORE_INDEX, np.int64), np.full(shape, NO_CONVERSATION, np.int64)
    first_free = np.zeros(shape[0], np.int64)
    for number, (one, row, length) in enumerate(zip(conversations, rows - share.start, lengths, strict=True)):
        if not 0 <= row < shape[0]:
            continue
        cells = slice(first_free[row], first_free[row] + length)
        ids_BT[row, cells] = one.ids[:-1]
        targets_BT[row, cells] = np.where(one.is_supervised[1:], one.ids[1:], IGNORE_INDEX)
        documents_BT[row, cells] = number
        positions_BT[row, cells] = np.arange(length)
        first_free[row] += length
    named = {
        "ids_BT": ids_BT,
        "targets_BT": targets_BT,
        "documents_BT": documents_BT,
        "positions_BT": positions_BT,
        "lengths_B": used[share],
        "supervised_BP": supervised_places(targets_BT >= 0),
    }
    return {name: torch.from_numpy(values) for name, values in named.items()}


def supervised_places(is_there_BT: np.ndarray) -> np.ndarray:
    """The positions of the cells that are True in each row, from left to right, padded with -1."""
    counts_B = is_there_BT.sum(axis=1)
    order_BT = np.argsort(~is_there_BT, axis=1, kind="stable")[:, : int(counts_B.max(initial=1))]
    return np.where(np.arange(order_BT.shape[1]) < counts_B[:, None], order_BT, -1)
