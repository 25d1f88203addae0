"""Lists the outputs that the data passed through, in stage order, and the position of a page in each of them.

In: handles, and the store with their folders. Out: a TraceChain: the finished folders that they were built from,
those that were removed since, and the pages that an id, a URL or the end of one identifies, all found by index
(trace_index.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.collect.members import address_of
from pipeline.provenance.trace_index import ADDRESSES, KEYS, Index, Say, drop_damaged, open_index
from pipeline.store.chain import document_stages, traced_stages
from pipeline.store.errors import CorruptShard
from pipeline.store.lineage import Folder, Record, inputs_of, lineage
from pipeline.store.records import Handle
from pipeline.store.shards import DROPPED_FOLDER

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second; Parquet has no whole seconds
BATCH_ROWS = 1024  # rows that are decoded at once to reach one


@dataclass(frozen=True, slots=True)
class TracedRow:
    """A row of an output."""

    folder: Folder
    where: str  # file below the folder
    row: int
    page_id: str
    document_id: str | None  # None before there is a text

    @property
    def is_kept(self) -> bool:
        return not self.where.startswith(f"{DROPPED_FOLDER}/")

    @property
    def shard(self) -> str:
        return Path(self.where).name

    @property
    def path(self) -> Path:
        return self.folder.directory / self.where


@dataclass(slots=True)
class TraceChain:
    """Folders in the order of the stages; `gone` are those that a record names but that were removed."""

    store: Path
    folders: dict[Folder, Record]
    gone: list[Folder]
    say: Say
    opened: dict[tuple[Folder, str], Index] = field(default_factory=dict)

    def index(self, folder: Folder, kind: str = KEYS) -> Index:
        if (folder, kind) not in self.opened:
            self.opened[folder, kind] = open_index(self.store, folder, kind, self.say)
        return self.opened[folder, kind]

    def of(self, *stages: str) -> list[Folder]:
        return [folder for folder in self.folders if folder.stage in stages]

    def documents(self) -> list[Folder]:
        return self.of(*document_stages())

    def with_addresses(self) -> list[Folder]:
        """The first outputs with every page: the collected pages, or later outputs if these were removed."""
        return [
            folder
            for folder, record in self.folders.items()
            if folder.stage == "collect" or (folder in self.documents() and self.missing_inputs(record))
        ]

    def missing_inputs(self, record: Record) -> list[Folder]:
        inputs, stages = inputs_of(self.store, record), document_stages()
        return [one for one in self.gone if one.stage in stages and one in inputs]

    def inputs(self, folder: Folder) -> list[Folder]:
        given = folder.inputs(self.folders[folder])
        return [one for one in self.folders if one in given]

    def pages(self, query: str, most: int) -> dict[str, str]:
        """Page id -> URL of the pages with that id or URL; if there are none, of those whose URL ends with it.

        The name of a file may be written as it is, or percent-encoded as in its URL. Raises ValueError when there are
        more than `most`.
        """
        ids = {
            self.page_id(folder, row)
            for folder in self.documents()
            for column in ("page_id", "id")
            for row in self.index(folder).rows_of(column, query)
        }
        found = {page_id: self.url_of(page_id) for page_id in ids} or self._pages_by_url(query, most)
        if not found and (encoded := address_of(query)) != query:
            found = self._pages_by_url(encoded, most)
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

    def page_id(self, folder: Folder, row: int) -> str:
        return self.index(folder).value("page_id", row)

    def url_of(self, page_id: str) -> str:
        for folder in self.with_addresses():
            for row in self.index(folder).rows_of("page_id", page_id):
                return self.index(folder, ADDRESSES).value("url", row)
        return ""

    def places(self, page_id: str) -> Iterator[TracedRow]:
        """Places of the page in each output, in the order of the stages. A stage that dropped it comes last."""
        for folder in self.documents():
            index = self.index(folder)
            for row in index.rows_of("page_id", page_id):
                where, number = index.place(row)
                document = index.value("id", row)
                yield TracedRow(folder, where, number, page_id, None if document == page_id else document)

    def mended(self) -> bool:
        """Discard indexes whose bytes have changed since they were written. Returns whether there were any."""
        damaged = [folder for folder in self.folders if drop_damaged(self.store, folder)]
        self.opened.clear()
        return bool(damaged)

    def _pages_by_url(self, query: str, most: int) -> dict[str, str]:
        exact: dict[str, str] = {}
        endings: dict[str, str] = {}
        n_found = 0
        for folder in self.with_addresses():
            addresses = self.index(folder, ADDRESSES)
            rows, n_rows = addresses.rows_ending_in(query, most + 1) if query else ([], 0)
            n_found += n_rows
            for row in rows:
                url = addresses.value("url", row)
                (exact if url == query else endings)[self.page_id(folder, row)] = url
        found = exact or endings
        if len(found) > most:
            first = ", ".join(sorted(found.values())[:3])
            raise ValueError(f"{query!r} is the end of {n_found:,} URLs, such as {first}; give more of it")
        return found


def chain_of(store: Path, handles: Iterable[Handle], say: Say) -> TraceChain:
    """`handles` and everything that they were built from."""
    stages = traced_stages()
    found = {folder: record for folder, record in lineage(handles).items() if folder.stage in stages}
    ordered = sorted(found, key=lambda folder: stages.index(folder.stage))
    return TraceChain(
        store=store,
        folders={folder: record for folder in ordered if (record := found[folder]) is not None},
        gone=[folder for folder in ordered if found[folder] is None],
        say=say,
    )


def _value(column: pa.Array, row: int) -> Any:
    """A value, with times as ISO text; Arrow's own conversion would import pandas first, which takes 0.2 s."""
    if not pa.types.is_timestamp(column.type):
        return column[row].as_py()
    ticks = column.view(pa.int64())[row].as_py()
    return None if ticks is None else datetime.fromtimestamp(ticks / TICKS[column.type.unit], UTC).isoformat()


def read_row(path: Path, row: int, columns: Iterable[str] | None = None) -> dict[str, Any]:
    """One row of a Parquet shard: the `columns` that it has (None = all), with times as text.

    Reads only up to that row.
    """
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            names = there if columns is None else [name for name in columns if name in there]
            if not 0 <= row < file.metadata.num_rows:
                raise CorruptShard(f"{path} has {file.metadata.num_rows} rows, row {row} is expected in it")
            group = 0
            while row >= (n_rows := file.metadata.row_group(group).num_rows):
                row, group = row - n_rows, group + 1
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                if row < batch.num_rows:
                    return {name: _value(batch.column(name), row) for name in names}
                row -= batch.num_rows
    except OSError as error:  # includes Arrow's errors while reading
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error
    raise CorruptShard(f"{path} has fewer rows than its footer states; delete its folder and rerun")
