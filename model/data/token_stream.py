"""The documents of all shards, one after another, as one stream of tokens.

In: token shards in the order of their names. Out: any stretch of the stream, where each document begins, and which
documents a stretch belongs to. Nothing is copied before it is asked for: the shards stay memory-mapped; 8 bytes a
document are held for the borders. Imports no torch: looking documents up does without it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from model.data.token_shards import TokenShard


class TokenStream:
    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self.shards = list(shards)
        self.starts = [0]  # of the shards in the stream, and its end
        for shard in self.shards:
            self.starts.append(self.starts[-1] + len(shard.tokens))

    @property
    def n_tokens(self) -> int:
        return self.starts[-1]

    @cached_property
    def borders(self) -> np.ndarray:
        """Where each document begins, and where the last one ends; int64, documents + 1."""
        parts = [shard.offsets[:-1] + start for shard, start in zip(self.shards, self.starts, strict=False)]
        return np.concatenate([*parts, np.array(self.starts[-1:], np.int64)])

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens start to end (exclusive), uint16 or uint32; a view where they lie in one shard."""
        number = bisect_right(self.starts, start) - 1
        if end <= self.starts[number + 1]:
            return self.shards[number].tokens[start - self.starts[number] : end - self.starts[number]]
        parts = []
        while start < end:
            stop = min(end, self.starts[number + 1])
            parts.append(self.shards[number].tokens[start - self.starts[number] : stop - self.starts[number]])
            start, number = stop, number + 1
        return np.concatenate(parts)

    def shard_of(self, position: int) -> TokenShard:
        """The shard that the token at `position` lies in."""
        return self.shards[bisect_right(self.starts, position) - 1]

    def documents_at(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of the documents that the tokens at `positions` belong to, counted through all shards; int64."""
        return np.searchsorted(self.borders, positions, side="right") - 1

    def document_ids(self, numbers: np.ndarray) -> list[str]:
        """Ids of the documents with these numbers."""
        ends = np.cumsum([len(shard.document_ids) for shard in self.shards])
        shards = np.searchsorted(ends, numbers, side="right")
        rows = numbers - np.concatenate([[0], ends])[shards]
        return [self.shards[i].document_ids[j].as_py() for i, j in zip(shards.tolist(), rows.tolist(), strict=True)]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of each pair, `length` of them, one after another; int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)
