"""A part of the documents of token shards: some of each source, the beginning of each, or a few as samples.

In: token shards. Out: token shards in memory that hold less, or documents. What is chosen depends on the documents
alone.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from model.data.token_shards import TokenShard
from model.data.token_stream import ranges
from model.data.tokenizer import Tokenizer


def few_documents(shards: Sequence[TokenShard], most: int) -> list[TokenShard]:
    """At most `most` documents of each source, those with the lowest hash of their id; in the order of the shards."""
    found = [
        (hashlib.sha256(one.encode()).hexdigest(), source, number, row)
        for number, shard in enumerate(shards)
        for row, (one, source) in enumerate(zip(shard.document_ids.to_pylist(), _sources(shard), strict=True))
    ]
    n_taken: Counter[str] = Counter()
    rows: list[list[int]] = [[] for _ in shards]
    for _, source, number, row in sorted(found):
        if n_taken[source] < most:
            n_taken[source] += 1
            rows[number].append(row)
    return [documents_of(shard, np.array(sorted(own), np.int64)) for shard, own in zip(shards, rows, strict=True)]


def _sources(shard: TokenShard) -> list[str]:
    return [""] * len(shard.document_ids) if shard.sources is None else shard.sources.to_pylist()


def documents_of(shard: TokenShard, rows: np.ndarray) -> TokenShard:
    """The documents `rows` of a shard."""
    return _cut(shard, rows, np.diff(shard.offsets)[rows], shard.n_bytes[rows])


def spread_documents(shards: Sequence[TokenShard], n: int, least: int) -> list[tuple[str, np.ndarray]]:
    """Ids, and tokens without the first, of up to `n` documents of at least `least` tokens, spread evenly."""
    places = [(shard, row) for shard in shards for row in np.flatnonzero(np.diff(shard.offsets) >= least)]
    chosen = [places[i * len(places) // n] for i in range(min(n, len(places)))]
    return [
        (shard.document_ids[int(row)].as_py(), shard.tokens[shard.offsets[row] + 1 : shard.offsets[row + 1]])
        for shard, row in chosen
    ]


def beginnings(shard: TokenShard, n_tokens: int, tokenizer: Tokenizer) -> TokenShard:
    """At most the first `n_tokens` tokens of each document, with the bytes of the text that they stand for."""
    lengths, n_bytes = np.diff(shard.offsets), shard.n_bytes.copy()
    for row in np.flatnonzero(lengths > n_tokens):
        ids = shard.tokens[shard.offsets[row] + 1 : shard.offsets[row + 1]].tolist()
        # in proportion, which is exact where decoding gives back the text
        n_bytes[row] = round(n_bytes[row] * tokenizer.n_bytes(ids[: n_tokens - 1]) / max(1, tokenizer.n_bytes(ids)))
    return _cut(shard, np.arange(len(lengths)), np.minimum(lengths, n_tokens), n_bytes)


def _cut(shard: TokenShard, rows: np.ndarray, lengths: np.ndarray, n_bytes: np.ndarray) -> TokenShard:
    """The first `lengths` tokens of each of the documents `rows`."""
    tokens = ranges(shard.offsets[rows], lengths)
    return dataclasses.replace(
        shard,
        document_ids=shard.document_ids.take(pa.array(rows)),
        n_bytes=n_bytes,
        tokens=shard.tokens[tokens],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        weights=None if shard.weights is None else shard.weights[tokens],
        sources=None if shard.sources is None else shard.sources.take(pa.array(rows)),
    )
