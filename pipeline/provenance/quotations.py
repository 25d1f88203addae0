"""Finds and removes quotations of forgotten texts in what MLflow and Dagster have stored in the data folder.

In: forgotten texts and the ids of their documents. Out: places with a text that shares a run of 8 words with a
forgotten text (a shorter one of at least 5 words: all its words), or that names such a document; and the same places
without it. Searched are the folders `mlflow`, `dagster` and `tracking`: every column of every SQLite database, also
texts inside JSON, and every file that holds text, also compressed.

In a database and in a JSON file, the text is replaced by MARK; lines of a log or a list are removed; other files,
such as a report that quotes the text, are removed whole. Databases are rewritten (VACUUM), because SQLite otherwise
only marks the bytes of the old text as free.
"""

import gzip
import html
import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.examples.leaks import occurring
from pipeline.store.layout import Layout
from pipeline.store.shards import read_table, write_bytes

MARK = "[removed]"
FEWEST_WORDS = 5  # fewer occur anywhere by chance
SHORTEST = 2 * FEWEST_WORDS - 1  # characters of so many words
DOCUMENT_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
SQLITE = b"SQLite format 3\0"
BINARY = {".safetensors", ".png", ".db-wal", ".db-shm", ".lock", ".arrow"}
JSON_NAMES = {".json", ".jsonl"}
LINE_NAMES = {".log", ".out", ".err", ".txt"}  # of files whose lines are removed one by one
MOST_BYTES = 256 << 20  # of a file that is searched; none of MLflow's or Dagster's texts is as large
ROWS_AT_ONCE = 2000
WAIT_SECONDS = 30.0  # for another process to finish writing
IsQuotation = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quotations:
    """Files with a quotation, the number of values of each database that contain one, and databases with free pages,
    which may contain what was deleted before."""

    files: tuple[Path, ...]
    values: dict[Path, int]
    loose: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.files or self.values)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What must not be quoted."""

    texts: set[str]
    ids: set[str]

    def quoted_in(self, texts: Collection[str]) -> set[str]:
        """Those of `texts` that contain a quotation."""
        long = [text for text in texts if len(text.split()) >= FEWEST_WORDS]
        found = {long[i] for i in occurring([html.unescape(text) for text in long], self.texts)}
        return found | {text for text in texts if not self.ids.isdisjoint(DOCUMENT_ID.findall(text))}


def find_quotations(layout: Layout, forgotten: Forgotten) -> Quotations:
    """All places with a quotation; nothing is changed."""
    files, values, loose = [], {}, []
    for path in _searched(layout):
        if _is_database(path):
            with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
                if n_values := sum(1 for _ in _quoting_values(database, forgotten)):
                    values[path] = n_values
                elif database.execute("PRAGMA freelist_count").fetchone()[0]:
                    loose.append(path)
        elif forgotten.quoted_in(set(_texts_of(path))):
            files.append(path)
    return Quotations(files=tuple(files), values=values, loose=tuple(loose))


def remove_quotations(found: Quotations, forgotten: Forgotten) -> None:
    """Remove what `find_quotations` found. Raises ValueError when another process uses a database."""
    for path in (*found.values, *found.loose):
        try:
            _clear_database(path, forgotten)
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{path} cannot be rewritten ({error}); stop `gristmill ui` and every run, then purge again"
            ) from error
    for path in found.files:
        if path.suffix in JSON_NAMES or path.suffix in LINE_NAMES:
            write_bytes(path, b"".join(_cleared_lines(path, forgotten)))
        else:
            path.unlink()


def _searched(layout: Layout) -> Iterator[Path]:
    for folder in (layout.mlflow, layout.dagster_home, layout.tracking):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix not in BINARY:
                yield path


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _texts_of(path: Path) -> Iterator[str]:
    """The texts in a file: of JSON each string, of Parquet each cell, else the whole."""
    if path.suffix == ".parquet":
        for row in read_table(path).to_pylist():
            yield from _strings(row)
        return
    content = _content(path)
    if content is None:
        return
    if path.suffix not in JSON_NAMES | LINE_NAMES:
        yield content
        return
    for line in [content, *content.splitlines()]:
        yield from _strings(_parsed(line, line))


def _content(path: Path) -> str | None:
    """The text of a file, unpacked; None if it is no text."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                return packed.read(MOST_BYTES).decode()
        return None if path.stat().st_size > MOST_BYTES else path.read_text("utf-8")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        return None


def _cleared_lines(path: Path, forgotten: Forgotten) -> Iterator[bytes]:
    """The lines of a file of JSON or of a log without quotations.

    A cleared line of JSON keeps its length, because a journal records how many of its bytes were delivered.
    """
    content = _content(path) or ""
    if path.suffix in LINE_NAMES and not forgotten.quoted_in(set(content.splitlines())):
        return  # it stands on several lines
    if path.suffix == ".json":
        quoted = forgotten.quoted_in(set(_strings(_parsed(content, content))))
        yield json.dumps(_cleared(json.loads(content), quoted.__contains__), indent=1).encode()
        return
    for line in content.splitlines(keepends=True):
        parsed = _parsed(line, line)
        quoted = forgotten.quoted_in(set(_strings(parsed)))
        if not quoted:
            yield line.encode()
        elif path.suffix == ".jsonl":
            cleared = json.dumps(_cleared(parsed, quoted.__contains__)).encode()
            yield cleared.ljust(len(line.encode()) - 1) + b"\n"


def _quoting_values(database: sqlite3.Connection, forgotten: Forgotten) -> Iterator[tuple[str, str, int, str]]:
    """Table, column, row id and cleared value of every text with a quotation."""
    for table, column in _columns(database):
        rows = database.execute(
            f"SELECT rowid, {column} FROM {table} WHERE typeof({column}) = 'text' AND length({column}) >= {SHORTEST}"
        )
        while some := rows.fetchmany(ROWS_AT_ONCE):
            parsed = [(row_id, value, _parsed(value, value)) for row_id, value in some]
            quoted = forgotten.quoted_in({text for *_, one in parsed for text in _strings(one)})
            if not quoted:
                continue
            for row_id, value, one in parsed:
                if quoted.isdisjoint(_strings(one)):
                    continue
                cleared = _cleared(one, quoted.__contains__)
                yield table, column, row_id, MARK if one is value else json.dumps(cleared)


def _columns(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Quoted names of every table and its columns."""
    tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    for name, sql in tables:
        if name.startswith("sqlite_") or "WITHOUT ROWID" in (sql or "").upper():
            continue
        table = _identifier(name)
        for column in database.execute(f"PRAGMA table_info({table})").fetchall():
            yield table, _identifier(column[1])


def _clear_database(path: Path, forgotten: Forgotten) -> None:
    with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        database.execute("PRAGMA secure_delete = ON")
        with database:
            for table, column, row_id, cleared in list(_quoting_values(database, forgotten)):
                database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (cleared, row_id))
        database.execute("VACUUM")
        is_busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise sqlite3.OperationalError("another process reads it")


def _parsed(text: str, otherwise: Any) -> Any:
    """The JSON value that a text contains, if it is an object or a list."""
    if text.lstrip()[:1] not in ("{", "["):
        return otherwise
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def _strings(value: Any) -> Iterable[str]:
    """All texts in a JSON value, also those inside a text that is JSON itself."""
    if isinstance(value, str):
        inner = _parsed(value, None)
        if inner is None:
            yield value
        else:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _strings(str(key))
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _cleared(value: Any, is_quotation: IsQuotation) -> Any:
    """A JSON value with MARK in place of every quotation."""
    if isinstance(value, str):
        inner = _parsed(value, None)
        if inner is None:
            return MARK if is_quotation(value) else value
        return json.dumps(_cleared(inner, is_quotation)) if any(map(is_quotation, _strings(inner))) else value
    if isinstance(value, dict):
        return {_cleared(key, is_quotation): _cleared(one, is_quotation) for key, one in value.items()}
    if isinstance(value, list):
        return [_cleared(one, is_quotation) for one in value]
    return value


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
