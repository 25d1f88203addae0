"""Stage `filter`: keeps documents that satisfy the rules, masks personal data, and records why others are dropped.

In: document shards, their columns from `signals` and, if anything is denied, the deny list. Out: document shards of
the same names with the signals as columns; dropped/ with the first rule that a document breaks and the value that
broke it. Nothing is measured here, so a changed limit costs only a comparison of columns. Steps per shard: drop what
is denied (deny_list.py), without a preview; compare (rules.py); in the kept documents, replace personal data of the
chosen kinds with placeholders (pii.py) and, if the set c4 applies, remove the lines and citations that C4 removes
(c4.py). A document whose text changed gets a new id.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.deny_list import NOTHING, Keys, denied_pages, denied_rows, read_keys
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe, judge, unjudged
from pipeline.corpus.signals.c4 import CITATION, LINE, UNTERMINATED_LINE
from pipeline.corpus.signals.pii import PII_KINDS, placeholder
from pipeline.corpus.text_repair import normalised
from pipeline.store.errors import CorruptShard
from pipeline.store.parts import map_shards
from pipeline.store.records import (
    DENIED,
    DOCUMENT,
    FILTERED,
    MEASURES,
    SIGNALS,
    Columns,
    Counts,
    DenyList,
    Shards,
    dropped_rows,
)
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_table
from pipeline.store.store import UNICODE, Outcome, Stage, Work, read_record

__all__ = ["FILTER", "FilterConfig", "FilterRecipe", "SourceRules", "edited", "filter_documents"]
log = logging.getLogger(__name__)


def filter_documents(
    recipe: FilterRecipe, inputs: tuple[Shards, Columns] | tuple[Shards, Columns, DenyList], work: Work
) -> Outcome:
    cleaned, measured, *denied = inputs
    for reason, languages in unjudged(recipe.config, recipe.config.rules, recipe.config.languages).items():
        log.info("the rule %s can't judge texts in %s; it drops none of them", reason, ", ".join(languages))
    denials = read_keys(denied)
    digests = _digests(cleaned, measured)
    opened: deque[Path] = deque()  # shards are written in the order in which they are opened
    counts = Counts()

    def opened_shard(path: Path) -> list[Any]:
        opened.append(path)
        return []  # no items for worker processes: comparing columns is faster than sending them

    def write(part: Path, items: list[Any], answers: list[Any]) -> Counts:
        path = opened.popleft()
        kept, dropped = filter_shard(recipe, path, measured.directory / path.name, denials)
        write_table(part / "kept.parquet", kept)
        if dropped.num_rows:
            write_table(part / f"{DROPPED_FOLDER}.parquet", dropped)
        of_shard = Counts(rows_in=kept.num_rows + dropped.num_rows, kept=kept.num_rows)
        for reason, rows in sorted(Counter(dropped["reason"].to_pylist()).items()):
            of_shard.drop(reason, rows)
        counts.add(of_shard)
        work.progress(counts.rows_in, cleaned.rows, "documents")
        return of_shard

    counts_of_all = map_shards(
        work,
        [cleaned],
        read=opened_shard,
        function=len,
        write=write,
        key=lambda name: digests[name] + denied_pages(cleaned.directory / name, denials),
        unit="documents",
    )
    kept = tuple(path.name for path in shard_paths(work.directory))
    return Outcome(rows=counts_of_all.kept, counts=counts_of_all, content=kept)


FILTER = Stage(
    name="filter", version=3, function=filter_documents, handle=Shards, libraries=(UNICODE,), by_shard=True
)


def filter_shard(
    recipe: FilterRecipe, documents: Path, signals: Path, denials: Keys = NOTHING
) -> tuple[pa.Table, pa.Table]:
    """The kept documents as records.FILTERED and the others as records.DROPPED."""
    table = read_table(documents, DOCUMENT).select(DOCUMENT.names)
    measured = read_table(signals, SIGNALS).select(SIGNALS.names)
    if not table["page_id"].combine_chunks().equals(measured["page_id"].combine_chunks()):
        raise CorruptShard(
            f"{signals} does not contain the {table.num_rows} documents of {documents} row by row (it has"
            f" {measured.num_rows} rows); delete its folder and rerun `signals`"
        )
    reasons, values = _judged(recipe, table, measured)
    is_denied = np.array(denied_rows(table, denials), bool)
    reasons[is_denied], values[is_denied] = DENIED, np.nan
    is_kept = pa.array(reasons, pa.string()).is_null().to_numpy(zero_copy_only=False)
    kept = pa.array(is_kept, pa.bool_())
    dropped = pa.array(~is_kept, pa.bool_())
    return (
        _kept_rows(recipe, table.filter(kept), measured.filter(kept)),
        _dropped_rows(table.filter(dropped), reasons[~is_kept], values[~is_kept]),
    )


def edited(text: str, masks: Sequence[tuple[int, int, str]], removals: Iterable[tuple[int, int]]) -> tuple[str, int]:
    """`text` with placeholders for `masks` (start, end, kind) and without `removals`, and the number of masks.

    Personal data inside a removed line is removed with it; if it extends beyond the line, it is masked instead.
    """
    replacements = [(start, end, placeholder(kind)) for start, end, kind in masks]
    if removals := list(removals):
        is_removed = np.zeros(len(text), dtype=np.int8)
        for start, end in removals:
            is_removed[start:end] = 1
        replacements = [one for one in replacements if not is_removed[one[0] : one[1]].all()]
        for start, end, _ in replacements:
            is_removed[start:end] = 0
        edges = np.flatnonzero(np.diff(is_removed, prepend=0, append=0))
        gaps = [(start, end, "") for start, end in edges.reshape(-1, 2).tolist()]
        n_masked, replacements = len(replacements), sorted([*replacements, *gaps])
    else:
        n_masked = len(replacements)
    parts, position = [], 0
    for start, end, instead in replacements:
        parts += text[position:start], instead
        position = end
    new = "".join([*parts, text[position:]])
    return (new.strip("\n") if removals else new), n_masked


def _digests(cleaned: Shards, measured: Columns) -> dict[str, str]:
    """Shard name -> digest of its signals. Raises ValueError if a shard of documents has none."""
    record = read_record(measured.directory)
    assert record is not None  # a handle is made from a record
    digests = {name: entry["digest"] for name, entry in record["files"].items()}
    if missing := [path for path in shard_paths(cleaned.directory) if path.name not in digests]:
        raise ValueError(
            f"{measured.directory} has no signals for {len(missing)} shards of documents, first {missing[0]}; give"
            " `filter` the output of `signals` for these documents"
        )
    return digests


def _judged(recipe: FilterRecipe, table: pa.Table, measured: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(reason or None, value) of every row, by the rules of its source."""
    columns = {name: measured[name].to_numpy() for name in MEASURES.names}
    sources = table["source"].to_numpy()
    reasons, values = np.full(table.num_rows, None, dtype=object), np.full(table.num_rows, np.nan)
    for source in dict.fromkeys(sources):
        rows = np.flatnonzero(sources == source)
        of_source = {name: column[rows] for name, column in columns.items()}
        judged = judge(of_source, recipe.config, recipe.languages(source), recipe.rules(source))
        reasons[rows], values[rows] = judged
    failed = measured["failure"].is_valid().to_numpy()
    reasons[failed], values[failed] = measured["failure"].to_numpy()[failed], np.nan
    return reasons, values


def _kept_rows(recipe: FilterRecipe, table: pa.Table, measured: pa.Table) -> pa.Table:
    edits = _edits(recipe, table, measured["edits"])
    texts, ids = {}, {}
    n_masked = np.zeros(table.num_rows, dtype=np.int32)
    rows = np.unique(edits.rows[edits.is_mask | edits.is_removal])
    bounds = np.searchsorted(edits.rows, [rows, rows + 1])
    for row, text, start, end in zip(rows.tolist(), table["text"].take(rows).to_pylist(), *bounds, strict=True):
        masks, removals = edits.of_row(start, end)
        texts[row], n_masked[row] = edited(text, masks, removals)
        ids[row] = text_digest(normalised(texts[row]))
    columns = {
        **{name: table[name] for name in DOCUMENT.names},
        "id": _replaced(table["id"], ids),
        "text": _replaced(table["text"], texts),
        **{name: measured[name] for name in MEASURES.names},
        "pii": pa.array(_found_pii(edits, table.num_rows), FILTERED.field("pii").type),
        "n_masked": pa.array(n_masked),
    }
    return pa.Table.from_arrays([columns[name] for name in FILTERED.names], schema=FILTERED)


@dataclass(frozen=True, slots=True)
class _Edits:
    """The edits of all rows as arrays, in the order of the rows."""

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    codes: np.ndarray  # indices in `kinds`
    kinds: list[str]
    is_mask: np.ndarray  # masked according to the settings of the source of the row
    is_removal: np.ndarray

    def of_row(self, start: int, end: int) -> tuple[list[tuple[int, int, str]], list[tuple[int, int]]]:
        """The masks and removals among the edits from index `start` to `end`."""
        spans = list(zip(self.starts[start:end].tolist(), self.ends[start:end].tolist(), strict=True))
        kinds = [self.kinds[code] for code in self.codes[start:end].tolist()]
        is_mask, is_removal = self.is_mask[start:end].tolist(), self.is_removal[start:end].tolist()
        masks = [(*span, kind) for span, kind, wanted in zip(spans, kinds, is_mask, strict=True) if wanted]
        return masks, list(compress(spans, is_removal))


def _edits(recipe: FilterRecipe, table: pa.Table, column: pa.ChunkedArray) -> _Edits:
    lengths = pc.call_function("list_value_length", [column]).to_numpy()
    rows = np.repeat(np.arange(len(column)), lengths)
    flat = pc.call_function("list_flatten", [column]).combine_chunks()
    encoded = flat.field("kind").dictionary_encode()
    kinds, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    sources = table["source"].to_numpy()[rows]
    is_mask, is_removal = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for source in set(sources.tolist()):
        own = sources == source
        is_mask |= own & np.isin(kinds, recipe.pii(source))[codes]
        is_removal |= own & np.isin(kinds, _removed_kinds(recipe, source))[codes]
    return _Edits(
        rows, flat.field("start").to_numpy(), flat.field("end").to_numpy(), codes, kinds, is_mask, is_removal
    )


def _found_pii(edits: _Edits, n_rows: int) -> list[list[tuple[str, int]]]:
    """For every row, the kinds of personal data and how often they occur, masked or not."""
    found: list[list[tuple[str, int]]] = [[] for _ in range(n_rows)]
    is_pii = np.isin(edits.kinds, PII_KINDS)[edits.codes]
    pairs, counts = np.unique(np.stack([edits.rows[is_pii], edits.codes[is_pii]]), axis=1, return_counts=True)
    for row, code, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        found[row].append((edits.kinds[code], count))
    return [sorted(one) for one in found]


def _removed_kinds(recipe: FilterRecipe, source: str) -> tuple[str, ...]:
    if "c4" not in recipe.rules(source):
        return ()
    return (LINE, CITATION, UNTERMINATED_LINE) if recipe.config.terminal_punctuation else (LINE, CITATION)


def _replaced(column: pa.ChunkedArray, values: Mapping[int, str]) -> pa.ChunkedArray:
    """`column` with the values of some rows replaced."""
    if not values:
        return column
    index = np.arange(len(column))
    index[list(values)] = len(column) + np.arange(len(values))
    new = pa.chunked_array([*column.chunks, pa.array(list(values.values()), column.type)])
    return new.take(pa.array(index))


def _dropped_rows(table: pa.Table, reasons: np.ndarray, values: np.ndarray) -> pa.Table:
    scores = pa.array(values, pa.float64(), from_pandas=True)  # null where nothing was measured
    return dropped_rows(table, FILTER.name, pa.array(reasons, pa.string()), scores)
