"""The shuffle, out of core: sorts any number of documents by their keys with bounded memory.

In: chunks of documents with their keys, in any order, and their total size in bytes. Out: the same documents in the
order of the keys, one bucket at a time. Steps: each chunk is cut by ranges of keys, and the part of each bucket is
appended to the file of that bucket, so that the disk gets only long writes; then each bucket is read, sorted in
memory and deleted. Documents that fit in memory together are one bucket and are not written.

A key is a hash of 128 bits of (seed, copy, page_id), so the order is a pure function of these: adding a document does
not reorder the others, and the copies of a document are far apart.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from model.data.token_shards import token_schema, write_token_stream
from pipeline.store.errors import CorruptShard
from pipeline.store.shards import replacing

DOCUMENT_BYTES = 320  # of memory per document besides its tokens: id, source, key, views


@dataclass(frozen=True, slots=True)
class Documents:
    """Row i of each column is one document of the stream."""

    keys: np.ndarray  # uint64, documents x 2: high and low half
    ids: pa.Array
    sources: pa.Array
    n_bytes: np.ndarray  # int64
    tokens: list[np.ndarray]  # views

    @property
    def size(self) -> int:
        """Size in memory in bytes."""
        return sum(one.nbytes for one in self.tokens) + DOCUMENT_BYTES * len(self.tokens)

    def take(self, rows: np.ndarray) -> "Documents":
        tokens = [self.tokens[row] for row in rows.tolist()]
        ids, sources = (names.take(pa.array(rows)) for names in (self.ids, self.sources))
        return Documents(self.keys[rows], ids, sources, self.n_bytes[rows], tokens)


def order_keys(page_ids: Sequence[str], copies: Sequence[int], seed: int) -> np.ndarray:
    """Keys as uint64 of shape documents x 2."""
    digests = (
        xxhash.xxh3_128_digest(f"{seed} {copy} {page_id}".encode())
        for page_id, copy in zip(page_ids, copies, strict=True)
    )
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def in_order(documents: Iterable[Documents], n_bytes: int, limit: int, scratch: Path) -> Iterator[Documents]:
    """All documents, one bucket at a time. `n_bytes`: their estimated size; `limit`: bytes of memory for all of them.

    `scratch` is a folder that does not exist yet; it is deleted after the last bucket.
    """
    if n_bytes <= limit:
        if parts := list(documents):
            yield _sorted(concatenated(parts))
        return
    n_buckets = -(-2 * n_bytes // limit)  # each half the limit, because some buckets turn out larger than others
    scratch.mkdir(parents=True)
    n_left = 0
    for chunk in _chunks(documents, limit):
        _scatter(chunk, n_buckets, scratch)
        n_left += len(chunk.tokens)
    for bucket in range(n_buckets):
        path = scratch / str(bucket)
        if path.exists():
            own = _sorted(concatenated(_read_bucket(path)))
            path.unlink()
            n_left -= len(own.tokens)
            yield own
            del own  # before the next one is read
    if n_left:
        raise CorruptShard(f"{scratch}: {n_left} documents of the shuffle are lost; run again")
    scratch.rmdir()


def concatenated(parts: Sequence[Documents]) -> Documents:
    return Documents(
        np.concatenate([part.keys for part in parts]),
        pa.concat_arrays([part.ids for part in parts]),
        pa.concat_arrays([part.sources for part in parts]),
        np.concatenate([part.n_bytes for part in parts]),
        [tokens for part in parts for tokens in part.tokens],
    )


class TokenFiles:
    """Writes <directory>/NNNNN.arrow with at most `most` tokens per file; a longer document has its own file.

    Call `close` at the end; it writes the last file.
    """

    def __init__(self, directory: Path, most: int, vocab_size: int) -> None:
        self.directory, self.most, self.vocab_size = directory, most, vocab_size
        self.totals = {"documents": 0, "tokens": 0, "bytes": 0}
        self._dtype = token_schema(vocab_size).field("tokens").type.value_type.to_pandas_dtype()
        self._tokens = np.zeros(0, self._dtype)  # the next file: grows to its full size and is reused
        self._filled = self._n_files = 0
        self._ids: list[pa.Array] = []
        self._sources: list[pa.Array] = []
        self._n_bytes: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def write(self, documents: Documents) -> None:
        lengths = np.array([len(tokens) for tokens in documents.tokens], np.int64)
        ends = np.cumsum(lengths)
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + self.most - self._filled, side="right"))
            if last == first and not self._ids:
                last = first + 1  # longer than a file
            if last > first:
                self._append(documents, lengths, slice(first, last))
            if last < len(ends):  # the next one does not fit
                self._flush()
            first = last

    def close(self) -> None:
        if self._ids:
            self._flush()

    def _append(self, documents: Documents, lengths: np.ndarray, rows: slice) -> None:
        n_tokens, filled = int(lengths[rows].sum()), self._filled
        if filled + n_tokens > len(self._tokens):
            # untouched pages cost no memory, so the whole file is allocated at once
            larger = np.empty(max(self.most, n_tokens), self._dtype)
            larger[:filled] = self._tokens[:filled]
            self._tokens = larger
        np.concatenate(documents.tokens[rows], out=self._tokens[filled : filled + n_tokens])
        self._filled += n_tokens
        self._ids.append(documents.ids[rows])
        self._sources.append(documents.sources[rows])
        self._n_bytes.append(documents.n_bytes[rows])
        self._lengths.append(lengths[rows])

    def _flush(self) -> None:
        ids, sources = map(pa.concat_arrays, (self._ids, self._sources))
        n_bytes, lengths = map(np.concatenate, (self._n_bytes, self._lengths))
        tokens = self._tokens[: self._filled]
        with replacing(self.directory / f"{self._n_files:05d}.arrow") as file:
            write_token_stream(file, ids, n_bytes, tokens, lengths, self.vocab_size, sources=sources)
        self.totals["documents"] += len(ids)
        self.totals["tokens"] += self._filled
        self.totals["bytes"] += int(n_bytes.sum())
        self._n_files += 1
        self._filled, self._ids, self._sources, self._n_bytes, self._lengths = 0, [], [], [], []


def _chunks(documents: Iterable[Documents], limit: int) -> Iterator[Documents]:
    """The documents in larger chunks, so that there are few appends per bucket."""
    parts: list[Documents] = []
    size = 0
    for part in documents:
        if parts and size + part.size > limit // 2:
            yield concatenated(parts)
            parts, size = [], 0
        parts.append(part)
        size += part.size
    if parts:
        yield concatenated(parts)


def _sorted(documents: Documents) -> Documents:
    return documents.take(np.lexsort((documents.keys[:, 1], documents.keys[:, 0])))


def _scatter(documents: Documents, n_buckets: int, scratch: Path) -> None:
    high = documents.keys[:, 0] >> np.uint64(32)
    buckets = (high * np.uint64(n_buckets)) >> np.uint64(32)  # ranges of equal width
    rows = np.argsort(buckets, kind="stable")
    bounds = np.searchsorted(buckets[rows], np.arange(n_buckets + 1, dtype=np.uint64))
    for bucket in range(n_buckets):
        own = rows[bounds[bucket] : bounds[bucket + 1]]
        if len(own):
            batch = _as_batch(documents.take(own))
            with (scratch / str(bucket)).open("ab") as file:
                if not file.tell():
                    file.write(batch.schema.serialize())
                file.write(batch.serialize())


def _read_bucket(path: Path) -> list[Documents]:
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as batches:
            return [_from_batch(batch) for batch in batches]
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable piece of the shuffle ({error}); run again") from error


def _as_batch(documents: Documents) -> pa.RecordBatch:
    offsets = np.zeros(len(documents.tokens) + 1, np.int64)
    np.cumsum([len(tokens) for tokens in documents.tokens], out=offsets[1:])
    return pa.RecordBatch.from_arrays(
        [
            *(pa.array(np.ascontiguousarray(documents.keys[:, half])) for half in (0, 1)),
            documents.ids,
            documents.sources,
            pa.array(documents.n_bytes),
            pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(documents.tokens))),
        ],
        names=["high", "low", "id", "source", "n_bytes", "tokens"],
    )


def _from_batch(batch: pa.RecordBatch) -> Documents:
    column = batch.column("tokens")
    flat, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    keys = np.stack([batch.column(half).to_numpy() for half in ("high", "low")], axis=1)
    tokens = [flat[start:end] for start, end in itertools.pairwise(offsets.tolist())]
    return Documents(keys, batch.column("id"), batch.column("source"), batch.column("n_bytes").to_numpy(), tokens)
