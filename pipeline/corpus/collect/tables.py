"""Files of many records: csv and tsv, parquet, and json that is one list.

In: an open file. Out: one page per record, by the keys of the source, in bounded memory: rows of csv and parquet are
streamed, and a row above the limit is refused.

A table is read as records if it has a column named text_key. Otherwise text_key decides: with the default `text`, the
user has not named a column, and the whole table becomes one page; any other name was set by the user, and the file is
refused as no_text_key.
"""

import codecs
import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.charsets import ERRORS
from pipeline.corpus.collect.pages import PREVIEW_BYTES, Found, Refused, Rewound, page_of_record
from pipeline.corpus.collect.source import Source
from pipeline.corpus.csv_records import DELIMITERS, SNIFFED_CHARACTERS, records, sniffed_delimiter
from pipeline.corpus.text_repair import as_text, encoding_of

CSV = "text/csv"
DEFAULT_TEXT_KEY = "text"
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8
MAX_EXPANSION = 1000  # from a parquet file to the texts of its rows, beyond FREE_BYTES; the maximum of gzip
FREE_BYTES = 100_000_000
ROW_BYTES = 100  # counted per row besides its text
BATCH_ROWS = 64
BATCH_BYTES = 500_000_000  # limit for the rows of one batch
SPOOL_BYTES = 16_000_000  # a larger parquet file inside an archive is copied to a temporary file
MAX_COPIED = 16  # times the limit of a page: a larger parquet file inside an archive is refused


def table_pages(
    stream: BinaryIO, url: str, media_type: str, source: Source, max_bytes: int
) -> Iterator[Found | Refused]:
    """One page per row of csv or tsv, or one page with the whole file."""
    head = stream.read(4 * SNIFFED_CHARACTERS)
    rest = io.BufferedReader(Rewound(head, stream))
    encoding = encoding_of(head, is_cut=True)
    text = _head_text(head, encoding)
    headers = {d: _header(text, d) for d in dict.fromkeys((sniffed_delimiter(text) or ",", *DELIMITERS))}
    delimiter = next((d for d, names in headers.items() if source.text_key in names), None)
    if delimiter is None:
        yield _without_column(rest, url, media_type, source, max_bytes)
        return
    names, lines = headers[delimiter], _Lines(rest, encoding, max_bytes)
    for number, cells in enumerate(records(lines, delimiter)):
        if lines.was_cut:
            yield Refused(f"{url}#row={number}", "too_large", b"", max_bytes)
        elif number and any(cell.strip() for cell in cells):
            values = dict(zip(names, (*cells, *[""] * (len(names) - len(cells))), strict=False))
            yield page_of_record(values, f"{url}#row={number}", source, max_bytes)
        lines.was_cut = False


def _header(text: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(records(text.split("\n"), delimiter), [])]


def _without_column(stream: Any, url: str, media_type: str, source: Source, max_bytes: int) -> Found | Refused:
    content = stream.read(max_bytes + 1)
    if not content.strip():
        return Refused(url, "empty")
    if source.text_key != DEFAULT_TEXT_KEY:
        return Refused(url, "no_text_key", content[:PREVIEW_BYTES])
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
    return Found(url, media_type, None, content)


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


def json_pages(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """One page per element if the file is a list, or one page if it is a single record."""
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        yield Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
        return
    if not content.strip():
        yield Refused(url, "empty")
        return
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        yield Refused(url, "unreadable", content[:PREVIEW_BYTES])
        return
    if not isinstance(value, list):
        yield page_of_record(value, url, source, max_bytes)
        return
    if not value:
        yield Refused(url, "empty")
    for number, record in enumerate(value, 1):
        yield page_of_record(record, f"{url}#record={number}", source, max_bytes)


def parquet_pages(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """One page per row, or one page of csv with the whole table."""
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
                most = MAX_EXPANSION * seekable.seek(0, io.SEEK_END) + FREE_BYTES
                yield from _parquet_rows(file, url, source, max_bytes, most)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        yield Refused(url, "unreadable", str(error).encode(errors="replace")[:PREVIEW_BYTES])


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


def _parquet_rows(
    file: pq.ParquetFile, url: str, source: Source, max_bytes: int, most: int
) -> Iterator[Found | Refused]:
    """`most` limits the bytes of all rows together: a million equal rows take no more space in the file than one."""
    names = file.schema_arrow.names
    if not file.metadata.num_rows:
        yield Refused(url, "empty")
    elif source.text_key in names:
        keys = (source.text_key, source.title_key, source.url_key)
        columns = [name for name in dict.fromkeys(keys) if name in names]
        number = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file), columns=columns, use_threads=False):
            for row in _rows(batch):
                number += 1
                item = page_of_record(_texts(row), f"{url}#row={number}", source, max_bytes)
                most -= ROW_BYTES + (len(item.content) if isinstance(item, Found) else 0)
                if most < 0:
                    yield Refused(url, "too_large", f"expands more than {MAX_EXPANSION} times".encode())
                    return
                yield item
    elif source.text_key != DEFAULT_TEXT_KEY:
        yield Refused(url, "no_text_key", ", ".join(names).encode(errors="replace")[:PREVIEW_BYTES])
    else:
        yield _parquet_table(file, url, max_bytes)


def _batch_rows(file: pq.ParquetFile) -> int:
    """The number of rows that fit in memory even if each is as large as its whole group, as a dictionary allows."""
    largest = max(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """One row after the other, so that a batch of equal texts is not copied once per row."""
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for i in range(batch.num_rows):
        yield {name: column[i].as_py() for name, column in columns}


def _texts(row: dict[str, Any]) -> dict[str, Any]:
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
