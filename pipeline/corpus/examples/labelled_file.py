"""Reads the rows of a labelled file: csv, tsv or jsonl, in UTF-8.

In: name and content of the file, and the paths of the parts of a row. Out: one record per row, or the text of a row
that cannot be read. No row disappears in another one: a quotation mark that nobody closed is an ordinary character.

- tsv: quotation marks are ordinary characters, unless the file as a whole is written with quoted cells.
- csv: quoted cells as in RFC 4180. A record of several lines is read line by line if it breaks a rule of quoting or
  has another number of cells than the header, or if each of its lines is a row by itself: its cells in the columns of
  few values, such as labels, have values that other rows have too.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.corpus.csv_records import DELIMITERS, literal_cells, records

FORMATS = (".csv", ".tsv", ".jsonl")
MOST_FIELD_CHARACTERS = 10_000_000  # per csv cell; Python's own limit is 131,072
MOST_VALUES = 1000  # distinct values of a column up to which it counts as a column of few values
LINE_END = re.compile(r"(?<=\r)(?!\n)")  # of old Macintosh files
Record = dict[str, Any]


def labelled_records(
    name: str, content: bytes, paths: Collection[str], stray_quotes: list[int]
) -> Iterator[Record | str]:
    """Rows of the file `name` as dictionaries; an unreadable row as its text. `paths` lead to the parts of a row.

    `stray_quotes` gets the line of every quotation mark that encloses no cell and was read as an ordinary character.

    Raises ValueError if its suffix is unknown, it is not UTF-8, or its header has the column of a part twice.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{name}: a labelled file must end in one of {', '.join(FORMATS)}, got {suffix or 'no ending'!r}"
        )
    if suffix == ".jsonl":
        return (_json_object(line) for line in _lines(name, content) if line.strip())
    return _table_rows(name, content, paths, "\t" if suffix == ".tsv" else ",", stray_quotes)


def _lines(name: str, content: bytes) -> Iterator[str]:
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


def _json_object(line: str) -> Record | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return record if isinstance(record, dict) else line


def _table_rows(
    name: str, content: bytes, paths: Collection[str], delimiter: str, stray_quotes: list[int]
) -> Iterator[Record | str]:
    def lines() -> Iterator[str]:
        for line in _lines(name, content):
            yield from LINE_END.split(line) if "\r" in line else (line,)

    parts = [path.partition(".")[0] for path in paths]
    delimiter = _delimiter(lines, parts, delimiter)
    header = _header(lines(), delimiter)
    if twice := [column for column in parts if header.count(column) > 1]:
        raise ValueError(f"{name}: {header.count(twice[0])} columns are called {twice[0]!r}; rename all but one")
    if delimiter == "\t" and not is_quoted(lines(), delimiter):
        rows = (cells for line in lines() if (cells := literal_cells(line, delimiter)))
    else:
        rows = records(
            lines(), delimiter, row_test=_row_test(lines, delimiter, len(header)), stray_quotes=stray_quotes
        )
    next(rows, None)
    for cells in rows:
        if len(cells) > len(header):  # most often an unquoted delimiter in the text
            yield delimiter.join(cells)
        else:
            yield dict(zip(header, (*cells, *[None] * (len(header) - len(cells))), strict=True))


def _delimiter(lines: Callable[[], Iterator[str]], parts: Collection[str], usual: str) -> str:
    """The first delimiter that gives the header all columns `parts`; if none does, the one of the most columns."""
    headers = {one: _header(lines(), one) for one in (usual, *DELIMITERS)}
    fits = (one for one, header in headers.items() if {*parts} <= {*header})
    return next(fits, max(headers, key=lambda one: len(headers[one])))


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
