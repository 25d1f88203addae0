"""The members of a source, parsed in worker processes with limits on time, memory and unpacked bytes.

In: the members of a source. Out: `Parsed`, in the same order. Small members travel together in a batch, because each
message costs time; a batch that fails is divided, so that a member that hangs, crashes or needs too much memory costs
itself alone. Few rows are returned as they are, many in a temporary file, so that a dump may be larger than memory.

Members of a tar archive can be read only one after the other; this process unpacks them and hands their bytes on.
"""

import dataclasses
import functools
import io
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.corpus.collect.formats import BROKEN, Found, Refused, is_out_of_resources, read_member
from pipeline.corpus.collect.members import Member, open_regular, refused_member
from pipeline.corpus.collect.pages import Note
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.spool import COMPRESSED, SPOOLED, ipc_bytes
from pipeline.corpus.collect.unpacking import Budget, most_unpacked
from pipeline.store.engine import Done, Engine, Failed
from pipeline.store.records import preview_of
from pipeline.store.shards import shard_number, text_digest

SECONDS_A_MB = 10.0  # besides the limit of time: a large file may take long
INLINE_BYTES = 4_000_000  # rows returned as they are; also the size of a batch of rows in a temporary file
ROW_BYTES = 300
MOST_HELD = 8_000_000  # a larger member of a tar archive is copied to a temporary file
BATCH_MEMBERS, BATCH_BYTES = 32, 500_000


@dataclass(frozen=True, slots=True)
class Given:
    """One member of a source and its address."""

    url: str
    member: Member
    copied: Path | None = None  # its content, if it was copied


@dataclass(frozen=True, slots=True)
class Batch:
    """Members as sent to a worker."""

    members: tuple[Given, ...]
    source: Source
    max_bytes: int
    n_shards: int
    part: Path  # of its rows, if there are many

    @property
    def url(self) -> str:
        return self.members[0].url

    @property
    def size(self) -> int:
        return sum(given.member.size for given in self.members)

    def divided(self) -> "list[Batch]":
        parts = (self.part.with_name(f"{self.part.stem}-{i}.part") for i in range(len(self.members)))
        return [
            dataclasses.replace(self, members=(given,), part=part)
            for given, part in zip(self.members, parts, strict=True)
        ]

    def remove_files(self) -> None:
        for path in (self.part, *(given.copied for given in self.members)):
            if path is not None:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class MemberCounts:
    """What one member gave."""

    n_rows: int
    spent: int  # bytes that it unpacked to, and its rows
    fault: tuple[str, str] | None = None  # reason and preview of its first row, if none of its rows is a page
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rows of a batch, as a stream of Arrow or the file with it, and the counts of each of its members."""

    rows: bytes | None
    part: Path | None
    members: tuple[MemberCounts, ...]

    def tables(self) -> Iterator[pa.Table]:
        source = pa.memory_map(str(self.part)) if self.part else pa.BufferReader(self.rows)
        with source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


def parsed_batches(
    engine: Engine, batches: Iterable[Batch], *, seconds: float, memory_mb: int
) -> Iterator[tuple[Batch, Done[Parsed] | Failed]]:
    """Every batch with its answer, in order. The caller removes the temporary files."""
    sent: deque[Batch] = deque()

    def sending() -> Iterator[Batch]:
        for batch in batches:
            sent.append(batch)
            yield batch

    def limit(batch: Batch) -> float:
        return seconds + SECONDS_A_MB * batch.size / 1e6

    for answer in engine.map(parse_batch, sending(), seconds=limit, memory_mb=memory_mb):
        yield sent.popleft(), answer


def batches_of(
    entries: Iterable[tuple[str, Member]], source: Source, directory: Path, max_bytes: int, n_shards: int
) -> Iterator[Batch]:
    """The members in their order; a batch is full when it has BATCH_MEMBERS or more than BATCH_BYTES."""
    held: list[Given] = []
    for number, (url, member) in enumerate(entries):
        given = (
            Given(url, member) if member.is_portable else _copied(url, member, directory / f".member-{number}.part")
        )
        held.append(given)
        if len(held) == BATCH_MEMBERS or sum(one.member.size for one in held) > BATCH_BYTES:
            yield Batch(tuple(held), source, max_bytes, n_shards, directory / f".rows-{number}.part")
            held = []
    if held:
        yield Batch(tuple(held), source, max_bytes, n_shards, directory / ".rows.part")


def _copied(url: str, member: Member, path: Path) -> Given:
    """The member with its content in memory or, if it is large, in the file `path`."""
    try:
        with member.open() as file:
            content = file.read(MOST_HELD)
            if len(content) < MOST_HELD:
                return Given(url, dataclasses.replace(member, open=functools.partial(io.BytesIO, content)))
            with path.open("wb") as copy:
                copy.write(content)
                shutil.copyfileobj(file, copy, MOST_HELD)
    except BROKEN as error:
        path.unlink(missing_ok=True)
        if is_out_of_resources(error):
            raise
        return Given(url, refused_member(member.name, "unreadable", str(error)))
    return Given(url, dataclasses.replace(member, open=functools.partial(open_regular, path)), path)


def parse_batch(batch: Batch) -> Parsed:
    """The rows of all members of a batch. Runs in a worker process."""
    rows, counts = _Rows(batch.part), []
    for given in batch.members:
        budget = Budget(most_unpacked(given.member.size))
        n_rows, n_pages, fault, notes = 0, 0, None, []
        for found in read_member(given.member, given.url, batch.source, batch.max_bytes, budget):
            if isinstance(found, Note):
                notes.append(found)
                continue
            n_rows += 1
            if isinstance(found, Found):
                n_pages += 1
            elif fault is None:
                fault = (found.reason, preview_of(found.preview.decode("utf-8", "replace")))
            rows.add(found, batch.n_shards)
        counts.append(MemberCounts(n_rows, budget.spent, None if n_pages else fault, tuple(notes)))
    inline = rows.finish()
    return Parsed(inline, batch.part if inline is None else None, tuple(counts))


def rows_of(items: Iterable[Found | Refused], n_shards: int) -> pa.Table:
    rows = _Rows(Path())
    for item in items:
        rows.add(item, n_shards)
    return rows.table()


@dataclass(slots=True)
class _Rows:
    """Rows that are collected in memory and, from INLINE_BYTES on, in a file."""

    part: Path
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    n_bytes: int = 0
    file: Any = None
    writer: Any = None

    def add(self, item: Found | Refused, n_shards: int) -> None:
        row = _page(item) if isinstance(item, Found) else _dropped(item)
        self.rows.append((shard_number(item.url, n_shards), *row))
        self.n_bytes += ROW_BYTES
        if isinstance(item, Found):
            self.n_bytes += len(item.content) + len(item.context or "")
        if self.n_bytes > INLINE_BYTES:
            self._flush()

    def table(self) -> pa.Table:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(SPOOLED)
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, SPOOLED, strict=True)], schema=SPOOLED)

    def finish(self) -> bytes | None:
        """All rows, None if they are in the file."""
        if self.writer is None:
            return ipc_bytes(self.table()).to_pybytes()
        self._flush()
        self.writer.close()
        self.file.close()
        return None

    def _flush(self) -> None:
        if self.writer is None:
            self.file = self.part.open("wb")
            self.writer = pa.ipc.new_stream(self.file, SPOOLED, options=COMPRESSED)
        self.writer.write_table(self.table())
        self.rows, self.n_bytes = [], 0


def _page(page: Found) -> tuple[Any, ...]:
    page_id = text_digest(page.url, page.content)
    return page_id, page.url, page.media_type, page.title, page.content, page.context, None, None, None


def _dropped(item: Refused) -> tuple[Any, ...]:
    preview = preview_of(item.preview.decode("utf-8", "replace"))
    page_id = text_digest(item.url, item.preview)
    return page_id, item.url, None, None, None, None, item.reason, item.score, preview
