"""Stage `collect`: the pages of one source, unchanged.

In: a Source. Out: page shards `<source>-00000.parquet` ..., sorted by address, and the refused pages in dropped/ with
their reasons. The hash of the address of a page determines its shard, so that one changed file changes one shard.

Pages on the deny list are dropped as `denied`, whatever else is wrong with them, and without their content.

The identity of the output is its content without `collected_at`: collecting an unchanged source again does not
rebuild anything downstream. The location of the cache is not part of the recipe; the path of a `files` source is,
because the addresses of its pages contain it.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from pipeline.corpus.collect.formats import Found, Refused, read_member
from pipeline.corpus.collect.source import Source
from pipeline.corpus.deny_list import NOTHING, Keys, keys_of_source, read_denials
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import DENIED, DROPPED, PAGE, Counts, Shards, dropped_row
from pipeline.store.settings import Positive, check_values
from pipeline.store.shards import (
    DROPPED_FOLDER,
    replacing,
    shard_name,
    shard_paths,
    text_digest,
    write_rows,
)
from pipeline.store.store import NOT_IDENTITY, Built, Outcome, Stage, Store, Work

MB = 1_000_000
SPOOL_BYTES = 64 * MB  # rows kept in memory before they are written to the temporary files of their shards
ROW_BYTES = 1000  # memory per row besides its longest column
ROW_GROUP_BYTES = 16 * MB  # so that a reader need not load a whole shard
UNNAMED = ("files", "package")  # kinds whose name is not part of a fingerprint; the names of all other kinds are


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    n_shards: Annotated[
        int, Ge(1), Le(99_999), "Number of shards that a source is spread over; each shard must fit into memory."
    ] = 16
    max_page_mb: Annotated[
        Positive, "Pages larger than this many megabytes are not collected; their reason is too_large."
    ] = 256.0

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectRecipe:
    """Everything that determines the pages, and where they are; made by `collect`."""

    source: Source
    config: CollectConfig
    content: str  # digest of the bytes that are read
    cache: Path = field(metadata=NOT_IDENTITY)  # folder of downloaded packages
    snapshot: str = field(metadata=NOT_IDENTITY)  # state of the files when `content` was computed
    denied: str = ""  # digest of the denials for this source; "" = there are none
    denials: Keys = field(default=NOTHING, metadata=NOT_IDENTITY)


def collect(
    store: Store,
    source: Source,
    cache: Path,
    cfg: CollectConfig | None = None,
    directory: Path | None = None,
    *,
    denied: Path | None = None,
) -> Built:
    """The pages of `source`, built now or found finished; packages and file digests are cached below `cache`.

    `directory` as in Store.build; `denied` is the deny list (deny_list.py), which need not exist.
    """
    denials = keys_of_source(read_denials(denied), source.name) if denied else NOTHING
    recipe = CollectRecipe(
        source=source,
        config=cfg or CollectConfig(),
        snapshot=source.snapshot(),
        content=source.digest(cache) if source.kind in UNNAMED else f"{source.kind}:{source.digest(cache)}",
        cache=cache,
        denied=denials.digest(),
        denials=denials,
    )
    return store.build(COLLECT, recipe, directory=directory)


def collect_pages(cfg: CollectRecipe, inputs: tuple[()], work: Work) -> Outcome:
    source = cfg.source
    for leftover in shard_paths(work.directory) + shard_paths(work.directory, DROPPED_FOLDER):
        leftover.unlink()  # left by a run that saw the files in another state
    started = time.monotonic()
    collected_at = datetime.now(UTC).replace(microsecond=0)
    entries = source.entries(cfg.cache, lambda done, total: work.progress(done, total, "bytes"))
    counts = Counts()
    max_bytes = int(cfg.config.max_page_mb * MB)
    with _Spool(work.directory, PAGE, "content") as spool, _Spool(work.directory, DROPPED, "preview") as refused:
        for address, member in entries:
            for item in read_member(member, address, source, max_bytes):
                counts.rows_in += 1
                shard = shard_name(source.name, item.url, cfg.config.n_shards)
                if _is_denied(item, cfg.denials):
                    counts.drop(DENIED)
                    refused.add(shard, _denied_row(item, source))
                elif isinstance(item, Found):
                    spool.add(shard, _page_row(item, source, collected_at))
                else:
                    counts.drop(item.reason)
                    refused.add(shard, _dropped_row(item, source))
                work.progress(counts.rows_in, None, "pages")
        _check_found(source, counts)
        for shard in spool.shards():
            rows, repeated = _sorted_pages(spool.read(shard))
            for row in repeated:
                counts.drop("repeated_page")
                item = Refused(row["url"], "repeated_page", row["content"][:1000])
                refused.add(shard, _dropped_row(item, source))
            counts.kept += len(rows)
            _write_pages(work.directory / shard, rows)
        for shard in refused.shards():
            rows = sorted(refused.read(shard), key=lambda row: (row["url"], row["reason"], row["preview"]))
            write_rows(work.directory / DROPPED_FOLDER / shard, rows, DROPPED)
    if source.snapshot() != cfg.snapshot:
        raise SourceUnavailable(f"files of source `{source.name}` changed while they were read; run again")
    kept = tuple(path.name for path in shard_paths(work.directory))
    seconds = {"seconds_reading": time.monotonic() - started}
    return Outcome(rows=counts.kept, counts=counts, measures=seconds, content=kept, volatile=("collected_at",))


COLLECT = Stage(name="collect", version=4, function=collect_pages, handle=Shards)


def _check_found(source: Source, counts: Counts) -> None:
    """Raises ValueError if no line of any jsonl file has the key: that is a wrong setting, not bad data."""
    if counts.rows_in and counts.dropped.get("no_text_key") == counts.rows_in:
        raise ValueError(
            f"source `{source.name}`: none of its {counts.rows_in} lines has a text under the key"
            f" {source.text_key!r}; set text_key in sources.toml to the key that contains the text"
        )


def _page_row(item: Found, source: Source, collected_at: datetime) -> dict[str, Any]:
    return {
        "id": text_digest(item.url, item.content),
        "source": source.name,
        "url": item.url,
        "media_type": item.media_type,
        "title": item.title,
        "content": item.content,
        "collected_at": collected_at,
        "licence": source.licence,
    }


def _dropped_row(item: Refused, source: Source) -> dict[str, Any]:
    page_id, text = text_digest(item.url, item.preview), item.preview.decode("utf-8", "replace")
    page = {"id": page_id, "page_id": page_id, "source": source.name, "url": item.url, "text": text}
    return dropped_row(page, COLLECT.name, item.reason, item.score)


def _is_denied(item: Found | Refused, denials: Keys) -> bool:
    return item.url in denials.url or (
        bool(denials.page_id) and isinstance(item, Found) and text_digest(item.url, item.content) in denials.page_id
    )


def _denied_row(item: Found | Refused, source: Source) -> dict[str, Any]:
    """A dropped row with the id that the page would have, so that it can be found; none of its content is kept."""
    row = _dropped_row(Refused(item.url, DENIED), source)
    if isinstance(item, Found):
        row["id"] = row["page_id"] = text_digest(item.url, item.content)
    return row


class _Spool:
    """Rows by shard in temporary files, so that a source, or its refused pages, may be larger than memory."""

    def __init__(self, directory: Path, schema: pa.Schema, longest: str):
        self.directory = directory
        self.schema = schema
        self.longest = longest  # the column that determines the size of a row
        self.held: dict[str, list[dict[str, Any]]] = {}
        self.held_bytes = 0
        self.files: dict[str, Any] = {}
        self.stack = ExitStack()

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()
        for shard in self.files:
            self._path(shard).unlink(missing_ok=True)

    def add(self, shard: str, row: dict[str, Any]) -> None:
        self.held.setdefault(shard, []).append(row)
        self.held_bytes += len(row[self.longest]) + ROW_BYTES
        if self.held_bytes > SPOOL_BYTES:
            self._flush()

    def shards(self) -> list[str]:
        return sorted({*self.held, *self.files})

    def read(self, shard: str) -> list[dict[str, Any]]:
        rows = self.held.pop(shard, [])
        if shard not in self.files:
            return rows
        self.files[shard].close()
        with pa.ipc.open_stream(self._path(shard)) as reader:
            return [row for batch in reader for row in batch.to_pylist()] + rows

    def _flush(self) -> None:
        for shard, rows in self.held.items():
            if shard not in self.files:
                self.files[shard] = self.stack.enter_context(pa.ipc.new_stream(self._path(shard), self.schema))
            self.files[shard].write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))
        self.held, self.held_bytes = {}, 0

    def _path(self, shard: str) -> Path:
        return self.directory / f".{shard}.{self.longest}.part"


def _sorted_pages(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pages in the order of their addresses, and those that occur in the source twice."""
    rows.sort(key=lambda row: (row["url"], row["id"]))
    kept, repeated = [], []
    for row in rows:
        (repeated if kept and kept[-1]["id"] == row["id"] else kept).append(row)
    return kept, repeated


def _write_pages(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as part, pq.ParquetWriter(part, PAGE, compression="zstd", compression_level=3) as writer:
        for group in _row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=PAGE))


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Groups of rows, each of which ends with the row that takes it above ROW_GROUP_BYTES."""
    group: list[dict[str, Any]] = []
    n_bytes = 0
    for row in rows:
        group.append(row)
        n_bytes += len(row["content"])
        if n_bytes > ROW_GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group
