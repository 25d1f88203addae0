"""The documents of all shards, one after another, as one stream of tokens.

In: token shards in the order of their names. Out: the tokens and loss weights of any spans of the stream, the borders
of the documents, and the document of any token. The shards stay memory-mapped and only what is asked for is copied;
the borders take 8 bytes per document. Imports no torch, so that documents are looked up without it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from model.data.token_shards import TokenShard


class TokenStream:
    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self.shards = list(shards)
        self.starts = [0]  # of each shard in the stream, and the end of the stream
        for shard in self.shards:
            self.starts.append(self.starts[-1] + len(shard.tokens))

    @property
    def n_tokens(self) -> int:
        return self.starts[-1]

    @cached_property
    def borders(self) -> np.ndarray:
        """First token of each document, and the end of the last one; int64, documents + 1."""
        parts = [shard.offsets[:-1] + start for shard, start in zip(self.shards, self.starts, strict=False)]
        return np.concatenate([*parts, np.array(self.starts[-1:], np.int64)])

    @property
    def n_bytes(self) -> int:
        """Bytes of the text of its documents."""
        return sum(int(np.sum(shard.n_bytes)) for shard in self.shards)

    @property
    def has_weights(self) -> bool:
        return any(shard.weights is not None for shard in self.shards)

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens of all spans, `lengths` from `starts` on, span after span; uint16 or uint32."""
        return self._gather([shard.tokens for shard in self.shards], starts, lengths)

    def gather_weights(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The loss weights of all spans as float16; 1 in a shard without weights."""
        one = np.ones(1, np.float16)
        weights = [np.broadcast_to(one, len(s.tokens)) if s.weights is None else s.weights for s in self.shards]
        return self._gather(weights, starts, lengths)

    def _gather(self, arrays: Sequence[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Concatenates views: faster than an index per token, except for spans of a few tokens."""
        views = [np.zeros(0, arrays[0].dtype)]
        numbers = np.searchsorted(self.starts, starts, side="right") - 1
        columns = (numbers, starts, starts + lengths)
        for number, start, end in zip(*(column.tolist() for column in columns), strict=True):
            while start < end:  # a span may cross shards
                stop, offset = min(end, self.starts[number + 1]), self.starts[number]
                views.append(arrays[number][start - offset : stop - offset])
                start, number = stop, number + 1
        return np.concatenate(views)

    def shard_of(self, position: int) -> TokenShard:
        return self.shards[bisect_right(self.starts, position) - 1]

    def documents_at(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the documents that the tokens at `positions` belong to, counted through all shards; int64."""
        return np.searchsorted(self.borders, positions, side="right") - 1

    def number_of(self, shard: int, row: int) -> int | None:
        """The number of document `row` of a shard; None where the stream does not contain it."""
        return sum(len(one.document_ids) for one in self.shards[:shard]) + row

    def document_ids(self, numbers: np.ndarray) -> list[str]:
        ends = np.cumsum([len(shard.document_ids) for shard in self.shards])
        shards = np.searchsorted(ends, numbers, side="right")
        rows = numbers - np.concatenate([[0], ends])[shards]
        return [self.shards[i].document_ids[j].as_py() for i, j in zip(shards.tolist(), rows.tolist(), strict=True)]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of each pair the `length` numbers from `start` on, pair after pair; int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)
