"""Rewrites a shard of documents without the lines that repeat across its site.

In: a shard, and the file of repeated lines (line_frequency.py). Out: the kept documents, dropped/ and evidence/ of
that shard, and the amount of text removed per source. Both functions run in worker processes and write their files
themselves, so that no text is sent between processes. A shard that loses nothing is linked, not copied.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.dedup_lines.line_frequency import REPEATED_LINES, key_of_site
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
# One row per kept document; `row` is its row in the output shard.
LEFT = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
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


@dataclass(frozen=True, slots=True)
class RemovalItem:
    """A shard to be rewritten below `directory` without the lines in `repeated`."""

    path: Path
    repeated: Path
    left: Path  # path of the file for its rows of LEFT
    directory: Path
    cfg: RemovalLimits


@dataclass(frozen=True, slots=True)
class Equal:
    """A document whose text now equals that of another one, which is kept."""

    row: int
    kept_page_id: str
    n_equal: int
    site_documents: int


@dataclass(frozen=True, slots=True)
class EqualsItem:
    """A shard written by `rewritten` in which documents are to be dropped, or cluster sizes to be raised."""

    path: Path
    directory: Path  # the output folder
    equals: tuple[Equal, ...]
    sizes: Mapping[int, int]  # row -> cluster_size


@dataclass(frozen=True, slots=True)
class LinesTally:
    """Counts for one shard; characters per source."""

    counts: Counts
    characters: Mapping[str, int] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)  # removed characters, including those of dropped documents
    n_lines: int = 0
    n_changed: int = 0


@dataclass(frozen=True, slots=True)
class _Edit:
    """A document from which units are removed."""

    row: int
    site: str
    units: Sequence[Unit]
    documents: Sequence[tuple[int, int]]  # per unit: documents of the site that contain it, documents of the site
    text: str  # the remaining text
    n_words: int


def place_shard(staged: Path, name: str, directory: Path) -> None:
    """Places a shard that `rewritten` wrote below `staged` in `directory`, with its dropped/ and evidence/."""
    for folder in ("", DROPPED_FOLDER, EVIDENCE_FOLDER):
        if (staged / folder / name).exists():
            link_or_copy(staged / folder / name, directory / folder / name)
        else:
            (directory / folder / name).unlink(missing_ok=True)  # left by a build that was killed


def rewritten(item: RemovalItem) -> LinesTally:
    table = read_table(item.path, CORPUS).select(CORPUS.names)
    sources = table["source"].to_pylist()
    sites = [site_of(url, source) for url, source in zip(table["url"].to_pylist(), sources, strict=True)]
    edits = list(_edits(item, table, sites))
    short = {edit.row for edit in edits if edit.n_words < item.cfg.min_words}
    target = item.directory / item.path.name
    is_kept = np.ones(table.num_rows, bool)
    is_kept[list(short)] = False
    if edits or table.schema != CORPUS:
        new = _edited(table, edits)
        write_table(target, new.filter(pa.array(is_kept)))
    else:
        new = table
        link_or_copy(item.path, target)
    _write_left(item.left, new, sites, {edit.row for edit in edits}, is_kept)
    rows = table.select(["id", "page_id", "source", "url", "text"])
    of_edits = list(
        zip(edits, rows.take(pa.array([edit.row for edit in edits], pa.int64())).to_pylist(), strict=True)
    )
    dropped = [
        dropped_row(document, STAGE, "only_repeated_lines", float(edit.n_words))
        for edit, document in of_edits
        if edit.row in short
    ]
    evidence = [row for edit, document in of_edits for row in _evidence(edit, document)]
    _write_beside(item.directory, item.path.name, dropped, evidence)
    counts = Counts(rows_in=table.num_rows, kept=table.num_rows - len(short))
    if short:
        counts.drop("only_repeated_lines", len(short))
    return _tally(table, sources, edits, short, counts)


def _edits(item: RemovalItem, table: pa.Table, sites: Sequence[str]) -> Iterable[_Edit]:
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


def n_words_of(text: str) -> int:
    """Number of words that are not only signs, as counted in `signals`."""
    kinds = words_of(text.split()).kinds
    return int(np.count_nonzero((kinds & SIGN) == 0))


def _repeated_by_site(path: Path, sites: set[int]) -> Mapping[int, Repeated]:
    """Site -> line -> (documents that contain it, documents of the site)."""
    columns = (column.to_numpy() for column in read_table(path, REPEATED_LINES).select(REPEATED_LINES.names))
    all_sites, *others = columns
    own = np.isin(all_sites, np.fromiter(sites, np.uint64, len(sites)))
    found: dict[int, dict[int, tuple[int, int]]] = {}
    rows = zip(all_sites[own].tolist(), *(column[own].tolist() for column in others), strict=True)
    for site, line, documents, site_documents in rows:
        found.setdefault(site, {})[line] = (documents, site_documents)
    return found


def _edited(table: pa.Table, edits: Sequence[_Edit]) -> pa.Table:
    values = {name: table[name].to_pylist() for name in ("id", "text", "n_words")}
    for edit in edits:
        values["id"][edit.row] = text_digest(normalised(edit.text))
        values["text"][edit.row] = edit.text
        values["n_words"][edit.row] = edit.n_words
    columns = [
        pa.array(values[name], CORPUS.field(name).type) if name in values else table[name] for name in CORPUS.names
    ]
    return pa.Table.from_arrays(columns, schema=CORPUS)


def _write_left(path: Path, new: pa.Table, sites: Sequence[str], changed: set[int], is_kept: np.ndarray) -> None:
    rows = np.flatnonzero(is_kept)
    kept = new.select(["id", "page_id", "cluster_size"]).filter(pa.array(is_kept))
    columns = {
        **{name: kept[name] for name in kept.column_names},
        "row": np.arange(len(rows)),
        "site": np.array([key_of_site(sites[row]) for row in rows.tolist()], np.uint64),
        "is_changed": np.isin(rows, np.fromiter(changed, np.int64, len(changed))),
    }
    write_table(path, pa.table({name: columns[name] for name in LEFT.names}, schema=LEFT))


def _evidence(edit: _Edit, document: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    text = document["text"]
    for unit, (documents, site_documents) in zip(edit.units, edit.documents, strict=True):
        yield {
            **{name: document[name] for name in ("id", "page_id", "source")},
            "site": edit.site,
            "kind": kind_of(text, unit),
            "position": unit.start,
            "characters": unit.end - unit.start,
            "documents": documents,
            "site_documents": site_documents,
            "kept_id": None,
            "kept_page_id": None,
            "preview": text[unit.start : min(unit.end, unit.start + PREVIEW_CHARACTERS)],
        }


def _write_beside(directory: Path, name: str, dropped: list[dict[str, Any]], evidence: list[dict[str, Any]]) -> None:
    """Writes dropped/ and evidence/ of a shard, and deletes leftovers of a killed build there."""
    for folder, rows, schema in ((DROPPED_FOLDER, dropped, DROPPED), (EVIDENCE_FOLDER, evidence, REPEATED)):
        if rows:
            write_rows(directory / folder / name, rows, schema)
        else:
            (directory / folder / name).unlink(missing_ok=True)


def _tally(
    table: pa.Table, sources: Sequence[str], edits: Sequence[_Edit], short: set[int], counts: Counts
) -> LinesTally:
    characters: dict[str, int] = {}
    gone: dict[str, int] = {}
    lengths = pc.call_function("utf8_length", [table["text"]]).to_pylist()
    for source, length in zip(sources, lengths, strict=True):
        characters[source] = characters.get(source, 0) + length
    for edit in edits:
        left = 0 if edit.row in short else len(edit.text)
        gone[sources[edit.row]] = gone.get(sources[edit.row], 0) + lengths[edit.row] - left
    n_lines = sum(len(edit.units) for edit in edits)
    return LinesTally(counts, characters, gone, n_lines, len(edits) - len(short))


def without_equals(item: EqualsItem) -> LinesTally:
    table = read_table(item.path, CORPUS).select(CORPUS.names)
    sizes = table["cluster_size"].to_pylist()
    for row, size in item.sizes.items():
        sizes[row] = size
    place = CORPUS.get_field_index("cluster_size")
    table = table.set_column(place, CORPUS.field("cluster_size"), pa.array(sizes, pa.int64()))
    rows = [equal.row for equal in item.equals]
    documents = table.select(["id", "page_id", "source", "url", "text"]).take(pa.array(rows, pa.int64())).to_pylist()
    gone: dict[str, int] = {}
    for document in documents:
        gone[document["source"]] = gone.get(document["source"], 0) + len(document["text"])
    staged, name = item.path.parent, item.path.name
    dropped = [dropped_row(document, STAGE, "exact_duplicate", 1.0) for document in documents]
    evidence = [_equal_evidence(*pair) for pair in zip(item.equals, documents, strict=True)]
    _write_beside(
        item.directory,
        name,
        _rows(staged / DROPPED_FOLDER / name, DROPPED) + dropped,
        _rows(staged / EVIDENCE_FOLDER / name, REPEATED) + evidence,
    )
    is_kept = np.ones(table.num_rows, bool)
    is_kept[rows] = False
    write_table(item.directory / name, table.filter(pa.array(is_kept)).cast(CORPUS))
    counts = Counts(kept=-len(rows))
    if rows:
        counts.drop("exact_duplicate", len(rows))
    return LinesTally(counts, gone=gone)


def _equal_evidence(equal: Equal, document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: document[name] for name in ("id", "page_id", "source")},
        "site": site_of(document["url"], document["source"]),
        "kind": "document",
        "position": 0,
        "characters": len(document["text"]),
        "documents": equal.n_equal,
        "site_documents": equal.site_documents,
        "kept_id": document["id"],
        "kept_page_id": equal.kept_page_id,
        "preview": document["text"][:PREVIEW_CHARACTERS],
    }


def _rows(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    return read_table(path, schema).to_pylist() if path.exists() else []
