"""Reads the rows of a labelled file: csv, tsv, jsonl or json in UTF-8, or parquet.

In: name and content of the file, the paths of the parts of a row, and its form. Out: one record per row, or the text
of a row that cannot be read. No row disappears in another one: a quotation mark that nobody closed is an ordinary
character.

- tsv: quotation marks are ordinary characters, unless the file as a whole is written with quoted cells.
- csv: quoted cells as in RFC 4180. A record of several lines is read line by line if it breaks a rule of quoting or
  has another number of cells than the header, or if each of its lines is a row by itself: its cells in the columns of
  few values, such as labels, have values that other rows have too.
- a table without a header: its columns are named by the form; such a file may have any ending.
- json: a list of objects, or an object that has one. parquet: batch after batch, only the columns that are needed.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.csv_records import DELIMITERS, SNIFFED_RECORDS, literal_cells, records
from pipeline.corpus.examples.paths import value_at

PARQUET = ".parquet"
TABLES = (".csv", ".tsv")
FORMATS = (*TABLES, ".jsonl", ".json", PARQUET)
PARQUET_ROWS = 4096  # that are in memory at once
MOST_FIELD_CHARACTERS = 10_000_000  # per csv cell; Python's own limit is 131,072
MOST_VALUES = 1000  # distinct values of a column up to which it counts as a column of few values
LINE_END = re.compile(r"(?<=\r)(?!\n)")  # of old Macintosh files
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileForm:
    """What a file does not show by itself."""

    columns: tuple[str, ...] = ()  # of a table without a header
    delimiter: str | None = None
    records: str | None = None  # keys of the list of rows in a json file, joined by dots


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower()


def labelled_records(
    name: str, content: bytes, paths: Collection[str], stray_quotes: list[int], form: FileForm = FileForm()
) -> Iterator[Record | str]:
    """Rows of the file `name` as dictionaries; an unreadable row as its text. `paths` lead to the parts of a row.

    `stray_quotes` gets the line of every quotation mark that encloses no cell and was read as an ordinary character.

    Raises ValueError if its suffix is unknown, it is not UTF-8, or its header has the column of a part twice.
    """
    suffix = suffix_of(name)
    if suffix == ".jsonl":
        return _json_lines(name, content)
    if suffix == ".json":
        return _json_records(name, content, form.records)
    if suffix == PARQUET:
        return _parquet_records(name, content, paths)
    if suffix not in TABLES and not form.columns:
        raise ValueError(
            f"{name}: a labelled file must end in one of {', '.join(FORMATS)}, got {suffix or 'no ending'!r}; of a"
            ' table without a header, name the columns: columns = ["label", "text"]'
        )
    if form.delimiter is not None and form.delimiter.isspace() and form.delimiter != "\t":
        return _spaced_rows(name, content, form)
    return _table_rows(name, content, paths, form, stray_quotes)


def _json_lines(name: str, content: bytes) -> Iterator[Record | str]:
    return (_json_object(line) for line in text_lines(name, content) if line.strip())


def _json_records(name: str, content: bytes, path: str | None) -> Iterator[Record | str]:
    """The objects of a list; of an object of objects its values, each with its name as `key`."""
    text = "".join(text_lines(name, content))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if path is None and isinstance(_json_object(text.partition("\n")[0]), dict):
            return _json_lines(name, content)  # lines of JSON under another name
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    rows = _rows_in(name, document, path)
    if isinstance(rows, dict):
        rows = [{"key": key, **row} for key, row in rows.items()]
    return (row if isinstance(row, dict) else json.dumps(row) for row in rows)


def _rows_in(name: str, document: Any, path: str | None) -> list[Any] | dict[str, Record]:
    rows = document if path is None else value_at(document, path)
    if isinstance(rows, dict) and path is None:
        lists = [key for key, value in rows.items() if isinstance(value, list)]
        rows = rows[lists[0]] if len(lists) == 1 else rows
    if isinstance(rows, list) or (
        isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values())
    ):
        return rows
    where = "" if path is None else f" at records = {path!r}"
    keys = f" with the keys {', '.join(list(rows)[:20])}" if isinstance(rows, dict) else ""
    raise ValueError(
        f"{name}: expected a list of objects{where}, got {type(rows).__name__}{keys}; name the list by its keys:"
        ' records = "data.rows"'
    )


def _parquet_records(name: str, content: bytes, paths: Collection[str]) -> Iterator[Record]:
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            there = set(file.schema_arrow.names)
            heads = {path if path in there else path.partition(".")[0] for path in paths}
            # a missing column is refused with the names of all that are there
            columns = sorted(heads) if heads <= there else None
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                is_plain = {field.name: _is_json(field.type) for field in batch.schema}
                for row in batch.to_pylist():
                    yield {key: value if is_plain[key] or value is None else str(value) for key, value in row.items()}
    except pa.ArrowException as error:
        raise ValueError(f"{name} is not a readable parquet file: {error}") from error


def _is_json(kind: pa.DataType) -> bool:
    """Whether the values of a column are written in JSON as they are; dates and decimals become texts."""
    return not (pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_binary(kind))


def _spaced_rows(name: str, content: bytes, form: FileForm) -> Iterator[Record | str]:
    """Rows whose last column is the rest of the line, such as "1 a great film"."""
    if not form.columns:
        raise ValueError(
            f'{name}: delimiter {form.delimiter!r} needs the names of the columns: columns = ["label", "text"]'
        )
    for line in text_lines(name, content):
        bare = line.strip("\r\n")
        if bare.strip():
            cells = bare.split(form.delimiter, len(form.columns) - 1)
            yield dict(zip(form.columns, cells, strict=True)) if len(cells) == len(form.columns) else bare


def text_lines(name: str, content: bytes) -> Iterator[str]:
    """Lines with their ends. Only \\n ends a line of jsonl: U+2028 is left unescaped in JSON."""
    stream, offset = io.BytesIO(content), 0
    offset = stream.seek(len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            wrong = line[error.start : error.start + 1]
            raise ValueError(
                f"{name}, line {number}: byte {offset + error.start} is not UTF-8 ({wrong!r}); save it as UTF-8"
            ) from error
        offset += len(line)


def table_lines(name: str, content: bytes) -> Iterator[str]:
    """Lines of a file in which a carriage return alone ends a line, too."""
    for line in text_lines(name, content):
        yield from LINE_END.split(line) if "\r" in line else (line,)


def _json_object(line: str) -> Record | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return record if isinstance(record, dict) else line


def _table_rows(
    name: str, content: bytes, paths: Collection[str], form: FileForm, stray_quotes: list[int]
) -> Iterator[Record | str]:
    def lines() -> Iterator[str]:
        return table_lines(name, content)

    parts = [path.partition(".")[0] for path in paths]
    delimiter = form.delimiter or _delimiter(lines, parts, "\t" if suffix_of(name) == ".tsv" else ",", form.columns)
    first = _header(lines(), delimiter)
    header = list(form.columns) or first
    if twice := [column for column in parts if header.count(column) > 1]:
        raise ValueError(f"{name}: {header.count(twice[0])} columns are called {twice[0]!r}; rename all but one")
    if delimiter == "\t" and not is_quoted(lines(), delimiter):
        rows = (cells for line in lines() if (cells := literal_cells(line, delimiter)))
    else:
        rows = records(
            lines(), delimiter, row_test=_row_test(lines, delimiter, len(header)), stray_quotes=stray_quotes
        )
    if first == header:  # also of a file whose columns are named although it has a header
        next(rows, None)
    for cells in rows:
        if len(cells) > len(header):  # most often an unquoted delimiter in the text
            yield delimiter.join(cells)
        else:
            yield dict(zip(header, (*cells, *[None] * (len(header) - len(cells))), strict=True))


def _delimiter(
    lines: Callable[[], Iterator[str]], parts: Collection[str], usual: str, columns: Collection[str]
) -> str:
    """The first delimiter that gives the header all columns `parts`; if none does, the one of the most columns, or
    without a header the one that gives most rows as many cells as there are `columns`."""
    headers = {one: _header(lines(), one) for one in (usual, *DELIMITERS)}
    if fits := [one for one, header in headers.items() if {*parts} <= {*header}]:
        return fits[0]
    if not columns:
        return max(headers, key=lambda one: len(headers[one]))
    first = {one: islice(records(lines(), one), SNIFFED_RECORDS) for one in headers}
    return max(first, key=lambda one: sum(len(cells) == len(columns) for cells in first[one]))


def _header(lines: Iterator[str], delimiter: str) -> list[str]:
    return [name.strip() for name in next(records(lines, delimiter), [])]


def is_quoted(lines: Iterator[str], delimiter: str) -> bool:
    """Whether a program quoted the cells of a table: every quotation mark follows the rules, a column with cells that
    are quoted without need has no other cells, and some cells are quoted that need it, or the header is quoted.

    The last is asked only where a record of several lines may be several rows, between two stray quotation marks.
    """
    lines_of_record: list[str] = []

    def recorded() -> Iterator[str]:
        for line in lines:
            lines_of_record.append(line)
            yield line

    csv.field_size_limit(MOST_FIELD_CHARACTERS)
    bare: set[int] = set()
    needless: set[int] = set()
    width, needs_quotes, looks_like_rows = 0, False, False
    try:
        for record in csv.reader(recorded(), delimiter=delimiter, strict=True):
            first, last = (literal_cells(lines_of_record[place], delimiter) for place in (0, -1))
            if width and len(lines_of_record) > 1:
                if len(record) != width:
                    return False
                is_odd = len(first) == len(last) == width
                looks_like_rows, needs_quotes = looks_like_rows or is_odd, needs_quotes or not is_odd
            elif width and len(first) == len(record):
                cells = list(enumerate(zip(first, record, strict=True)))
                bare.update(i for i, (raw, cell) in cells if raw == cell)
                needless.update(i for i, (raw, cell) in cells if raw == f'"{cell}"')
                needs_quotes |= any(raw != cell and raw != f'"{cell}"' for _, (raw, cell) in cells)
            else:  # the header, of which only the quotation marks tell something, or a delimiter in a cell
                needs_quotes |= bool(width) or all(
                    raw == f'"{cell}"' for raw, cell in zip(first, record, strict=False)
                )
            width = width or len(record)
            lines_of_record.clear()
    except csv.Error:
        return False
    return not bare & needless and (needs_quotes or not looks_like_rows)


def _row_test(
    lines: Callable[[], Iterator[str]], delimiter: str, width: int
) -> Callable[[Sequence[str]], bool] | None:
    """A function that tells whether cells are those of a row, by the columns of few values."""
    values: list[dict[int, set[str]]] = []

    def is_row(cells: Sequence[str]) -> bool:
        if len(cells) != width:
            return False
        if not values:  # read on the first record of several lines; most files have none
            values.append(repeated_values(lines(), delimiter, width))
        return bool(values[0]) and all(cells[column] in known for column, known in values[0].items())

    return is_row


def repeated_values(lines: Iterator[str], delimiter: str, width: int) -> dict[int, set[str]]:
    """Column -> the values that at least two rows without quotation marks have, for columns of few values."""
    counts: dict[int, Counter[str]] = {column: Counter() for column in range(width)}
    for line in lines:
        if '"' not in line and len(cells := literal_cells(line, delimiter)) == width:
            for column in list(counts):
                counts[column][cells[column]] += 1
                if len(counts[column]) > MOST_VALUES:
                    del counts[column]
    repeated = {
        column: {value for value, n in of_column.items() if n > 1}
        for column, of_column in counts.items()
        if 2 * len(of_column) <= of_column.total()
    }
    return {column: known for column, known in repeated.items() if known}
