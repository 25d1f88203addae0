"""Stage `collect`: the pages of one source, as they are.

In: a Source. Out: page shards `<source>-00000.parquet` ..., sorted by address, and the refused ones in dropped/ with
their reasons. A page lies in the shard that the hash of its address names, so that one changed file changes one
shard.

What the deny list names is left out as `denied`, whatever else is wrong with it, and without its content.

The identity of the output is its content without `collected_at`: a source that was collected again and had not
changed makes nothing downstream run again. Where the files lie in the cache is no part of the recipe; the path of a
`files` source is, because the addresses of its pages hold it.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.collect.formats import Found, Refused, read_member
from pipeline.corpus.collect.members import Member, is_archive, members_of, selected
from pipeline.corpus.collect.package import fetch_package
from pipeline.corpus.collect.sources import FilesSource, PackageSource, Source
from pipeline.corpus.deny_list import DENIED, NOTHING, Keys, keys_of_source, read_denials
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import DROPPED, PAGE, PREVIEW_CHARACTERS, Counts, Shards
from pipeline.store.shards import (
    DROPPED_FOLDER,
    file_digest,
    replacing,
    shard_name,
    shard_paths,
    text_digest,
    write_rows,
    write_text,
)
from pipeline.store.store import NOT_IDENTITY, Built, Outcome, Stage, Store, Work, room_for

MB = 1_000_000
SPOOL_BYTES = 64 * MB  # rows held in memory before they go to the temporary files of their shards
ROW_BYTES = 1000  # what a row costs in memory beside its longest column
ROW_GROUP_BYTES = 16 * MB  # so that a reader needs no whole shard
SETTLED_SECONDS = 2  # a file younger than this may change again without a new mtime


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    n_shards: Annotated[int, "shards a source is spread over; 1 to 99999; one shard has to fit in memory"] = 16
    max_page_mb: Annotated[float, "larger pages are dropped as too_large; MB, above 0"] = 256.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_shards <= 99_999:
            raise ValueError(f"n_shards={self.n_shards} is outside 1 to 99999")
        if not self.max_page_mb > 0:
            raise ValueError(f"max_page_mb={self.max_page_mb} is not above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectRecipe:
    """What decides the pages, and where to find them; made by `collect`."""

    source: Source
    config: CollectConfig
    content: str  # digest of the bytes that are read
    cache: Path = field(metadata=NOT_IDENTITY)  # where fetched packages lie
    snapshot: str = field(metadata=NOT_IDENTITY)  # state of the files when `content` was made
    denied: str = ""  # digest of the denials that concern this source; "" = there are none
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
    """The pages of `source`, made now or found finished; packages and file digests are kept below `cache`.

    `directory` as in Store.build; `denied` is the deny list (deny_list.py), which need not exist.
    """
    denials = keys_of_source(read_denials(denied), source.name) if denied else NOTHING
    recipe = CollectRecipe(
        source=source,
        config=cfg or CollectConfig(),
        snapshot=snapshot_digest(source),
        content=_content_digest(source, cache),
        cache=cache,
        denied=denials.digest(),
        denials=denials,
    )
    return store.build(COLLECT, recipe, directory=directory)


def snapshot_digest(source: Source) -> str:
    """Changes when files of the source come, go or change; reads names, sizes and times only.

    Raises ValueError when the path of a `files` source does not exist.
    """
    if isinstance(source, PackageSource):
        return source.sha256
    assert isinstance(source, FilesSource)
    stats = ((path, path.lstat()) for path in _files(source))
    return text_digest(*(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats))


def collect_pages(cfg: CollectRecipe, inputs: tuple[()], work: Work) -> Outcome:
    source = cfg.source
    for leftover in shard_paths(work.directory) + shard_paths(work.directory, DROPPED_FOLDER):
        leftover.unlink()  # of a run that saw the files in another state
    started = time.monotonic()
    collected_at = datetime.now(UTC).replace(microsecond=0)
    members, base = _members(source, cfg.cache, work)
    counts = Counts()
    max_bytes = int(cfg.config.max_page_mb * MB)
    with _Spool(work.directory, PAGE, "content") as spool, _Spool(work.directory, DROPPED, "preview") as refused:
        for member in members:
            for item in read_member(member, _address(base, member.name), source, max_bytes):
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
        digests = {}
        for shard in spool.shards():
            rows, repeated = _sorted_pages(spool.read(shard))
            for row in repeated:
                counts.drop("repeated_page")
                item = Refused(row["url"], "repeated_page", row["content"][:1000])
                refused.add(shard, _dropped_row(item, source))
            counts.kept += len(rows)
            digests[shard] = _write_pages(work.directory / shard, rows)
        for shard in refused.shards():
            rows = sorted(refused.read(shard), key=lambda row: (row["url"], row["reason"], row["preview"]))
            write_rows(work.directory / DROPPED_FOLDER / shard, rows, DROPPED)
    if snapshot_digest(source) != cfg.snapshot:
        raise SourceUnavailable(f"files of source `{source.name}` changed while they were read; run again")
    kept = tuple(path.name for path in shard_paths(work.directory))
    seconds = {"seconds_reading": time.monotonic() - started}
    return Outcome(rows=counts.kept, counts=counts, measures=seconds, content=kept, digests=digests)


COLLECT = Stage(name="collect", version=2, function=collect_pages, handle=Shards)


def _members(source: Source, cache: Path, work: Work) -> tuple[Iterator[Member], str]:
    """The members that the globs take, and the address below which they lie."""
    if isinstance(source, PackageSource):
        path = fetch_package(source, cache, lambda done, total: work.progress(done, total, "bytes"))
        members = members_of(path, strip_top=source.has_top_folder)
        return selected(members, source.members, f"{path.name} (source `{source.name}`)"), source.address
    assert isinstance(source, FilesSource)
    path = _existing(source)
    members = selected(members_of(path), source.members, f"{path} (source `{source.name}`)")
    if path.is_dir():
        return members, path.as_uri() + "/"
    return members, f"{path.as_uri()}!/" if is_archive(path) else path.parent.as_uri() + "/"


def _address(base: str, member: str) -> str:
    return base + quote(member)


def _existing(source: FilesSource) -> Path:
    path = Path(source.path)
    if not path.exists():
        raise ValueError(f"source `{source.name}`: path {path} does not exist; it is relative to sources.toml")
    return path


def _files(source: FilesSource) -> list[Path]:
    """Files that decide the pages: the single file or archive, or what the globs take of a folder."""
    path = _existing(source)
    if not path.is_dir():
        return [path]
    members = selected(members_of(path), source.members, f"{path} (source `{source.name}`)")
    return sorted(file for member in members if (file := path / member.name).is_symlink() or file.is_file())


def _content_digest(source: Source, cache: Path) -> str:
    """Digest of the bytes of a source; a file is read again only when its size or time changed."""
    if isinstance(source, PackageSource):
        return source.sha256
    assert isinstance(source, FilesSource)
    memory = cache / "file_digests" / f"{text_digest(source.path)}.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    now: dict[str, list[Any]] = {}
    parts: list[str] = []
    for path in _files(source):
        stat = path.stat() if path.exists() else path.lstat()
        state = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(str(path))
        digest = entry[2] if entry and entry[:2] == state else _digest_or_fault(path)
        parts += [str(path), digest]
        if time.time() - stat.st_mtime > SETTLED_SECONDS:
            now[str(path)] = [*state, digest]
    if now != known:
        with room_for(COLLECT.name, memory):
            write_text(memory, json.dumps(now))
    return text_digest(*parts)


def _digest_or_fault(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:  # collecting drops it as unreadable
        return f"unreadable {error.errno}"


def _check_found(source: Source, counts: Counts) -> None:
    """ValueError where every line of every jsonl file lacks the key: that is a wrong setting, not bad data."""
    if counts.rows_in and counts.dropped.get("no_text_key") == counts.rows_in:
        raise ValueError(
            f"source `{source.name}`: none of its {counts.rows_in} lines has a text under the key"
            f" {source.text_key!r}; set text_key in sources.toml to the key that holds the text"
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
    page_id = text_digest(item.url, item.preview)
    return {
        "id": page_id,
        "page_id": page_id,
        "source": source.name,
        "url": item.url,
        "stage": COLLECT.name,
        "reason": item.reason,
        "score": item.score,
        "preview": item.preview.decode("utf-8", "replace")[:PREVIEW_CHARACTERS],
    }


def _is_denied(item: Found | Refused, denials: Keys) -> bool:
    return item.url in denials.url or (
        bool(denials.page_id) and isinstance(item, Found) and text_digest(item.url, item.content) in denials.page_id
    )


def _denied_row(item: Found | Refused, source: Source) -> dict[str, Any]:
    """Under the id that the page would have, so that it is found by it; nothing of what it says is kept."""
    row = _dropped_row(Refused(item.url, DENIED), source)
    if isinstance(item, Found):
        row["id"] = row["page_id"] = text_digest(item.url, item.content)
    return row


class _Spool:
    """Rows by shard in temporary files, so that a source, or what is refused of it, may be larger than memory."""

    def __init__(self, directory: Path, schema: pa.Schema, longest: str):
        self.directory = directory
        self.schema = schema
        self.longest = longest  # the column that decides the size of a row
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
    """Pages in the order of their addresses, and those that stand in the source twice."""
    rows.sort(key=lambda row: (row["url"], row["id"]))
    kept, repeated = [], []
    for row in rows:
        (repeated if kept and kept[-1]["id"] == row["id"] else kept).append(row)
    return kept, repeated


def _write_pages(path: Path, rows: list[dict[str, Any]]) -> str:
    """Digest of all columns but collected_at; `id` stands for address and content."""
    with replacing(path) as part, pq.ParquetWriter(part, PAGE, compression="zstd", compression_level=3) as writer:
        for group in _row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=PAGE))
    return text_digest(*(json.dumps([row["id"], row["media_type"], row["title"], row["licence"]]) for row in rows))


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Runs of rows, each ended by the row that takes it above ROW_GROUP_BYTES."""
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
