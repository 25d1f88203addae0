"""Tables: csv, tsv and parquet.

In: an open file. Out: one page per row, by the columns of the source, in bounded memory: rows are streamed, and a row
above the limit is refused. The content of a file, and not its suffix, shows by what its columns are separated.

A table is read as records if it has a column named text_key, or, if the source does not set it, a column of texts
under a usual name. Otherwise text_key decides: if it was not set, the whole table becomes one page; if it was, the
file is refused as no_text_key.
"""

import codecs
import csv
import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.charsets import ERRORS
from pipeline.corpus.collect.pages import (
    DEFAULT_TEXT_KEY,
    PREVIEW_BYTES,
    TABLE_TYPES,
    Found,
    Item,
    Note,
    Refused,
    page_of_record,
    refused,
    text_key_in,
)
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.unpacking import Budget, Rewound
from pipeline.corpus.csv_records import DELIMITERS, SNIFFED_CHARACTERS, records, sniffed_delimiter
from pipeline.corpus.text_repair import as_text, encoding_of

CSV, TSV = TABLE_TYPES
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8
SEPARATOR_LINE = re.compile('"?sep=(.)"?[\r\n]+')  # by which Excel is told the delimiter
SAMPLE_ROWS = 50
TEXT_CHARACTERS = 20  # mean length from which a column with a usual name contains texts, and not words or numbers
BATCH_ROWS = 64
BATCH_BYTES = 500_000_000  # limit for the rows of one batch
SPOOL_BYTES = 16_000_000  # a larger parquet file inside an archive is copied to a temporary file
MAX_COPIED = 16  # times the limit of a page: a larger parquet file inside an archive is refused


def table_pages(stream: BinaryIO, url: str, media_type: str, source: Source, max_bytes: int) -> Iterator[Item]:
    """One page per row of csv or tsv, or one page with the whole file.

    Cells beyond the last column belong to its text, in which somebody did not quote a separator.
    """
    head = stream.read(4 * SNIFFED_CHARACTERS)
    rest = io.BufferedReader(Rewound(head, stream))
    encoding = encoding_of(head, is_cut=True)
    text = _head_text(head, encoding)
    separator = SEPARATOR_LINE.match(text)
    text = text[separator.end() :] if separator else text
    sniffed = separator[1] if separator else sniffed_delimiter(text)
    delimiter, names, key = _column(text, sniffed, media_type, source)
    if key is None:
        own_type = {None: media_type, "\t": TSV}.get(sniffed, CSV) if media_type in TABLE_TYPES else media_type
        yield _without_column(rest, url, own_type, names, source, max_bytes)
        return
    lines = _Lines(rest, encoding, max_bytes)
    if separator:
        next(iter(lines))
    source, stray, n_longer = replace(source, text_key=key), [], 0
    for number, cells in enumerate(records(lines, delimiter, stray_quotes=stray)):
        if lines.was_cut:
            yield Refused(f"{url}#row={number}", "too_large", b"", max_bytes)
        elif number and any(cell.strip() for cell in cells):
            if any(cell.strip() for cell in cells[len(names) :]):
                n_longer += names[-1] != key
                cells = [*cells[: len(names) - 1], delimiter.join(cells[len(names) - 1 :])]
            values = dict(zip(names, (*cells, *[""] * (len(names) - len(cells))), strict=False))
            yield page_of_record(values, f"{url}#row={number}", source, max_bytes)
        lines.was_cut = False
    if stray:
        which = f"line {stray[0]:,}" if len(stray) == 1 else f"{len(stray):,} lines, the first of them {stray[0]:,}"
        yield Note(url, f"a quotation mark that is not closed as csv requires was read as a character in {which}")
    if n_longer:
        rows = "1 row has" if n_longer == 1 else f"{n_longer:,} rows have"
        yield Note(url, f"{rows} more cells than there are columns, so that their text may be in another column")


def _column(text: str, sniffed: str | None, media_type: str, source: Source) -> tuple[str, list[str], str | None]:
    """The delimiter, the names of the columns, and the name of the column of the texts, if there is one."""
    own = "\t" if media_type == TSV else ","
    order = [own, *DELIMITERS] if sniffed is None else [sniffed, own, *DELIMITERS]
    found = {d: [[cell.strip() for cell in row] for row in _first_records(text, d)] for d in dict.fromkeys(order)}
    if sniffed and len(found[sniffed][0] if found[sniffed] else ()) < 2:
        order = [own, *order]
    for delimiter in order:
        names, *rows = found[delimiter] or [[]]
        key = text_key_in(names, source)
        if key is not None and _contains_texts(key, names, rows, source):
            return delimiter, names, key
    return order[0], next(iter(found[order[0]]), []), None


def _first_records(text: str, delimiter: str) -> list[list[str]]:
    return list(islice(records(text.split("\n"), delimiter), SAMPLE_ROWS))


def _contains_texts(key: str, names: Sequence[str], rows: Sequence[Sequence[str]], source: Source) -> bool:
    """A column that the source does not name must be one of texts: `body` may be the name of a star."""
    if key.strip().casefold() == source.text_key.strip().casefold():
        return True
    place = names.index(key)
    cells = [row[place] for row in rows if len(row) > place and row[place]]
    return bool(cells) and sum(map(len, cells)) >= TEXT_CHARACTERS * len(cells)


def _without_column(
    stream: Any, url: str, media_type: str, names: Sequence[str], source: Source, max_bytes: int
) -> Found | Refused:
    content = stream.read(max_bytes + 1)
    if not content.strip():
        return Refused(url, "empty")
    if source.text_key != DEFAULT_TEXT_KEY:
        return _no_column(url, names, source)
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
    return Found(url, media_type, None, content)


def _no_column(url: str, names: Sequence[str], source: Source) -> Refused:
    return refused(url, "no_text_key", f"found the columns {', '.join(names)}; text_key is {source.text_key!r}")


def _head_text(head: bytes, encoding: str) -> str:
    return codecs.getincrementaldecoder(encoding)(ERRORS).decode(head)[:SNIFFED_CHARACTERS]


class _Lines:
    """Lines of at most `max_bytes` characters; a byte that is not UTF-8 is read as windows-1252."""

    def __init__(self, stream: Any, encoding: str, max_bytes: int):
        errors = "surrogateescape" if encoding.startswith("utf-8") else ERRORS
        self.text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
        self.max_characters = max_bytes
        self.was_cut = False  # whether a line since the last check was longer

    def __iter__(self) -> Iterator[str]:
        while line := self.text.readline(self.max_characters + 1):
            piece = line
            while len(piece) > self.max_characters and not piece.endswith(("\n", "\r")):
                self.was_cut = True
                piece = self.text.readline(self.max_characters + 1)
            if ESCAPED.search(line):
                line = line.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
            yield line


def parquet_pages(
    stream: BinaryIO, url: str, source: Source, max_bytes: int, budget: Budget
) -> Iterator[Found | Refused]:
    """One page per row, or one page of csv with the whole table. The texts of all rows are spent from `budget`."""
    try:
        with _seekable(stream, MAX_COPIED * max_bytes) as seekable:
            if seekable is None:
                yield Refused(url, "too_large", b"", MAX_COPIED * max_bytes)
                return
            with pq.ParquetFile(
                seekable,
                buffer_size=1 << 20,
                thrift_string_size_limit=1 << 26,
                thrift_container_size_limit=1 << 20,
                page_checksum_verification=True,
            ) as file:
                for item in _parquet_rows(file, url, source, max_bytes):
                    if isinstance(item, Found):  # a million equal rows take no more space in the file than one
                        budget.spend(len(item.content))
                    yield item
    except (pa.ArrowException, OverflowError) as error:
        yield refused(url, "unreadable", str(error))


@contextmanager
def _seekable(stream: BinaryIO, max_bytes: int) -> Iterator[BinaryIO | None]:
    """A file on this machine itself, a copy of a member of an archive; None for a copy above the limit."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
        yield stream
        return
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as copy:
        n_bytes = 0
        while (block := stream.read(1 << 20)) and n_bytes <= max_bytes:
            n_bytes += len(block)
            copy.write(block)
        copy.seek(0)
        yield None if n_bytes > max_bytes else copy  # type: ignore[misc]  # it behaves like a BinaryIO


def _parquet_rows(file: pq.ParquetFile, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    names = file.schema_arrow.names
    if not file.metadata.num_rows:
        yield Refused(url, "empty")
    elif (key := _text_column(file, source)) is not None:
        source = replace(source, text_key=key)
        keys = (source.text_key, source.title_key, source.url_key)
        columns = [name for name in dict.fromkeys(keys) if name in names]
        number = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file), columns=columns, use_threads=False):
            for row in _rows(batch):
                number += 1
                yield page_of_record(_texts(row), f"{url}#row={number}", source, max_bytes)
    elif source.text_key != DEFAULT_TEXT_KEY:
        yield _no_column(url, names, source)
    else:
        yield _parquet_table(file, url, max_bytes)


def _text_column(file: pq.ParquetFile, source: Source) -> str | None:
    schema = file.schema_arrow
    if source.text_key in schema.names:
        return source.text_key
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if (key := text_key_in(texts, source)) is None:
        return None
    batch = next(file.iter_batches(batch_size=min(SAMPLE_ROWS, _batch_rows(file)), columns=[key], use_threads=False))
    rows = [[row[key]] for row in map(_texts, _rows(batch))]
    return key if _contains_texts(key, [key], rows, source) else None


def _batch_rows(file: pq.ParquetFile) -> int:
    """The number of rows that fit in memory even if each is as large as its whole group, as a dictionary allows."""
    largest = max(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """One row after the other, so that a batch of equal texts is not copied once per row."""
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for i in range(batch.num_rows):
        yield {name: column[i].as_py() for name, column in columns}


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with bytes decoded to text, and null as an empty text."""
    return {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else value
        for key, value in row.items()
    }


def _parquet_table(file: pq.ParquetFile, url: str, max_bytes: int) -> Found | Refused:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=_batch_rows(file), use_threads=False):
        for row in _rows(batch):
            writer.writerow([as_text(str(value)) for value in _texts(row).values()])
            if out.tell() > max_bytes:
                return Refused(url, "too_large", out.getvalue()[:PREVIEW_BYTES].encode(), max_bytes)
    content = out.getvalue().encode()
    return Refused(url, "too_large", b"", max_bytes) if len(content) > max_bytes else Found(url, CSV, None, content)
