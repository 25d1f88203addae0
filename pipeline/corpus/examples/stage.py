"""Stage `examples`: turns labelled files into the examples of a task, split so that nothing leaks.

In: labelled files, on this machine, inside a pinned package, which is downloaded and never run, or at a pinned
address, and the `Rows` of a kind of task, which define the content of a row. Out: examples.parquet (id, text, the
columns of the kind, split, group_id), examples.md for people, and the dropped rows, each with its reason.

Steps: read the rows; take their parts by their paths; let the kind make an example of them or return a drop reason;
drop rows that are denied (deny_list.py), unreadable, duplicates or have conflicting labels, and rows with a near
duplicate in a given test or validation split; group near duplicates (near_texts.py); divide the groups (splits.py).
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import text_repair
from pipeline.corpus.collect.source import Source
from pipeline.corpus.deny_list import NOTHING, Keys, deny_list, read_keys
from pipeline.corpus.examples.data_files import (
    Data,
    LabelledFile,
    ReadFile,
    digest_of,
    labelled_files,
    name_of,
    read_data,
)
from pipeline.corpus.examples.labelled_rows import check_beginning, labelled_rows
from pipeline.corpus.examples.overview import contradictions, examples_overview, group_warnings
from pipeline.corpus.examples.protocol import ExamplesConfig, Rows
from pipeline.corpus.examples.rows import ExampleRows, in_pieces
from pipeline.corpus.examples.splits import TRAIN, divided, leaking, row_groups
from pipeline.store.records import DENIED, DROPPED, SPLITS, Counts, DenyList, Shards
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_table, write_text
from pipeline.store.store import UNICODE, Built, Outcome, Stage, Store, Work

VERSION = 4
SHOWN_LINES = 10  # in a warning
ROWS_AT_ONCE = 20_000  # that become a piece of a table
BEFORE = (
    pa.field("id", pa.string(), nullable=False),  # xxh3_128 of the normalised text, and of the key if a row has one
    pa.field(
        "text", pa.large_string(), nullable=False
    ),  # used to compare examples with each other and with the corpus
)
AFTER = (
    pa.field("split", pa.string(), nullable=False),  # train, validation or test
    pa.field("group_id", pa.string(), nullable=False),  # id of the first row of its group; a group has one split
)
EXAMPLE = pa.schema([*BEFORE, *AFTER])  # columns of every kind; those of one kind are in between
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Files:
    """The labelled files of a task, and the split of the rows of each."""

    data: Source | ReadFile
    split: str


def build_examples(
    store: Store,
    kind: Rows,
    data: Data,
    cfg: ExamplesConfig,
    cache: Path,
    *,
    held_out: Mapping[str, Data] | None = None,
    denied: Path | None = None,
) -> Built:
    """The examples of a task. `held_out` has the data of given splits, by the name of the split. `cache` is the
    folder of downloaded packages, `denied` the deny list, if it exists.

    Raises ValueError if there is no such file, package or member, or its sha256 differs from `cfg`.
    """
    all_data = {TRAIN: data, **(held_out or {})}
    files, digests = [], {}
    for split, one in all_data.items():
        files.append(_Files(read_data(one), split))
        key = "sha256" if split == TRAIN else f"{split}_sha256"
        digests[key] = _checked_digest(one, files[-1], getattr(cfg, key), key, cache)
        if isinstance(one, LabelledFile):
            check_beginning(kind, one.path, cfg)
    if held_out and cfg.split is not None:
        raise ValueError(
            f"the split of a row is given twice, by its column split = {cfg.split!r} and by"
            f" {' and '.join(f'{split}_data' for split in held_out)}; remove one of them"
        )
    stage = examples_stage(kind, partial(_make_examples, kind, tuple(files), cache))
    return store.build(stage, replace(cfg, **digests), *(deny_list(store, denied) if denied else ()))


def _checked_digest(data: Data, files: _Files, expected: str | None, key: str, cache: Path) -> str:
    sha256 = digest_of(files.data, cache)
    if expected not in (None, sha256):
        raise ValueError(f"{name_of(data)} has sha256 {sha256}, but the setting {key} is {expected}")
    return sha256


def examples_stage(kind: Rows, function: Callable[..., Outcome]) -> Stage:
    return Stage(
        name="examples",
        version=VERSION,
        function=function,
        handle=Shards,
        libraries=("scipy", UNICODE),
        variant=kind.rows_identity,
    )


def _make_examples(
    kind: Rows,
    files: tuple[_Files, ...],
    cache: Path,
    cfg: ExamplesConfig,
    inputs: tuple[()] | tuple[DenyList],
    work: Work,
) -> Outcome:
    def contents() -> Iterator[tuple[str, bytes, str]]:
        for one in files:
            for name, content in labelled_files(
                one.data, cache, lambda done, total: work.progress(done, total, "bytes")
            ):
                yield name, content, one.split

    return make_examples(kind, cfg, contents(), work, read_keys(inputs))


def make_examples(
    kind: Rows, cfg: ExamplesConfig, files: Iterable[tuple[str, bytes, str]], work: Work, denials: Keys = NOTHING
) -> Outcome:
    """Examples from labelled files: the name of each, whose suffix determines its format, its content and its split.

    Raises ValueError if the format of a file does not match its suffix, a part is in no row, a split has no
    examples, or the kind refuses them; it says how many rows were dropped for which reason.
    """
    rows = ExampleRows([column.name for column in kind.columns])
    names = [_read_file(rows, kind, cfg, file, work, denials) for file in files]
    rows.drop_repeated()
    rows.drop(leaking(rows.texts, rows.splits, cfg.similarity))
    if rows.splits and TRAIN not in rows.splits:
        raise ValueError(
            f"{names[0]}: all usable rows are for {' or '.join(sorted(set(rows.splits)))}, none for train"
        )
    first = row_groups(rows.texts, rows.groups, rows.splits, cfg.similarity)
    strata = [tuple(kind.strata(own)) for own in rows.dictionaries()]
    found = [] if rows.have_keys else contradictions(rows.texts, first, strata, cfg.similarity)
    splits = divided([rows.ids[place] for place in first], strata, rows.splits, cfg)
    examples = _example_table(rows, splits, first, example_schema(kind))
    name = names[0] if names else "no file"
    try:
        kind.check_examples(examples, cfg, name)
    except ValueError as error:
        raise ValueError(f"{error}. {rows.summary()}") from error
    warnings = [*kind.example_warnings(examples), *group_warnings(rows, examples, found, strata, first)]
    _warn(name, rows, warnings)
    overview = examples_overview(rows, examples, warnings, kind.describe_examples(examples))
    write_text(work.directory / "examples.md", overview)
    write_table(work.directory / "examples.parquet", examples)
    write_table(work.directory / DROPPED_FOLDER / "rows.parquet", _table(rows.dropped(work.stage), DROPPED))
    work.progress(rows.n_read, rows.n_read, "rows")
    counts = Counts(rows_in=rows.n_read, kept=examples.num_rows, dropped=dict(rows.reasons))
    sizes = Counter(examples["split"].to_pylist())
    measures = {f"{split}_examples": sizes[split] for split in SPLITS} | {
        "stray_quotes": rows.n_stray_quotes,
        "contradictions": len(found),
    }
    return Outcome(rows=examples.num_rows, counts=counts, measures=measures)


def _read_file(
    rows: ExampleRows, kind: Rows, cfg: ExamplesConfig, file: tuple[str, bytes, str], work: Work, denials: Keys
) -> str:
    """Adds the rows of a file; returns its name."""
    name, content, split = file
    rows.files.append(Path(name).name)
    stray_quotes: list[int] = []
    for row in labelled_rows(name, content, kind, cfg, stray_quotes):
        if denials.document_id and document_id(row.text) in denials.document_id:
            row.reason = DENIED
        rows.add(row, split)
        if rows.n_read % ROWS_AT_ONCE == 0:
            work.progress(rows.n_read, None, "rows")
    rows.n_stray_quotes += len(stray_quotes)
    if stray_quotes:
        log.warning(
            "%s: in %d rows quotation marks do not enclose a cell; they are read as ordinary characters. Lines: %s",
            *(name, len(stray_quotes), ", ".join(map(str, stray_quotes[:SHOWN_LINES]))),
        )
    return name


def _warn(name: str, rows: ExampleRows, warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.warning("%s: %s", name, warning)
    if rows.reasons:
        log.warning("%s: %s", name, rows.summary())


def _example_table(rows: ExampleRows, splits: Sequence[str], first: Sequence[int], schema: pa.Schema) -> pa.Table:
    """The rows as a table; their texts and values are gone from `rows` afterwards, so that memory has them once."""
    columns: dict[str, list[Any]] = {name: [own[i] for own in rows.values] for i, name in enumerate(rows.names)}
    rows.values.clear()
    columns |= {"id": rows.ids, "group_id": [rows.ids[place] for place in first], "split": list(splits)}
    columns["text"] = rows.texts
    arrays = {}
    for name in columns:
        arrays[name] = pa.array(columns[name], schema.field(name).type)
        columns[name].clear()
    return pa.table({name: arrays[name] for name in schema.names}, schema)


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(pa.Table.from_pylist(piece, schema=schema) for piece in in_pieces(rows, ROWS_AT_ONCE))


def example_schema(kind: Rows) -> pa.Schema:
    return pa.schema([*BEFORE, *kind.columns, *AFTER])


def read_examples(directory: Path, split: str, columns: list[str] | None = None) -> pa.Table:
    """The examples of one split in the order of the labelled file, all columns or some."""
    names = None if columns is None else [*columns, "split"]
    table = pa.concat_tables([read_table(path, EXAMPLE, names) for path in shard_paths(directory)])
    return table.filter(pc.field("split") == split)


def with_column(examples: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """The examples with other values in a column."""
    field = examples.schema.field(name)
    return examples.set_column(examples.schema.get_field_index(name), field, pa.array(values, field.type))


def refuse_empty_splits(examples: pa.Table, name: str) -> None:
    sizes = Counter(examples["split"].to_pylist())
    if not (empty := [split for split in SPLITS if not sizes[split]]):
        return
    groups = Counter(examples["group_id"].to_pylist())
    n_rows, (_, largest) = examples.num_rows, groups.most_common(1)[0] if groups else ("", 0)
    if largest > max(1, n_rows / 2):
        texts = f"all {n_rows:,}" if largest == n_rows else f"{largest:,} of {n_rows:,}"
        raise ValueError(
            f"{name}: {texts} usable rows form one group of near duplicates or of one value of the setting group, and"
            f" a group is never divided, so that nothing falls to {' and '.join(empty)}. The rows may follow one"
            " template: raise the setting similarity (1 = only texts with the same words form a group), or add rows"
            " with other texts"
        )
    raise ValueError(
        f"{name}: {n_rows:,} usable rows are too few, because none are in {' and '.join(empty)}; add rows"
        + (f" (near duplicates stay together: there are {len(groups):,} groups)" if len(groups) < n_rows else "")
    )


def document_id(text: str) -> str:
    """The id of a document with this text, by which the deny list identifies it."""
    return text_digest(text_repair.normalised(text))
