"""Rows of a source on their way from the workers to its shards: grouped by shard, then sorted and written.

In: tables of SPOOLED, in any order. Out: page shards and shards of dropped rows. A source may be larger than memory:
what exceeds SPOOL_BYTES is kept in one temporary file, grouped by shard, and only one shard at a time is read again.
All of it is done on columns, so that a million short rows cost no more per row than a few.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.records import PAGE, preview_of
from pipeline.store.shards import replacing, text_digest

SPOOL_BYTES = 64_000_000  # rows kept in memory before they are written to the temporary file
ROW_BYTES = 300  # memory per row besides its content
ROW_GROUP_BYTES = 16_000_000  # so that a reader need not load a whole shard
SPOOL_FILE = ".spool.part"
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")
REPEATED_PAGE = "repeated_page"
SPOOLED = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("url", pa.large_string(), nullable=False),
        pa.field("media_type", pa.string()),
        pa.field("title", pa.large_string()),
        pa.field("content", pa.large_binary()),  # of a page
        pa.field("context", pa.string()),  # of a page
        pa.field("reason", pa.string()),  # None for a page
        pa.field("score", pa.float64()),
        pa.field("preview", pa.large_string()),
    ]
)


class Spool:
    """A context in which rows are added, and then read shard by shard."""

    def __init__(self, directory: Path):
        self.path = directory / SPOOL_FILE
        self.held: list[pa.Table] = []
        self.held_bytes = 0
        self.places: dict[int, list[tuple[int, int]]] = {}  # shard -> begin and length of its pieces in the file
        self.stack = contextlib.ExitStack()
        self.file: BinaryIO | None = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()
        self.path.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        self.held.append(table)
        self.held_bytes += table.nbytes + ROW_BYTES * table.num_rows
        if self.held_bytes > SPOOL_BYTES:
            self._flush()

    def shards(self) -> Iterator[tuple[int, pa.Table]]:
        """Every shard that has rows, in order."""
        held = dict(self._grouped())
        for shard in sorted({*held, *self.places}):
            pieces = [self._read(*place) for place in self.places.get(shard, ())]
            yield shard, pa.concat_tables([*pieces, *([held[shard]] if shard in held else [])]).combine_chunks()

    def _flush(self) -> None:
        if self.file is None:
            self.file = self.stack.enter_context(self.path.open("w+b"))
        for shard, table in self._grouped():
            piece = ipc_bytes(table, COMPRESSED)
            self.places.setdefault(shard, []).append((self.file.seek(0, 2), len(piece)))
            self.file.write(piece)
        self.held, self.held_bytes = [], 0

    def _read(self, begin: int, length: int) -> pa.Table:
        assert self.file is not None
        self.file.seek(begin)
        return pa.ipc.open_stream(self.file.read(length)).read_all()

    def _grouped(self) -> Iterator[tuple[int, pa.Table]]:
        if not self.held:
            return
        table = pa.concat_tables(self.held).combine_chunks()
        shards = table["shard"].to_numpy()
        order = np.argsort(shards, kind="stable")
        table, shards = table.take(pa.array(order)), shards[order]
        begins = np.flatnonzero(np.diff(shards, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(shards)], strict=True):
            yield int(shards[begin]), table.slice(begin, end - begin)


def ipc_bytes(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def page_order(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Places of the pages among `rows`, sorted by address, and of those that are the same as the one before."""
    places = np.flatnonzero(rows["reason"].is_null().to_numpy())
    keys = rows.select(["url", "id"]).take(pa.array(places)).append_column("place", pa.array(places))
    keys = keys.sort_by([("url", "ascending"), ("id", "ascending")])
    order, ids = keys["place"].to_numpy(), keys["id"].combine_chunks()
    is_again = np.zeros(len(order), bool)
    is_again[1:] = pc.call_function("equal", [ids[1:], ids[:-1]]).to_numpy(zero_copy_only=False)
    return order[~is_again], order[is_again]


def write_pages(path: Path, rows: pa.Table, order: np.ndarray, constant: Mapping[str, Any]) -> None:
    """Writes pages in row groups, each of which ends with the row that takes it above ROW_GROUP_BYTES."""
    sizes = np.cumsum(pc.call_function("binary_length", [rows["content"]]).fill_null(0).to_numpy()[order])
    with replacing(path) as part, pq.ParquetWriter(part, PAGE, compression="zstd", compression_level=3) as writer:
        begin = 0
        while begin < len(order):
            before = int(sizes[begin - 1]) if begin else 0
            end = int(np.searchsorted(sizes, before + ROW_GROUP_BYTES, side="right")) + 1
            writer.write_table(_with(rows.take(pa.array(order[begin:end])), constant, PAGE))
            begin = end


def other_rows(rows: pa.Table, repeated: np.ndarray) -> pa.Table:
    """The rows that are no pages, and the pages that are repeated, as dropped rows without content."""
    refused = rows.filter(rows["reason"].is_valid())
    again = [_repeated(row) for row in rows.take(pa.array(repeated)).to_pylist()]
    return pa.concat_tables([refused, pa.Table.from_pylist(again, SPOOLED)])


def _repeated(row: Mapping[str, Any]) -> dict[str, Any]:
    head = row["content"][:1000]
    preview = preview_of(head.decode("utf-8", "replace"))
    return {**row, "id": text_digest(row["url"], head), "content": None, "reason": REPEATED_PAGE, "preview": preview}


def dropped_table(rows: pa.Table, constant: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    order = [("url", "ascending"), ("reason", "ascending"), ("preview", "ascending")]
    rows = rows.sort_by(order)
    return _with(rows.append_column("page_id", rows["id"]), constant, schema)


def _with(table: pa.Table, constant: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """The columns of `schema` from the table, or the same value in all rows."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.repeat(pa.scalar(constant.get(field.name), field.type), table.num_rows)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
