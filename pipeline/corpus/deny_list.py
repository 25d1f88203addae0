"""The deny list: pages and texts that must be kept out of the corpus, as one JSON object per line of denied.jsonl.

In: a file that `gristmill forget` writes and people edit. Out: `Denial` rows, the keys for one source, and
`deny_list`, which stores the keys of all rows, so that records contain the list that was in force.

A row contains addresses and hashes and never text, because the list must not keep what it removes. It takes effect in
two places:
- collect, by url and page_id, in the source of the row (in every source if it names none), so that no output contains
  the content of a denied page;
- filter, by url, page_id and document_id in every source, so that the same text does not return from elsewhere.

Rows are lines, so that an error has a line number and people can append a row without reading the others.
"""

import codecs
import dataclasses
import datetime
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from filelock import FileLock

from pipeline.corpus.text_repair import as_text
from pipeline.store.records import DenyList
from pipeline.store.settings import check_values, read
from pipeline.store.shards import read_table, text_digest, write_rows, write_text
from pipeline.store.store import NOT_IDENTITY, UNICODE, Outcome, Stage, Store, Work

KEYS_FILE = "denied.parquet"
KEYS = pa.schema([pa.field("kind", pa.string(), nullable=False), pa.field("value", pa.string(), nullable=False)])
KINDS = ("url", "page_id", "document_id")  # each of them alone denies a page
MOST_LINE_BYTES = 100_000  # a row has a few hundred; a longer line is not a deny list
SHOWN_CHARACTERS = 60  # shown of an invalid line
ROW_EXAMPLE = '{"url": "https://example.org/page.html", "date": "2026-01-31", "reason": "asked for"}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """One line of the list. A page is denied by any row with its url, page_id or document_id."""

    url: Annotated[str | None, "Address of the page; whatever is found there is denied."] = None
    page_id: Annotated[str | None, "Id of the page: this content at this address."] = None
    document_id: Annotated[str | None, "Hash of the text that `clean` extracts, wherever it is found."] = None
    source: Annotated[
        str | None, "Table of sources.toml that is collected without the page; none for every source."
    ] = None
    date: Annotated[str, "Date of the denial, as YYYY-MM-DD."]
    reason: Annotated[str, "Why the page is denied, for people who read the list."]
    asked_by: Annotated[str | None, "Who asked for the denial."] = None
    duplicate_of: Annotated[str | None, "Page id of the row because of which this one was denied."] = None
    address: Annotated[
        str | None, "Where a row without url was found, for people who read the list: this address is not denied."
    ] = None

    def __post_init__(self) -> None:
        check_values(self)
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and (not value.strip() or as_text(value) != value):
                raise ValueError(f"{name} is {repr(value)[:SHOWN_CHARACTERS]}, expected a text")
        if not any(getattr(self, kind) for kind in KINDS):
            raise ValueError(f"the row denies nothing; expected at least one of {', '.join(KINDS)}")
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"date is {self.date!r}, expected YYYY-MM-DD") from error

    def denies(self) -> Iterator[tuple[str, str]]:
        """(kind, value) of every key that the row denies."""
        for kind in KINDS:
            if (value := getattr(self, kind)) is not None:
                yield kind, value

    def told(self) -> str:
        """The reason, for instance "asked for, on 2026-01-31 by the legal department"."""
        return f"{self.reason}, on {self.date}" + (f" by {self.asked_by}" if self.asked_by else "")


@dataclass(frozen=True, slots=True)
class Keys:
    """All denied keys, for fast look-up."""

    url: frozenset[str] = frozenset()
    page_id: frozenset[str] = frozenset()
    document_id: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.url or self.page_id or self.document_id)

    def digest(self) -> str:
        """Digest of all keys, independent of the order of the rows; "" if nothing is denied."""
        return text_digest(*(text for kind, value in self.pairs() for text in (kind, value))) if self else ""

    def pairs(self) -> list[tuple[str, str]]:
        return [(kind, value) for kind in KINDS for value in sorted(getattr(self, kind))]


NOTHING = Keys()


def read_denials(path: Path) -> list[Denial]:
    """The rows of the list, none if there is no file. A ValueError names file, line and what is expected."""
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected lines such as {ROW_EXAMPLE}")
    denials = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if len(line) > MOST_LINE_BYTES:
                raise ValueError(
                    f"{path}, line {number}: longer than {MOST_LINE_BYTES:,} bytes ({_beginning(line)} ...), expected"
                    f" one row such as {ROW_EXAMPLE}; fix or remove the line"
                )
            if line.strip():
                denials.append(_denial(line, f"{path}, line {number}"))
    return denials


def keys_of(denials: Iterable[Denial]) -> Keys:
    values: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for denial in denials:
        for kind, value in denial.denies():
            values[kind].add(value)
    return Keys(*(frozenset(values[kind]) for kind in KINDS))


def keys_of_source(denials: Iterable[Denial], source: str) -> Keys:
    """The keys that `collect` drops from a source: addresses and pages, because texts are not known yet."""
    concerned = keys_of(denial for denial in denials if denial.source in (None, source))
    return dataclasses.replace(concerned, document_id=frozenset())


def change_denials(path: Path, change: Callable[[list[Denial]], tuple[Collection[Denial], Sequence[Denial]]]) -> None:
    """Rewrite the list atomically: `change` gets its rows and returns the rows to remove and the rows to append.

    A lock serialises changes, so that concurrent ones lose nothing; all other lines are kept exactly as they are. A
    process that is killed leaves either the old list or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_path(path)):
        for leftover in path.parent.glob(f".{path.name}.*.part"):  # left by a process that was killed
            leftover.unlink()
        removed, added = change(read_denials(path))
        lines = path.read_text("utf-8-sig").split("\n") if path.exists() else []
        kept = [line for line in lines if line.strip() and _denial(line.encode(), str(path)) not in removed]
        lines = [*kept, *map(_line, added)]
        if removed or added:
            write_text(path, "".join(f"{line}\n" for line in lines))


def lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenyListRecipe:
    """What determines the stored keys; made by `deny_list`."""

    digest: str
    keys: Keys = field(metadata=NOT_IDENTITY)


def write_keys(recipe: DenyListRecipe, inputs: tuple[()], work: Work) -> Outcome:
    rows: list[dict[str, object]] = [{"kind": kind, "value": value} for kind, value in recipe.keys.pairs()]
    write_rows(work.directory / KEYS_FILE, rows, KEYS)
    return Outcome(rows=len(rows))


DENY_LIST = Stage(name="deny_list", version=1, function=write_keys, handle=DenyList, libraries=(UNICODE,))


def deny_list(store: Store, path: Path) -> tuple[DenyList, ...]:
    """The keys of the list as an input of `filter` and of labelled examples; () if nothing is denied."""
    keys = keys_of(read_denials(path))
    return (store.build(DENY_LIST, DenyListRecipe(digest=keys.digest(), keys=keys)).handle,) if keys else ()


def read_keys(handles: Sequence[DenyList]) -> Keys:
    """The keys in the handle that `deny_list` returned, if there is one."""
    if not handles:
        return NOTHING
    (handle,) = handles
    table = read_table(handle.directory / KEYS_FILE, KEYS)
    values: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for kind, value in zip(table["kind"].to_pylist(), table["value"].to_pylist(), strict=True):
        values[kind].add(value)
    return Keys(*(frozenset(values[kind]) for kind in KINDS))


def denied_rows(documents: pa.Table, denials: Keys) -> list[bool]:
    """For every document, whether its address, its page or its text is denied."""
    is_denied = [False] * documents.num_rows
    for column, values in (("url", denials.url), ("page_id", denials.page_id), ("id", denials.document_id)):
        if values:
            found = [value in values for value in documents[column].to_pylist()]
            is_denied = [one or other for one, other in zip(is_denied, found, strict=True)]
    return is_denied


def denied_pages(documents: Path, denials: Keys) -> str:
    """Digest of the denied pages of a shard, so that denying other pages does not rebuild what is made of it."""
    if not denials:
        return ""
    table = read_table(documents, columns=["id", "page_id", "url"])
    denied = table["page_id"].filter(pa.array(denied_rows(table, denials), pa.bool_())).to_pylist()
    return text_digest(*denied) if denied else ""


def _denial(line: bytes, where: str) -> Denial:
    try:
        row: Any = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: {_beginning(line)} is not a JSON object, expected a row such as {ROW_EXAMPLE}; fix or remove"
            " the line"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {_beginning(line)} is not a JSON object, expected a row such as {ROW_EXAMPLE}")
    return read(Denial, row, where)


def _line(denial: Denial) -> str:
    row = {name: value for name in Denial.__dataclass_fields__ if (value := getattr(denial, name)) is not None}
    return json.dumps(row, ensure_ascii=False)


def _beginning(line: bytes) -> str:
    return repr(line[:SHOWN_CHARACTERS].decode("utf-8", "replace"))
