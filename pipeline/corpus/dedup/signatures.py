"""The signatures that `dedup` uses instead of texts: one row of SIGNATURES per document, cached per shard.

In: filtered document shards. Out: signatures/ below the output, shards of the same names with the same order of rows.
Worker processes compute them as shingles.py describes; a shard with equal content and equal settings costs nothing
the next time.
"""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.corpus.dedup.shingles import Shingler, bands_of, batches_of, sample_of
from pipeline.corpus.dedup.survivors import QUALITY_COLUMNS, quality_of
from pipeline.store.engine import Done, Failed, value_of
from pipeline.store.errors import CorruptShard
from pipeline.store.parts import map_shards
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import write_bytes
from pipeline.store.store import Work

SIGNATURES_FOLDER = "signatures"
SIGNATURES_VERSION = 3  # raise it with any change here, in shingles.py or in quality_of that changes a value
COPIED = ("id", "page_id", "source", "n_words")
BATCH_ROWS = 512  # documents in a worker's memory at a time
BATCH_CHARACTERS = 1_000_000  # fewer documents if they are long

SIGNATURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("n_words", pa.int64(), nullable=False),
        pa.field("n_bytes", pa.int64(), nullable=False),
        pa.field("quality", pa.float64(), nullable=False),  # survivors.py; more is better
        pa.field("n_windows", pa.int64(), nullable=False),  # runs of words
        pa.field("n_shingles", pa.int64(), nullable=False),  # different ones
        pa.field("n_sample", pa.int64(), nullable=False),
        pa.field("content", pa.uint64(), nullable=False),  # of all shingles: texts with the same id may still differ
        pa.field("bands", pa.list_(pa.uint64()), nullable=False),
        pa.field("sample", pa.list_(pa.uint64()), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class SignatureItem:
    path: Path
    settings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShardPositions:
    """Shards one after the other; the index of a row among all rows is its position."""

    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # position of the first row of each
    n_rows: int

    def rows(self, shard: int) -> tuple[int, int]:
        """First position of a shard, and the one after its last."""
        return self.starts[shard], (*self.starts, self.n_rows)[shard + 1]


def positions_of(paths: Iterable[Path]) -> ShardPositions:
    paths = tuple(paths)
    ends = list(accumulate((pq.read_metadata(path).num_rows for path in paths), initial=0))
    return ShardPositions(paths, tuple(ends[:-1]), ends[-1])


def signature_recipe(settings: Mapping[str, int], libraries: Mapping[str, str]) -> str:
    """Canonical text of everything that decides a signature, except its document."""
    return json.dumps(["signatures", SIGNATURES_VERSION, dict(libraries), dict(settings)], sort_keys=True)


def make_signatures(inputs: Sequence[Shards], work: Work, settings: Mapping[str, int], recipe: str) -> None:
    """`settings`: n_words of a shingle, n_bands, n_rows, one_in (of the sample) and seed."""
    map_shards(
        dataclasses.replace(work, directory=work.directory / SIGNATURES_FOLDER, recipe=recipe),
        inputs,
        read=lambda path: [SignatureItem(path, settings)],
        function=signatures_of_shard,
        write=_write_signatures,
        unit="documents",
    )


def signatures_of_shard(item: SignatureItem) -> tuple[int, bytes]:
    """The rows of a shard, and their signatures as a Parquet file. Runs in a worker process."""
    n_rows, sink = 0, io.BytesIO()
    # without dictionaries, because hashes hardly repeat
    with pq.ParquetWriter(sink, SIGNATURES, compression="zstd", compression_level=1, use_dictionary=False) as writer:
        waiting = [SIGNATURES.empty_table()]
        for table in read_batches(item.path, tuple(dict.fromkeys((*COPIED, *QUALITY_COLUMNS, "text")))):
            waiting.append(_signatures(table, item.settings))
            n_rows += table.num_rows
        writer.write_table(pa.concat_tables(waiting))
    return n_rows, sink.getvalue()


def read_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """A few rows at a time. Raises CorruptShard, which names the file, when it is unreadable or lacks a column."""
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise CorruptShard(f"{path}: columns {missing} are missing; delete its folder and rerun")
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error


def _signatures(table: pa.Table, settings: Mapping[str, int]) -> pa.Table:
    parts: list[dict[str, Any]] = [_of_texts(texts, **settings) for texts in text_batches(table["text"])]
    columns = {
        **{name: table[name] for name in COPIED},
        "n_bytes": pc.call_function("binary_length", [table["text"]]).cast(pa.int64()),
        "quality": quality_of(table),
        **{name: pa.chunked_array([part[name] for part in parts]) for name in (parts[0] if parts else ())},
    }
    return pa.table(columns, schema=SIGNATURES) if parts else SIGNATURES.empty_table()


def text_batches(column: pa.ChunkedArray) -> Iterator[list[str]]:
    """The texts of a column in batches that are processed together."""
    return batches_of((text.as_py() for text in column), BATCH_CHARACTERS)


def _of_texts(
    texts: list[str], *, n_words: int, n_bands: int, n_rows: int, one_in: int, seed: int
) -> dict[str, pa.Array]:
    flat, n_shingles, n_windows = Shingler(n_words).sets(texts)
    sample, n_sample = sample_of(flat, n_shingles, one_in)
    bands = bands_of(flat, n_shingles, n_bands=n_bands, n_rows=n_rows, seed=seed)
    ends = np.cumsum(n_shingles).tolist()
    content = [xxhash.xxh3_64_intdigest(flat[a:b].data) for a, b in zip([0, *ends], ends, strict=False)]
    return {
        "n_windows": pa.array(n_windows),
        "n_shingles": pa.array(n_shingles),
        "n_sample": pa.array(n_sample),
        "content": pa.array(content, pa.uint64()),
        "bands": _lists(bands.reshape(-1), np.full(len(texts), n_bands)),
        "sample": _lists(sample, n_sample),
    }


def _lists(flat: np.ndarray, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.uint64()))


def _write_signatures(part: Path, items: list[SignatureItem], answers: list[Done | Failed]) -> Counts:
    n_rows, content = checked(answers[0], items[0].path)
    write_bytes(part / "kept.parquet", content)
    return Counts(rows_in=n_rows, kept=n_rows)


def checked(answer: Done | Failed, path: Path) -> Any:
    """As engine.value_of, but a shard that a worker found damaged raises CorruptShard here too."""
    if isinstance(answer, Failed) and answer.detail.startswith("CorruptShard: "):
        raise CorruptShard(answer.detail.removeprefix("CorruptShard: "))
    return value_of(answer, path, "its documents were compared")
