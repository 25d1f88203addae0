"""Conversations to the rows of a batch: several in one row, each of which sees itself alone.

In: rendered conversations (model/data/chat.py). Out: ids_BT with targets for the supervised tokens, the number of the
conversation that a token belongs to, and its position in it. Steps: drop the last token of each conversation, which
is a target only; put the longest first, each into the row with the least room that suffices (packing.py); lay them
out side by side. Nothing of a conversation changes by what lies beside it: its tokens attend to each other alone and
its positions begin at 0, so that the loss of the rows is the sum of the losses of the conversations.

Legend: N conversations, B rows of a batch, T position, P supervised positions of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model.data.batch_layout import IGNORE_INDEX
from model.data.chat import Rendered
from model.data.packing import best_fit

if TYPE_CHECKING:
    from torch import Tensor

NO_CONVERSATION = -1  # number of a cell without a token


@dataclass(frozen=True, slots=True)
class EncodedConversations:
    """What is learned from: conversations of at least two tokens, with a supervised one after the first."""

    ids: list[str]  # of the examples
    rendered: list[Rendered]
    n_cut: int = 0  # conversations that were longer than the model reads, and of which a part is not read

    @property
    def tokens(self) -> list[np.ndarray]:
        """The inputs of each conversation."""
        return [one.ids[:-1] for one in self.rendered]

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each conversation; int64 (N,)."""
        return np.array([len(one.ids) - 1 for one in self.rendered], np.int64)

    def batch(self, places: np.ndarray, width: int | None = None) -> "dict[str, Tensor]":
        """The conversations at `places`, packed in rows of `width` tokens, None = the longest of them."""
        return packed_rows([self.rendered[place] for place in places], width)


def packed_rows(conversations: Sequence[Rendered], width: int | None = None) -> "dict[str, Tensor]":
    """Tensors of a batch, all int64.

    ids_BT; targets_BT, the next token where it is supervised; documents_BT, the number of the token's conversation in
    `conversations` (-1 = no token); positions_BT from 0 in each conversation; and supervised_BP, the positions in a
    row that have a target (-1 = none).
    """
    import torch

    lengths = np.array([len(one.ids) - 1 for one in conversations], np.int64)
    width = max(int(lengths.max()), width or 0)
    rows = best_fit(lengths, width)
    shape = (int(rows.max()) + 1, width)
    ids_BT, positions_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets_BT, documents_BT = np.full(shape, IGNORE_INDEX, np.int64), np.full(shape, NO_CONVERSATION, np.int64)
    used = np.zeros(shape[0], np.int64)  # cells of each row
    for number, (one, row, length) in enumerate(zip(conversations, rows, lengths, strict=True)):
        cells = slice(used[row], used[row] + length)
        ids_BT[row, cells] = one.ids[:-1]
        targets_BT[row, cells] = np.where(one.is_supervised[1:], one.ids[1:], IGNORE_INDEX)
        documents_BT[row, cells] = number
        positions_BT[row, cells] = np.arange(length)
        used[row] += length
    named = {
        "ids_BT": ids_BT,
        "targets_BT": targets_BT,
        "documents_BT": documents_BT,
        "positions_BT": positions_BT,
        "supervised_BP": supervised_places(targets_BT >= 0),
    }
    return {name: torch.from_numpy(values) for name, values in named.items()}


def supervised_places(is_there_BT: np.ndarray) -> np.ndarray:
    """The positions of the cells that are True in each row, from left to right, padded with -1."""
    counts_B = is_there_BT.sum(axis=1)
    order_BT = np.argsort(~is_there_BT, axis=1, kind="stable")[:, : max(1, int(counts_B.max()))]
    return np.where(np.arange(order_BT.shape[1]) < counts_B[:, None], order_BT, -1)
