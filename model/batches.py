"""Token shards to global batches: batch k is a pure function of (shards, seed, k).

In: token shards in the order of their names. Out: ids and targets (B, T). The documents of all shards, one after
another, are one stream; window w holds tokens w*T to w*T + T, so that every token but the first is a target in
exactly one window. An epoch passes all windows in an order that depends on (seed, epoch) alone and is computed, not
stored: memory does not grow with the corpus, and any position is reached at once. A batch at the end of an epoch
goes on with the next one. The order can be turned round: `steps_of_tokens` says when a stretch of the stream is
read, without a look at all batches. torch is imported where tensors are made: that look-up does without it.

Legend: B rows of a batch, T position, W window.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.token_shards import TokenShard

if TYPE_CHECKING:
    from torch import Tensor

FEISTEL_ROUNDS = 6


class Batches(Protocol):
    """What training reads: global batch k, and which documents lie in it."""

    def batch(self, k: int) -> "Mapping[str, Tensor]": ...
    def documents_of_batch(self, k: int) -> list[str]: ...


class TokenBatches:
    def __init__(self, shards: Sequence[TokenShard], *, rows: int, seq_len: int, seed: int) -> None:
        """Raises ValueError when the shards do not hold a single window."""
        self.shards = list(shards)
        self.rows, self.seq_len, self.seed = rows, seq_len, seed
        sizes = [len(shard.tokens) for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])  # of shards in the stream
        self.n_tokens = int(self.starts[-1])
        self.n_windows = max(0, self.n_tokens - 1) // seq_len
        if self.n_windows == 0:
            raise ValueError(
                f"{self.n_tokens} tokens in {len(self.shards)} shards are too few for one window of"
                f" seq_len={seq_len} tokens and a target; collect more text or lower seq_len"
            )

    def batch(self, k: int) -> "dict[str, Tensor]":
        """ids_BT and targets_BT, int64."""
        import torch

        starts = self.windows_of_batch(k) * self.seq_len
        rows = np.stack([self.tokens(start, start + self.seq_len + 1) for start in starts.tolist()])
        tokens_BT = torch.from_numpy(rows.astype(np.int64))
        return {"ids_BT": tokens_BT[:, :-1], "targets_BT": tokens_BT[:, 1:]}

    def windows_of_batch(self, k: int) -> np.ndarray:
        """Numbers of the windows in global batch `k`, in the order of its rows."""
        return self.windows_of_batches(k, k + 1)

    def windows_of_batches(self, first: int, last: int) -> np.ndarray:
        """Numbers of the windows in the batches `first` to `last` (exclusive), in the order of their rows."""
        start, end = first * self.rows, last * self.rows
        parts = [np.zeros(0, np.int64)]
        for epoch in range(start // self.n_windows, -(-end // self.n_windows)):
            before = epoch * self.n_windows
            inside = np.arange(max(start - before, 0), min(end - before, self.n_windows))
            parts.append(permuted(inside, self.n_windows, self.seed, epoch))
        return np.concatenate(parts)

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens start to end (exclusive) of the stream."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < end:
            stop = min(end, int(self.starts[first + 1]))
            parts.append(self.shards[first].tokens[start - self.starts[first] : stop - self.starts[first]])
            start, first = stop, first + 1
        return np.concatenate(parts)

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the documents that have a token in global batch `k`, once each, in the order of its rows."""
        ids: dict[str, None] = {}
        for start in (self.windows_of_batch(k) * self.seq_len).tolist():
            ids |= dict.fromkeys(self.documents(start, start + self.seq_len + 1))
        return list(ids)

    def documents(self, start: int, end: int) -> list[str]:
        """Ids of the documents that tokens start to end (exclusive) of the stream belong to."""
        ids = []
        for shard, first in zip(self.shards, self.starts.tolist(), strict=False):
            a, b = max(0, start - first), min(len(shard.tokens), end - first)
            if a < b:
                i = int(np.searchsorted(shard.offsets, a, side="right")) - 1
                j = int(np.searchsorted(shard.offsets, b, side="left"))
                names, lengths = shard.document_ids.slice(i, j - i).to_pylist(), np.diff(shard.offsets[i : j + 1])
                ids += [name for name, length in zip(names, lengths, strict=True) if length]
        return ids

    def steps_of_tokens(self, start: int, end: int, n_steps: int) -> np.ndarray:
        """Steps (int64, sorted) from 1 to `n_steps` whose batch holds one of the tokens start to end (exclusive).

        Step s reads batch s - 1. Empty where none of those tokens is reached.
        """
        if start >= end:
            return np.zeros(0, np.int64)
        first = max(0, -(-start // self.seq_len) - 1)  # window w holds tokens w*T to w*T + T, the last as target only
        windows = np.arange(first, min(self.n_windows, (end - 1) // self.seq_len + 1))
        n_positions = n_steps * self.rows
        parts = [np.zeros(0, np.int64)]
        for epoch in range(-(-n_positions // self.n_windows)):
            positions = epoch * self.n_windows + places_in_permutation(windows, self.n_windows, self.seed, epoch)
            parts.append(positions[positions < n_positions] // self.rows + 1)
        return np.unique(np.concatenate(parts))


def permuted(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0..n-1, chosen by (seed, epoch), sends `indices`.

    A Feistel network permutes the next power of four; what falls outside n is sent through it again until it
    falls inside (cycle walking, Black and Rogaway 2002), which keeps it a permutation.
    """
    half, keys = _network(n, seed, epoch)
    values = np.array(indices, dtype=np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= n
    return values.astype(np.int64)


def places_in_permutation(values: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """The indices that `permuted` sends to `values`: the walk backwards, through the same network."""
    half, keys = _network(n, seed, epoch)
    indices = np.array(values, dtype=np.uint64)
    outside = np.ones(len(indices), dtype=bool)
    while outside.any():
        indices[outside] = _feistel_backwards(indices[outside], half, keys)
        outside = indices >= n
    return indices.astype(np.int64)


def _network(n: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """Bits of half a value, and the keys of the rounds."""
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return half, np.frombuffer(digest, dtype="<u8")


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & mask)
    return (left << np.uint64(half)) | right


def _feistel_backwards(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys[::-1]:
        left, right = right ^ (_mixed(left, key) & mask), left
    return (left << np.uint64(half)) | right


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    mixed = values + key  # wraps, as do the products: splitmix64's finaliser
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
