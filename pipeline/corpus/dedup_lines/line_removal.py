"""Rewrites a shard of documents without the lines that repeat across its site.

In: a shard, and the file of repeated lines (stage.py). Out: `documents_left`, the ids that its documents have without
these lines, from which the stage finds documents that became equal; then `rewritten`, which writes the kept
documents, dropped/ and evidence/ of the shard. Both functions run in worker processes, and `rewritten` writes its
files itself, so that no text is sent between processes. A shard that loses nothing is linked, not copied.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.dedup_lines.line_frequency import key_of_site
from pipeline.corpus.dedup_lines.repeated_lines import (
    LineLimits,
    Repeated,
    Unit,
    going,
    kind_of,
    layout_of,
    site_of,
    units_of,
    without,
)
from pipeline.corpus.text_repair import normalised
from pipeline.corpus.words import SIGN, words_of
from pipeline.store.records import CORPUS, DROPPED, PREVIEW_CHARACTERS, REPEATED, Counts, dropped_row
from pipeline.store.shards import (
    DROPPED_FOLDER,
    EVIDENCE_FOLDER,
    link_or_copy,
    read_table,
    text_digest,
    write_rows,
    write_table,
)

STAGE = "dedup_lines"
REPEATED_LINES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),
        pa.field("line", pa.uint64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("site_documents", pa.int64(), nullable=False),
    ]
)
LEFT = pa.schema(  # of every document that keeps enough words
    [
        pa.field("row", pa.int64(), nullable=False),  # in its shard
        pa.field("id", pa.string(), nullable=False),
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("site", pa.uint64(), nullable=False),
        pa.field("cluster_size", pa.int64(), nullable=False),
        pa.field("is_changed", pa.bool_(), nullable=False),
    ]
)


class RemovalLimits(LineLimits, Protocol):
    @property
    def min_words(self) -> int: ...


class Equal(NamedTuple):
    """A document whose text now equals that of others; the one with place 1 is kept."""

    row: int
    place: int
    size: int  # cluster_size of the one that is kept
    n_equal: int
    kept_page_id: str
    site_documents: int


@dataclass(frozen=True, slots=True)
class RemovalItem:
    """A shard to be rewritten below `directory` without the lines in `repeated`."""

    path: Path
    directory: Path
    repeated: Path
    cfg: RemovalLimits
    equals: tuple[Equal, ...] = ()


@dataclass(frozen=True, slots=True)
class LinesTally:
    """Counts for one shard."""

    counts: Counts
    before: Mapping[str, int]  # characters by source
    after: Mapping[str, int]
    n_lines: int
    n_changed: int


class _Edit(NamedTuple):
    """A document from which units are removed."""

    row: int
    site: str
    units: Sequence[Unit]
    documents: Sequence[tuple[int, int]]  # per unit: documents of the site that contain it, documents of the site
    text: str  # the remaining text
    n_words: int


def documents_left(item: RemovalItem) -> pa.Table:
    """Rows of LEFT."""
    table, sites, edits = _read(item)
    changed = {edit.row for edit in edits}
    left = _edited(table, edits).select(["id", "page_id", "cluster_size"]).to_pydict()
    left["row"] = list(range(table.num_rows))
    left["site"] = [key_of_site(site) for site in sites]
    left["is_changed"] = [row in changed for row in left["row"]]
    return _without_rows(pa.table(left, schema=LEFT), _short(edits, item.cfg))


def rewritten(item: RemovalItem) -> LinesTally:
    table, sites, edits = _read(item)
    short = _short(edits, item.cfg)
    equals = [equal for equal in item.equals if equal.place > 1]
    new = _edited(table, edits, item.equals)
    kept = _without_rows(new, short | {equal.row for equal in equals})
    if edits or item.equals or table.schema != CORPUS:
        write_table(item.directory / item.path.name, kept)
    else:
        link_or_copy(item.path, item.directory / item.path.name)
    counts = Counts(rows_in=table.num_rows, kept=kept.num_rows)
    dropped, evidence = [], []
    for edit, document in zip(edits, _documents(table, [edit.row for edit in edits]), strict=True):
        for unit, numbers in zip(edit.units, edit.documents, strict=True):
            kind = kind_of(document["text"], unit)
            evidence.append(_evidence(document, edit.site, kind, unit.start, unit.end, numbers))
        if edit.row in short:
            dropped.append(dropped_row(document, STAGE, "only_repeated_lines", float(edit.n_words)))
    for equal, document in zip(equals, _documents(new, [equal.row for equal in equals]), strict=True):
        numbers, end = (equal.n_equal, equal.site_documents), len(document["text"])
        row = _evidence(document, sites[equal.row], "document", 0, end, numbers)
        evidence.append({**row, "kept_id": document["id"], "kept_page_id": equal.kept_page_id})
        dropped.append(dropped_row(document, STAGE, "exact_duplicate", 1.0))
    for folder, rows, schema in ((DROPPED_FOLDER, dropped, DROPPED), (EVIDENCE_FOLDER, evidence, REPEATED)):
        if rows:
            write_rows(item.directory / folder / item.path.name, rows, schema)
    for row in dropped:
        counts.drop(row["reason"])
    n_lines = sum(len(edit.units) for edit in edits)
    return LinesTally(counts, _characters(table), _characters(kept), n_lines, len(edits) - len(short))


def n_words_of(text: str) -> int:
    """Number of words that are not only signs, as counted in `signals`."""
    kinds = words_of(text.split()).kinds
    return int(np.count_nonzero((kinds & SIGN) == 0))


def _read(item: RemovalItem) -> tuple[pa.Table, list[str], list[_Edit]]:
    """The shard, the site of each of its documents, and what is removed from them."""
    table = read_table(item.path, CORPUS).select(CORPUS.names)
    sites = [site_of(*pair) for pair in zip(table["url"].to_pylist(), table["source"].to_pylist(), strict=True)]
    return table, sites, list(_edits(item, table, sites))


def _edits(item: RemovalItem, table: pa.Table, sites: Sequence[str]) -> Iterator[_Edit]:
    repeated = _repeated_by_site(item.repeated, {key_of_site(site) for site in sites})
    columns = (table[name].to_pylist() for name in ("media_type", "code_language"))
    for row, (site, media_type, code_language, text) in enumerate(zip(sites, *columns, table["text"], strict=True)):
        if not (lines := repeated.get(key_of_site(site))):
            continue
        before, layout = text.as_py(), layout_of(media_type, code_language)
        units = units_of(before, layout)
        if places := going(before, units, lines, layout, item.cfg):
            gone = [units[place] for place in places]
            after = without(before, gone)
            yield _Edit(row, site, gone, [lines[unit.key] for unit in gone if unit.key], after, n_words_of(after))


def _repeated_by_site(path: Path, sites: set[int]) -> Mapping[int, Repeated]:
    """Site -> line -> (documents that contain it, documents of the site)."""
    table = read_table(path, REPEATED_LINES)
    table = table.filter(pa.array(np.isin(table["site"].to_numpy(), np.fromiter(sites, np.uint64, len(sites)))))
    found: dict[int, dict[int, tuple[int, int]]] = {}
    for site, line, *numbers in zip(*(table[name].to_pylist() for name in REPEATED_LINES.names), strict=True):
        found.setdefault(site, {})[line] = tuple(numbers)
    return found


def _short(edits: Sequence[_Edit], cfg: RemovalLimits) -> set[int]:
    return {edit.row for edit in edits if edit.n_words < cfg.min_words}


def _edited(table: pa.Table, edits: Sequence[_Edit], equals: Sequence[Equal] = ()) -> pa.Table:
    """`table` with its new texts, and with the number of pages that each document represents now."""
    values = {name: table[name].to_pylist() for name in ("id", "text", "n_words", "cluster_size")}
    for edit in edits:
        values["id"][edit.row] = text_digest(normalised(edit.text))
        values["text"][edit.row] = edit.text
        values["n_words"][edit.row] = edit.n_words
    for equal in equals:
        values["cluster_size"][equal.row] = equal.size
    return pa.table({name: values.get(name, table[name]) for name in CORPUS.names}, schema=CORPUS)


def _without_rows(table: pa.Table, rows: set[int]) -> pa.Table:
    return table.filter(pa.array([row not in rows for row in range(table.num_rows)], pa.bool_()))


def _documents(table: pa.Table, rows: list[int]) -> list[dict[str, Any]]:
    return table.select(["id", "page_id", "source", "url", "text"]).take(pa.array(rows, pa.int64())).to_pylist()


def _evidence(
    document: Mapping[str, Any], site: str, kind: str, start: int, end: int, numbers: tuple[int, int]
) -> dict[str, Any]:
    return {
        **{name: document[name] for name in ("id", "page_id", "source")},
        "site": site,
        "kind": kind,
        "position": start,
        "characters": end - start,
        **dict(zip(("documents", "site_documents"), numbers, strict=True)),
        "kept_id": None,
        "kept_page_id": None,
        "preview": document["text"][start : min(end, start + PREVIEW_CHARACTERS)],
    }


def _characters(table: pa.Table) -> Counter[str]:
    counts: Counter[str] = Counter()
    lengths = pc.call_function("utf8_length", [table["text"]])
    for source, length in zip(table["source"].to_pylist(), lengths.to_pylist(), strict=True):
        counts[source] += length
    return counts
