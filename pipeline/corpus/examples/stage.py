"""Stage `examples`: turns a labelled file into the examples of a task, split so that nothing leaks.

In: a labelled file, on this machine or inside a pinned package, which is downloaded and never run, and the `Rows` of
a kind of task, which define the content of a row. Out: examples.parquet (id, text, the columns of the kind, split,
group_id), and the dropped rows, each with its reason.

Steps: read the rows; take their parts by their paths; let the kind make an example of them or return a drop reason;
drop rows that are denied (deny_list.py), unreadable, duplicates or have conflicting labels; group near duplicates
(leaks.py); split the groups by hash, so that an added row moves no other row.
"""

import codecs
import csv
import hashlib
import io
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import pyarrow as pa
import xxhash
from annotated_types import Ge, Gt, Le, Lt

from pipeline.corpus import text_repair
from pipeline.corpus.collect.source import Source
from pipeline.corpus.deny_list import NOTHING, Keys, deny_list, read_keys
from pipeline.corpus.examples.leaks import SIMILARITY, duplicate_groups, normalised
from pipeline.store.records import DENIED, DROPPED, SPLITS, Counts, DenyList, Shards, dropped_row
from pipeline.store.settings import check_values, did_you_mean
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Built, Outcome, Stage, Store, Work

VERSION = 1
FORMATS = (".csv", ".tsv", ".jsonl")
MOST_BYTES = 1_000_000_000  # of a labelled file inside a package, which is read into memory
BEGINNING_BYTES = 1_000_000  # of a labelled file on this machine that are read before anything is built
MOST_FIELD_CHARACTERS = 10_000_000  # per csv cell; Python's own limit is 131,072
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


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A csv, tsv or jsonl file on this machine."""

    path: Path


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


@dataclass(slots=True)
class Row:
    """A row of the labelled file as an example. `reason` is the drop reason."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)  # values of the columns of the kind
    reason: str | None = None
    number: int = 0  # from 1, without the header

    @property
    def id(self) -> str:
        return text_digest(normalised(self.text))


class Rows(Protocol):
    """What a kind of task defines about its labelled rows."""

    identity: str  # distinguishes its outputs from those of other kinds in the fingerprint
    parts: tuple[str, ...]  # settings with the path of a part of a row; a file without one of the parts is refused
    columns: tuple[pa.Field, ...]  # of an example, besides those of every kind

    def row(self, parts: Mapping[str, Any], cfg: Any) -> Row:
        """An example made from the values at the paths (None if there is no value), or a drop reason."""
        ...

    def check_examples(self, examples: Sequence[Mapping[str, Any]], cfg: Any, name: str) -> None:
        """Raises ValueError if nothing can be learned from all `examples` of the file `name` together."""
        ...


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
    sha256 = _file_sha256(data.path) if isinstance(data, LabelledFile) else data.digest(cache)
    if isinstance(data, LabelledFile):
        check_beginning(kind, data.path, cfg)
    if cfg.sha256 not in (None, sha256):
        raise ValueError(f"{_name_of(data)} has sha256 {sha256}, but the setting sha256 is {cfg.sha256}")
    stage = Stage(
        name="examples",
        version=VERSION,
        function=partial(_make_examples, kind, data, cache),
        handle=Shards,
        variant=kind.identity,
    )
    return store.build(stage, replace(cfg, sha256=sha256), *(deny_list(store, denied) if denied else ()))


def _make_examples(
    kind: Rows,
    data: Source | LabelledFile,
    cache: Path,
    cfg: ExamplesConfig,
    inputs: tuple[()] | tuple[DenyList],
    work: Work,
) -> Outcome:
    return make_examples(kind, cfg, *_labelled(data, cache, work), work, read_keys(inputs))


def _name_of(data: Source | LabelledFile) -> str:
    return str(data.path) if isinstance(data, LabelledFile) else data.members[0]


def _labelled(data: Source | LabelledFile, cache: Path, work: Work) -> tuple[str, bytes]:
    """Name and content of the labelled file."""
    if isinstance(data, LabelledFile):
        return str(data.path), data.path.read_bytes()
    entries = data.entries(cache, lambda done, total: work.progress(done, total, "bytes"))
    _, member = next(entries)  # the generator keeps the archive open
    if member.refused:
        raise ValueError(f"{member.name} cannot be read: {member.refused}")
    with member.open() as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{member.name} is larger than {MOST_BYTES / 1e6:.0f} MB")
    return member.name, content


def _file_sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a task is relative to the folder of tasks.toml")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_examples(
    kind: Rows, cfg: ExamplesConfig, name: str, content: bytes, work: Work, denials: Keys = NOTHING
) -> Outcome:
    """Examples from the labelled file `name`, whose suffix determines its format.

    Raises ValueError if the format of the file does not match its suffix, a part is in no row, a split has no
    examples, or the kind refuses them.
    """
    rows = list(labelled_rows(name, content, kind, cfg))
    for row in rows:
        if denials.document_id and document_id(row.text) in denials.document_id:
            row.reason = DENIED
    _drop_repeated(rows)
    kept = [row for row in rows if row.reason is None]
    groups = duplicate_groups([row.text for row in kept], cfg.similarity)
    examples: list[dict[str, object]] = [
        {
            "id": row.id,
            "text": row.text,
            **row.values,
            "split": split_of(kept[group].id, cfg),
            "group_id": kept[group].id,
        }
        for row, group in zip(kept, groups, strict=True)
    ]
    kind.check_examples(examples, cfg, name)
    dropped = [_dropped(row, Path(name).name, work.stage) for row in rows if row.reason is not None]
    write_rows(work.directory / "examples.parquet", examples, example_schema(kind))
    write_rows(work.directory / DROPPED_FOLDER / "rows.parquet", dropped, DROPPED)
    work.progress(len(rows), len(rows), "rows")
    counts = Counts(rows_in=len(rows), kept=len(examples), dropped=dict(Counter(str(d["reason"]) for d in dropped)))
    sizes = Counter(str(example["split"]) for example in examples)
    return Outcome(
        rows=len(examples), counts=counts, measures={f"{split}_examples": sizes[split] for split in SPLITS}
    )


def example_schema(kind: Rows) -> pa.Schema:
    return pa.schema([*BEFORE, *kind.columns, *AFTER])


def read_examples(directory: Path, split: str) -> pa.Table:
    """The examples of one split in the order of the labelled file."""
    table = pa.concat_tables([read_table(path, EXAMPLE) for path in shard_paths(directory)])
    return table.filter([here == split for here in table["split"].to_pylist()])


def split_of(group_id: str, cfg: ExamplesConfig) -> str:
    """The split of a group, by its hash alone, so near duplicates stay together and added rows move no others."""
    place = xxhash.xxh3_64_intdigest(group_id.encode(), seed=cfg.seed % 2**64) / 2**64
    if place < cfg.test_fraction:
        return "test"
    return "validation" if place < cfg.test_fraction + cfg.validation_fraction else "train"


def labelled_rows(name: str, content: bytes, kind: Rows, cfg: ExamplesConfig) -> Iterator[Row]:
    """Every row, as an example or with its drop reason."""
    fields: Counter[str] = Counter()  # keys seen, for the suggestion in the error message
    paths = {part: getattr(cfg, part) for part in kind.parts}
    found: set[str] = set()
    for number, record in enumerate(_records(name, content), 1):
        if isinstance(record, str):
            row = Row(record, reason="unreadable_row")
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
            raise ValueError(
                f"{name}: {part} is {path!r}, but no row has that; the rows have: {known}{did_you_mean(path, fields)}"
            )


def check_beginning(kind: Rows, path: Path, cfg: ExamplesConfig) -> None:
    """Raises ValueError if a part of a row is missing in the header of the file, or in all rows of a small file.

    So a plan shows it, and a run is refused before anything is built. In a large jsonl file a part may first appear
    later.
    """
    with path.open("rb") as file:
        content = file.read(BEGINNING_BYTES + 1)
    is_whole = len(content) <= BEGINNING_BYTES
    try:
        for _ in labelled_rows(str(path), content if is_whole else content[: content.rfind(b"\n") + 1], kind, cfg):
            pass
    except ValueError:
        if is_whole or path.suffix.lower() != ".jsonl":
            raise


def refuse_empty_splits(examples: Sequence[Mapping[str, Any]], name: str) -> None:
    sizes = Counter(example["split"] for example in examples)
    if empty := [split for split in SPLITS if not sizes[split]]:
        raise ValueError(
            f"{name}: {len(examples)} usable rows are too few, because none are in {' and '.join(empty)}; add rows"
        )


def document_id(text: str) -> str:
    """The id of a document with this text, by which the deny list identifies it."""
    return text_digest(text_repair.normalised(text))


def repaired(text: str) -> str:
    """`text` in NFC, without outer white space, and with lone surrogates replaced, so that it is valid UTF-8."""
    return unicodedata.normalize("NFC", text.encode(errors="replace").decode()).strip()


def _records(name: str, content: bytes) -> Iterator[dict[str, Any] | str]:
    """Rows as dictionaries; an unreadable row as its text."""
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{name}: a labelled file must end in one of {', '.join(FORMATS)}, got {suffix or 'no ending'!r}"
        )
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: byte {error.start} is not UTF-8 ({content[error.start : error.start + 1]!r}); save it as UTF-8"
        ) from error
    if suffix == ".jsonl":
        for line in text.split("\n"):  # splitlines would also cut at U+2028, which JSON leaves unescaped
            if line.strip():
                yield _json_object(line)
        return
    csv.field_size_limit(MOST_FIELD_CHARACTERS)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
    try:
        for record in reader:
            # cells beyond the header's have the key None: most often an unquoted comma in the text
            yield str(record[None]) if None in record else record
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}; quote cells that contain line breaks") from error


def _json_object(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return record if isinstance(record, dict) else line


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


def _drop_repeated(rows: Sequence[Row]) -> None:
    """Of equal texts the first is kept; all are dropped if their labels differ, because the right one is unknown."""
    by_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.reason is None:
            by_text[normalised(row.text)].append(row)
    for same in by_text.values():
        if any(row.values != same[0].values for row in same):
            for row in same:
                row.reason = "conflicting_labels"
        for row in same[1:]:
            row.reason = row.reason or "duplicate"


def _dropped(row: Row, name: str, stage: str) -> dict[str, Any]:
    page = {"id": row.id, "page_id": f"{row.number}", "source": name, "url": f"{name}#{row.number}"}
    return dropped_row(page | {"text": repaired(row.text)}, stage, row.reason or "")
