"""The records of a JSON file, whatever its suffix: one per line, one after the other, in a list, or below a key.

In: an open file. Out: one page per record, in bounded memory: a list is read element by element, and only a value
above the limit is refused. Blank lines, byte order marks, record separators (RFC 7464) and commas between records are
skipped; text that is not UTF-8 is recognised as in any other file.

- One record per line (JSON Lines, NDJSON): the address of a page ends in #line=N. A line that cannot be read is
  refused, and the others are read.
- A list, or values one after the other that may span lines: #record=N. Reading ends at the first error.
- One value: if it has no text itself, the records in it are found one or two levels down, in lists or by key, and the
  address names that key: {"data": [...]}, {"train": [...], "test": [...]}, {"rows": [{"row": {...}}]}; or a table by
  columns, {"text": [...]}, or by "columns" and "data", as pandas writes them.
"""

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pipeline.corpus.charsets import ERRORS
from pipeline.corpus.collect.pages import Found, Refused, found_keys, has_text, page_of_record, refused, text_key_in
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.unpacking import Rewound
from pipeline.corpus.text_repair import encoding_of

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson", ".ndjsonl", ".json-seq")
BOM = codecs.BOM_UTF8
BLANK = b" \t\r\n\x1e"  # with the record separator of RFC 7464
BETWEEN = " \t\r\n\x1e\ufeff"
HEAD_BYTES = 4096  # that show the encoding
CHUNK = 1 << 16
BLOCK = 1 << 20
LINES_TRIED = 20  # after a first line that is broken, to tell JSON Lines from one broken value
NEAR = 16  # characters before the end of a piece in which an error may only mean that the piece ends there
DEEPEST = 2  # levels of keys above the records of one value
_BROKEN = object()
AS_WINDOWS = "as-windows-1252"
codecs.register_error(AS_WINDOWS, lambda e: (e.object[e.start : e.end].decode("cp1252", "replace"), e.end))  # type: ignore[attr-defined]


def json_pages(stream: Any, url: str, source: Source, max_bytes: int, *, by_line: bool) -> Iterator[Found | Refused]:
    """`by_line`: a file of one line is addressed as #line=1 too, because lines may be added to it."""
    stream = _utf8(stream)
    number, first = _next_line(stream, max_bytes)
    if not first:
        return
    is_list, is_cut = first.lstrip(BLANK)[:1] == b"[", len(first) > max_bytes
    value = _BROKEN if is_cut else _value(first)
    if value is not _BROKEN:
        n_more, second = _next_line(stream, max_bytes)
        if second or (by_line and has_text(value, source)):
            head = b"\n" * (number - 1) + first + b"\n" * (n_more - 1) + second
            yield from _lines(io.BufferedReader(Rewound(head, stream), BLOCK), url, source, max_bytes)
        else:
            yield from _pages_of_value(value, url, source, max_bytes)
        return
    read = _lines if is_cut and not is_list else _values_or_lines
    rest = io.BufferedReader(Rewound(b"\n" * (number - 1) + first, stream), BLOCK)
    yield from read(rest, url, source, max_bytes)


def may_be_json(head: bytes) -> bool:
    """Whether a file begins as a record or a list does."""
    return head.lstrip(BOM + BLANK)[:1] in (b"{", b"[")


def looks_like_records(head: bytes, source: Source) -> bool:
    """Whether a file of any name contains JSON records with a text: a list of them, or at least two in a row."""
    try:
        values = _Values(io.BytesIO(head), len(head))
        values.skip()
        is_list = values.opens_list()
        values.at += is_list
        for _ in range(1 if is_list else 2):
            values.skip(",")
            if not has_text(values.value(), source):
                return False
    except (_Broken, ValueError, RecursionError):
        return False
    return True


def _lines(stream: Any, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    n_line = 0
    while line := stream.readline(max_bytes + 1):
        n_line += 1
        line_url = f"{url}#line={n_line}"
        if len(line) > max_bytes:
            while not line.endswith(b"\n") and (line := stream.readline(BLOCK)):
                pass
            yield Refused(line_url, "too_large", b"", max_bytes)
        elif line.strip(BLANK):
            value = _value(line)
            if value is _BROKEN:
                yield refused(line_url, "unreadable", f"no JSON: {line.decode(errors='replace')}")
            else:
                yield page_of_record(value, line_url, source, max_bytes)


def _value(line: bytes) -> Any:
    line = line.strip(BLANK).removeprefix(BOM).strip(BLANK)
    try:
        return json.loads(_text(line), strict=False)  # with tabs in texts
    except (ValueError, RecursionError):
        pass
    try:  # a list that was split into lines
        return json.loads(_text(line.removesuffix(b","))) if line.endswith(b"},") else _BROKEN
    except (ValueError, RecursionError):
        return _BROKEN


def _text(line: bytes) -> str:
    """Bytes that are not UTF-8, which may come late in a file, are read as windows-1252."""
    return line.decode(errors=AS_WINDOWS)


def _next_line(stream: Any, max_bytes: int) -> tuple[int, bytes]:
    """The next line that is not blank, and its number from here; empty at the end."""
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        if line.removeprefix(BOM).strip(BLANK):
            return number, line
    return number, b""


def _values_or_lines(stream: Any, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """Values that may span lines; if not even the first can be read, the lines, if any of them is a record."""
    values, n_found = _Values(stream, max_bytes), 0
    try:
        for item in _pages_of_values(values, url, source, max_bytes):
            n_found += 1
            yield item
    except _Broken as error:
        if n_found or not (rest := values.everything()):
            yield refused(url, error.reason, f"after {n_found} records: {error}")
            return
        head = rest[: CHUNK * 4]
        there = [line for line in head.split(b"\n")[1:-1] if line.strip(BLANK)][:LINES_TRIED]
        if any(isinstance(_value(line), Mapping) for line in there):
            yield from _lines(io.BufferedReader(Rewound(rest, stream), BLOCK), url, source, max_bytes)
        else:
            yield refused(url, error.reason, str(error))


def _pages_of_values(values: "_Values", url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    number = 0
    while values.skip("," if number else ""):
        if values.opens_list():
            for value in values.elements():
                number += 1
                yield page_of_record(value, f"{url}#record={number}", source, max_bytes)
            continue
        value = values.value()
        number += 1
        if number == 1 and not values.skip(","):
            yield from _pages_of_value(value, url, source, max_bytes)
        else:
            yield page_of_record(value, f"{url}#record={number}", source, max_bytes)


def _pages_of_value(value: Any, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """The pages of the only value of a file."""
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            yield page_of_record(record, f"{url}#record={number}", source, max_bytes)
    elif has_text(value, source) or not isinstance(value, Mapping):
        yield page_of_record(value, url, source, max_bytes)
    else:
        n_found = 0
        for place, record in _columns(value, source) or _below(value, source, "", DEEPEST):
            n_found += 1
            yield page_of_record(record, f"{url}#{place}", source, max_bytes)
        if not n_found:
            detail = (
                f"{found_keys(value)} and no records with the key {source.text_key!r} below them{_instead(value)}"
            )
            yield refused(url, "no_text_key", detail)


def _below(value: Mapping, source: Source, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The records in lists or mappings below the keys of `value`, with their places."""
    for key, inner in value.items():
        here = f"{place}{quote(str(key), safe='')}."
        records: list[tuple[str, Any]] = []
        if isinstance(inner, list):
            records = [(f"record={number}", record) for number, record in enumerate(inner, 1)]
        elif isinstance(inner, Mapping):
            records = [(quote(str(name), safe=""), record) for name, record in inner.items()]
        texts = [_has_inner_text(record, source) for _, record in records]
        if has_text(inner, source):
            yield here.removesuffix("."), inner
        elif any(texts) and (isinstance(inner, list) or all(isinstance(record, Mapping) for _, record in records)):
            yield from ((f"{here}{name}", record) for name, record in records)
        elif isinstance(inner, Mapping) and depth > 1:
            yield from _below(inner, source, here, depth - 1)
        elif depth > 1:  # articles with a list of paragraphs, as in SQuAD
            for name, record in records:
                if isinstance(record, Mapping):
                    yield from _below(record, source, f"{here}{name}.", depth - 1)


def _has_inner_text(record: Any, source: Source) -> bool:
    if not isinstance(record, Mapping):
        return False
    return has_text(record, source) or sum(has_text(inner, source) for inner in record.values()) == 1


def _columns(value: Mapping, source: Source) -> list[tuple[str, Any]] | None:
    """The rows of a table: {"columns": [...], "data": [[...]]}, or lists or mappings by the name of a column."""
    names, data = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(data, list) and text_key_in(names, source):
        rows = [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in data]
        return [(f"record={number}", row) for number, row in enumerate(rows, 1)]
    key = text_key_in((key for key, column in value.items() if isinstance(column, list | Mapping)), source)
    if key is None:
        return None
    columns = {name: _by_place(column) for name, column in value.items() if isinstance(column, list | Mapping)}
    if not any(isinstance(text, str) for text in columns[key].values()):
        return None
    return [
        (f"record={number}", {name: column.get(place) for name, column in columns.items()})
        for number, place in enumerate(columns[key], 1)
    ]


def _by_place(column: Any) -> Mapping[Any, Any]:
    return column if isinstance(column, Mapping) else dict(enumerate(column))


def _instead(value: Mapping) -> str:
    """The keys of the first record below `value`, so that text_key can be set."""
    for inner in value.values():
        records = inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, list) else ()
        if isinstance(first := next(iter(records), None), Mapping):
            return f"; the first record below them has {found_keys(first).removeprefix('found ')}"
    return ""


class _Broken(ValueError):
    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


class _Values:
    """JSON values one after the other, of which only the current piece is in memory."""

    def __init__(self, stream: Any, max_bytes: int):
        self.stream, self.max_bytes = stream, max_bytes
        self.utf8 = codecs.getincrementaldecoder("utf-8")(AS_WINDOWS)
        self.decode = json.JSONDecoder().raw_decode
        self.text, self.at, self.n_before = "", 0, 0
        self.is_whole, self.is_end = True, False  # whether `text` begins where the file does; whether all is read

    def everything(self) -> bytes:
        """What was read so far, if nothing of it was released."""
        return self.text.encode() if self.is_whole else b""

    def skip(self, more: str = "") -> bool:
        """Go to the next value. False at the end of the file."""
        blank = BETWEEN + more
        while True:
            while self.at < len(self.text) and self.text[self.at] in blank:
                self.at += 1
            if self.at < len(self.text):
                return True
            if not self._fill():
                return False

    def opens_list(self) -> bool:
        return self.text[self.at] == "["

    def elements(self) -> Iterator[Any]:
        """The values of a list, each when the comma or bracket after it has been seen."""
        self.at += 1
        if self.skip() and self.text[self.at] == "]":
            self.at += 1
            return
        while True:
            value = self.value()
            if not self.skip():
                raise _Broken("the list has no end; the file may be cut off")
            end, place = self.text[self.at], self._place(self.at)
            if end not in ",]":
                raise _Broken(f"expected a comma or the end of the list at {place}, found {end!r}")
            self.at += 1
            yield value
            if end == "]":
                return
            if self.skip() and self.text[self.at] == "]":  # a comma too many
                self.at += 1
                return

    def value(self) -> Any:
        while True:
            try:
                value, end = self.decode(self.text, self.at)
                if end < len(self.text) or not self._fill():
                    self.at, self.is_whole = end, False
                    return value
                continue
            except RecursionError as error:
                raise _Broken("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                is_open = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - NEAR
                if not is_open or len(self.text) - self.at > self.max_bytes or not self._fill():
                    self._raise(error)
            except ValueError as error:  # a number of thousands of digits
                raise _Broken(str(error)) from error

    def _raise(self, error: json.JSONDecodeError) -> None:
        if len(self.text) - self.at > self.max_bytes:
            raise _Broken(f"a value of more than {self.max_bytes:,} bytes", "too_large")
        found = self.text[error.pos : error.pos + 40] or "the end of the file"
        raise _Broken(f"no JSON: {error.msg.lower()} at {self._place(error.pos)}, found {found!r}") from error

    def _place(self, at: int) -> str:
        return f"character {self.n_before + at + 1:,}"

    def _fill(self) -> bool:
        """Read on: as much again as there is of the current value, so that reading it stays linear."""
        if self.is_end:
            return False
        block = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.is_end = not block
        if not self.is_whole:
            self.n_before += self.at
            self.text, self.at = self.text[self.at :], 0
        self.text += self.utf8.decode(block, final=self.is_end)
        return True


def _utf8(stream: Any) -> Any:
    """The stream in UTF-8, whatever its encoding is."""
    head = stream.read(HEAD_BYTES)
    encoding = encoding_of(head, is_cut=True)
    rest = io.BufferedReader(Rewound(head, stream), BLOCK)
    return rest if encoding.startswith("utf-8") else io.BufferedReader(_Recoded(rest, encoding), BLOCK)


class _Recoded(io.RawIOBase):
    """A text in another encoding as UTF-8."""

    def __init__(self, stream: Any, encoding: str):
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder(encoding)(ERRORS)
        self.held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.held and (block := self.stream.read(CHUNK)):
            self.held = self.decoder.decode(block).encode(errors="replace")
        block, self.held = self.held[: len(buffer)], self.held[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)
