"""Stage `collect`: the pages of one source, unchanged.

In: a Source. Out: page shards `<source>-00000.parquet` ..., sorted by address, and the refused pages in dropped/ with
their reasons. The hash of the address of a page determines its shard, so that one changed file changes one shard.

Every file, or member of an archive, is parsed in a worker process (parsing.py). One that exceeds its limits of time
or memory, or ends its worker, is tried again; if that fails too, it is dropped as timeout, out_of_memory or crash,
and the next build reads the source once more. What fails then is final, as in other stages (store/parts.py). A member
that unpacks to too much is cut off as too_large.

Pages on the deny list are dropped as `denied`, whatever else is wrong with them, and without their content.

The identity of the output is its content without `collected_at`: collecting an unchanged source again does not
rebuild anything downstream. The location of the cache is not part of the recipe; the path of a `files` source is,
because the addresses of its pages contain it.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Le

from pipeline.corpus.collect.pages import Refused, refused
from pipeline.corpus.collect.parsing import Batch, Given, MemberCounts, Parsed, batches_of, parsed_batches, rows_of
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.spool import Spool, dropped_table, other_rows, page_order, write_pages
from pipeline.corpus.collect.unpacking import MAX_EXPANSION
from pipeline.corpus.collect.unread_files import FAULTS, MEASURE
from pipeline.corpus.deny_list import NOTHING, Keys, keys_of_source, read_denials
from pipeline.store.engine import Done, Failed
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import DENIED, DROPPED, FAILED_AGAIN, Counts, Shards
from pipeline.store.settings import Count, Positive, check_values
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_name, shard_paths, text_digest, write_table
from pipeline.store.store import (
    LIMIT,
    NOT_IDENTITY,
    RETRY,
    UNICODE,
    Built,
    Outcome,
    Stage,
    Store,
    Work,
    is_raised,
    limits_of,
    read_record,
)
from pipeline.store.worker_pool import TRANSIENT

MB = 1_000_000
FREE_IN_ALL = 2_000_000_000  # bytes that all files together may unpack to beyond MAX_EXPANSION times their sizes
TOLD_FILES = 3  # files without a page that are logged
ATTEMPTS = 3  # to read a source whose files change meanwhile
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    n_shards: Annotated[
        int, Ge(1), Le(99_999), "Number of shards that a source is spread over; each shard must fit into memory."
    ] = 16
    max_page_mb: Annotated[
        Positive, "Pages larger than this many megabytes are not collected; their reason is too_large."
    ] = 256.0
    member_seconds: Annotated[
        Positive,
        "Time limit in seconds for reading one file or member of an archive, besides 10 seconds per megabyte of its"
        " size; one that takes longer, also when it is tried again, is dropped as timeout.",
    ] = field(default=60.0, metadata=LIMIT)
    member_memory_mb: Annotated[
        Count,
        "Memory limit in megabytes of address space for reading one file or member, on Linux only; one that needs"
        " more is dropped as out_of_memory.",
    ] = field(default=4096, metadata=LIMIT)

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
    for attempt in range(1, ATTEMPTS + 1):
        content = source.digest(cache)
        recipe = CollectRecipe(
            source=source,
            config=cfg or CollectConfig(),
            snapshot=source.snapshot(),
            content=content,
            cache=cache,
            denied=denials.digest(),
            denials=denials,
        )
        try:
            return store.build(COLLECT, recipe, directory=directory)
        except _Changed as error:
            if attempt == ATTEMPTS:
                raise
            log.warning("%s; they are read again", error)
    raise AssertionError("the last attempt returns or raises")


class _Changed(SourceUnavailable):
    """Files of a source changed while they were read."""


def collect_pages(cfg: CollectRecipe, inputs: tuple[()], work: Work) -> Outcome:
    source = cfg.source
    for leftover in shard_paths(work.directory) + shard_paths(work.directory, DROPPED_FOLDER):
        leftover.unlink()  # left by a run that saw the files in another state
    started = time.monotonic()
    now = datetime.now(UTC).replace(microsecond=0)
    constant = {"source": source.name, "licence": source.licence, "collected_at": now, "stage": COLLECT.name}
    with Spool(work.directory) as spool:
        reading = _Reading(cfg, work, spool, _failed_before(cfg, work))
        reading.read_all()
        counts = reading.counts
        _check_found(source, reading)
        for number, rows in spool.shards():
            shard = shard_name(source.name, number)
            order, repeated = page_order(rows)
            if len(repeated):
                counts.drop("repeated_page", len(repeated))
            if len(order):
                write_pages(work.directory / shard, rows, order, constant)
            others = other_rows(rows, repeated)
            if others.num_rows:
                write_table(work.directory / DROPPED_FOLDER / shard, dropped_table(others, constant, DROPPED))
            counts.kept += len(order)
    if source.snapshot() != cfg.snapshot:
        raise _Changed(f"files of source `{source.name}` changed while they were read; run again")
    reading.tell_faults()
    kept = tuple(path.name for path in shard_paths(work.directory))
    measures = {"seconds_reading": time.monotonic() - started, MEASURE: reading.n_faults}
    return Outcome(rows=counts.kept, counts=counts, measures=measures, content=kept, volatile=("collected_at",))


@dataclass(slots=True)
class _Reading:
    """Reads all members of a source and counts what they give."""

    cfg: CollectRecipe
    work: Work
    spool: Spool
    failed_before: frozenset[str]  # addresses of members that no worker could finish in an earlier build
    counts: Counts = field(default_factory=Counts)
    n_free: int = 0  # bytes used of FREE_IN_ALL
    without_key: str = ""  # what the first record without a text has
    faults: list[str] = field(default_factory=list)  # the first files without a page, for the log
    notes: list[str] = field(default_factory=list)
    n_faults: int = 0

    def read_all(self) -> None:
        cfg, directory = self.cfg, self.work.directory
        entries = cfg.source.entries(cfg.cache, lambda done, total: self.work.progress(done, total, "bytes"))
        max_bytes = int(cfg.config.max_page_mb * MB)
        batches = batches_of(entries, cfg.source, directory, max_bytes, cfg.config.n_shards)
        failed = self._take_all(batches)
        divided = [single for batch in failed if len(batch.members) > 1 for single in batch.divided()]
        singles = [batch for batch in failed if len(batch.members) == 1]
        for batch in [*singles, *self._take_all(divided)]:  # alone, because the machine may have been short of memory
            for _, answer in self._parsed([batch]):
                if isinstance(answer, Failed):
                    self.refuse(batch, answer)
                else:
                    self.take(batch, answer.value)

    def _take_all(self, batches: Iterable[Batch]) -> list[Batch]:
        """Take the rows of all batches. Returns those that no worker could finish."""
        failed: list[Batch] = []
        for batch, answer in self._parsed(batches):
            if isinstance(answer, Failed):
                failed.append(batch)
            else:
                self.take(batch, answer.value)
        return failed

    def _parsed(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Done[Parsed] | Failed]]:
        limits = self.cfg.config
        return parsed_batches(
            self.work.engine, batches, seconds=limits.member_seconds, memory_mb=limits.member_memory_mb
        )

    def take(self, batch: Batch, parsed: Parsed) -> None:
        """Add the rows of a batch, without those of members that unpack to too much."""
        n_rows = [one.n_rows for one in parsed.members]
        has_room = [self._has_room(given, one) for given, one in zip(batch.members, parsed.members, strict=True)]
        begin, kept = 0, np.repeat(has_room, n_rows)
        for table in parsed.tables():
            self.add(table.filter(pa.array(kept[begin : begin + table.num_rows])))
            begin += table.num_rows
        for given, one, room in zip(batch.members, parsed.members, has_room, strict=True):
            if not room:
                detail = f"the files of the source unpack to more than {FREE_IN_ALL / 1e6:,.0f} MB too much"
                self._add_refusal(batch, refused(given.url, "too_large", detail))
            elif one.fault is not None:
                self.note_fault(given.url, *one.fault)
            self.notes += [f"{note.url}: {note.text}" for note in one.notes][: TOLD_FILES - len(self.notes)]
        batch.remove_files()

    def refuse(self, batch: Batch, answer: Failed) -> None:
        """Drop the only member of a batch with the reason why no worker could finish it."""
        batch.remove_files()
        if answer.errno is not None:
            raise OSError(answer.errno, answer.detail)
        reason = answer.reason
        if answer.is_transient:
            reason = f"{FAILED_AGAIN}{reason}" if batch.url in self.failed_before else reason
            self.counts.lost[reason] = self.counts.lost.get(reason, 0) + 1
        self._add_refusal(batch, refused(batch.url, reason, answer.detail))

    def _has_room(self, given: Given, counts: MemberCounts) -> bool:
        """Whether all files so far may unpack to as much as they do; each alone may use FREE_BYTES."""
        used = max(0, counts.spent - MAX_EXPANSION * given.member.size)
        has_room = self.n_free + used <= FREE_IN_ALL
        self.n_free += used if has_room else 0
        return has_room

    def _add_refusal(self, batch: Batch, refusal: Refused) -> None:
        self.add(rows_of([refusal], batch.n_shards))
        self.note_fault(refusal.url, refusal.reason, refusal.preview.decode(errors="replace"))

    def note_fault(self, url: str, reason: str, detail: str) -> None:
        if reason == "no_text_key" and not self.without_key:
            self.without_key = detail
        if reason.removeprefix(FAILED_AGAIN) in FAULTS:
            self.n_faults += 1
            if len(self.faults) < TOLD_FILES:
                self.faults.append(f"{url}: {reason} ({detail})")

    def add(self, table: pa.Table) -> None:
        self.counts.rows_in += table.num_rows
        if self.cfg.denials:
            table = _without_denied(table, self.cfg.denials)
        for one in table["reason"].drop_null().value_counts().to_pylist():
            self.counts.drop(one["values"], one["counts"])
        self.spool.add(table)
        self.work.progress(self.counts.rows_in, None, "pages")

    def tell_faults(self) -> None:
        for text in self.notes:
            log.warning("source `%s`: %s", self.cfg.source.name, text)
        for text in self.faults:
            log.warning("source `%s`: no page was made of %s", self.cfg.source.name, text)
        if (n_more := self.n_faults - len(self.faults)) > 0:
            log.warning("source `%s`: no page was made of %d more files", self.cfg.source.name, n_more)


def _failed_before(cfg: CollectRecipe, work: Work) -> frozenset[str]:
    """Addresses of members that were lost in the output that this build replaces, if no limit was raised since."""
    earlier = work.directory.with_name(work.directory.name.removesuffix(RETRY))
    record = read_record(earlier) if earlier != work.directory else None
    if record is None or is_raised(record["limits"], limits_of(cfg)):
        return frozenset()
    paths = shard_paths(earlier, DROPPED_FOLDER)
    rows = [row for path in paths for row in read_table(path, columns=["url", "reason"]).to_pylist()]
    return frozenset(row["url"] for row in rows if row["reason"].removeprefix(FAILED_AGAIN) in TRANSIENT)


def _without_denied(table: pa.Table, denials: Keys) -> pa.Table:
    """The rows; denied ones keep nothing but their address and, for pages, the id by which they are found."""
    columns = (table[name].to_pylist() for name in ("url", "id", "reason"))
    is_denied = np.array(
        [
            url in denials.url or (reason is None and page_id in denials.page_id)
            for url, page_id, reason in zip(*columns, strict=True)
        ]
    )
    if not is_denied.any():
        return table
    emptied = dict.fromkeys(("media_type", "title", "content", "context", "score"))
    rows = [
        {
            **row,
            **emptied,
            "id": text_digest(row["url"], b"") if row["reason"] else row["id"],
            "reason": DENIED,
            "preview": "",
        }
        for row in table.filter(pa.array(is_denied)).to_pylist()
    ]
    return pa.concat_tables([table.filter(pa.array(~is_denied)), pa.Table.from_pylist(rows, table.schema)])


COLLECT = Stage(
    name="collect",
    version=4,
    function=collect_pages,
    handle=Shards,
    libraries=("ftfy", "lxml", "resiliparse", UNICODE),
)


def _check_found(source: Source, reading: _Reading) -> None:
    """Raises ValueError if no record of any file has the key: that is a wrong setting, not bad data."""
    counts = reading.counts
    if counts.rows_in and counts.dropped.get("no_text_key") == counts.rows_in:
        raise ValueError(
            f"source `{source.name}`: none of its {counts.rows_in} records has a text under the key"
            f" {source.text_key!r} ({reading.without_key}); set text_key in sources.toml to the key that contains the"
            " text"
        )
