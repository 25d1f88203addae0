"""Reads the pages of one file: the file itself, or one per line of jsonl, row of a table, message or wiki article.

In: a file of unknown content and its name. Out: `Found` pages and `Refused` ones, one after the other, in bounded
memory: a page above the limit is refused without being read to its end. The suffix of a file determines its format,
or its first bytes if it has no suffix. Files that are not text (pdf, epub, docx) are kept unchanged; `clean` extracts
their text.
"""

import bz2
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa

from pipeline.corpus.clean.code_text import LANGUAGE_OF_NAME, language_of_first_line, language_of_name
from pipeline.corpus.collect.mbox import FROM_LINE, messages
from pipeline.corpus.collect.members import UNREADABLE, Member
from pipeline.corpus.collect.pages import PREVIEW_BYTES, TABLE_TYPES, Found, Refused, Rewound, page_of_record
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.tables import json_pages, parquet_pages, table_pages
from pipeline.corpus.collect.wiki_dump import Article, read_articles

PDF = "application/pdf"
EPUB = "application/epub+zip"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
MAIL = "message/rfc822"
SOURCE_CODE = "text/x-source"
NOTEBOOK = "application/x-ipynb+json"
MEDIA_TYPE_OF_SUFFIX = {
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/x-rst",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".pdf": PDF,
    ".epub": EPUB,
    ".docx": DOCX,
    ".eml": MAIL,
    ".csv": TABLE_TYPES[0],
    ".tsv": TABLE_TYPES[1],
    ".tab": TABLE_TYPES[1],
    ".ipynb": NOTEBOOK,
}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
MBOX_SUFFIXES = (".mbox", ".mbx")
COMPRESSED: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".bz2": bz2.BZ2File,
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),  # type: ignore[dict-item]
    ".xz": lzma.LZMAFile,
    ".zst": lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")),
}
DUMP = re.compile(r"\.xml(-p\d+p\d+)?[^./]*$", re.IGNORECASE)  # Wikimedia names the parts of a dump ...xml-p10p30302
HEAD_BYTES = 1000  # bytes read to recognise a file without a suffix
PDF_MAGIC = b"%PDF-"
EPUB_MAGIC = b"mimetypeapplication/epub+zip"  # OCF 3.3 section 4.3: the first file of the zip
BLOCK = 1 << 20
BROKEN = (*UNREADABLE, pa.ArrowException)


def read_member(member: Member, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """The pages of one file, each with its own address below `url`."""
    if member.refused:
        yield Refused(url, member.refused)
        return
    name, decompress = member.name.lower(), None
    for suffix, opener in COMPRESSED.items():
        if name.endswith(suffix):
            name, decompress = name.removesuffix(suffix), opener
    item = None
    try:
        with member.open() as raw:
            for item in _pages(decompress(raw) if decompress else raw, name, url, source, max_bytes):
                yield item
        if item is None:
            yield Refused(url, "empty")  # so that every file is counted
    except BROKEN as error:
        yield Refused(url, "unreadable", str(error).encode(errors="replace")[:PREVIEW_BYTES])


def _pages(stream: BinaryIO, name: str, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    media_type = source.media_type or media_type_of_name(name)
    if name.endswith(JSONL_SUFFIXES):
        yield from _lines(stream, url, source, max_bytes)
    elif name.endswith(".json"):
        yield from json_pages(stream, url, source, max_bytes)
    elif name.endswith(PARQUET_SUFFIXES):
        yield from parquet_pages(stream, url, source, max_bytes)
    elif name.endswith(MBOX_SUFFIXES):
        yield from _messages(stream, url, max_bytes)
    elif media_type in TABLE_TYPES or media_type_of_name(name) in TABLE_TYPES:
        yield from table_pages(stream, url, media_type or TABLE_TYPES[0], source, max_bytes)
    elif DUMP.search(name):
        yield from _articles(stream, url, source, max_bytes)
    elif media_type is not None:
        yield _whole(stream, url, media_type, max_bytes)
    else:
        yield from _unnamed(stream, name, url, max_bytes)


def media_type_of_name(name: str) -> str | None:
    """The media type by the name of a file, without its compression suffix; None if the name does not show it."""
    suffix = "." + name.rpartition(".")[2] if "." in name.rpartition("/")[2] else ""
    if (language_of_name(name) is not None and suffix not in MEDIA_TYPE_OF_SUFFIX) or _is_build_file(name):
        return SOURCE_CODE
    return MEDIA_TYPE_OF_SUFFIX.get(suffix)


def _is_build_file(name: str) -> bool:
    return name.rpartition("/")[2] in LANGUAGE_OF_NAME


def _unnamed(stream: BinaryIO, name: str, url: str, max_bytes: int) -> Iterator[Found | Refused]:
    """A file whose name does not show its format: a script, a PDF, a book or a mailbox, by its first bytes."""
    head = stream.read(HEAD_BYTES)
    rest = io.BufferedReader(Rewound(head, stream))
    if "." not in name.rpartition("/")[2] and FROM_LINE.match(head):
        yield from _messages(rest, url, max_bytes)  # type: ignore[arg-type]
    elif media_type := _media_type_of_head(head):
        yield _whole(rest, url, media_type, max_bytes)  # type: ignore[arg-type]
    else:
        yield Refused(url, "unsupported", head)


def _media_type_of_head(head: bytes) -> str | None:
    if head.startswith(PDF_MAGIC):
        return PDF
    if head.startswith(b"PK\x03\x04") and EPUB_MAGIC in head[:100]:
        return EPUB
    return SOURCE_CODE if language_of_first_line(head.decode("utf-8", "replace")) else None


def _whole(stream: BinaryIO, url: str, media_type: str, max_bytes: int) -> Found | Refused:
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
    if content.startswith(PDF_MAGIC):
        media_type = PDF  # whatever its suffix is
    return Found(url, media_type, None, content) if content.strip() else Refused(url, "empty")


def _lines(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    n_line = 0
    while line := stream.readline(max_bytes + 1):
        n_line += 1
        line_url = f"{url}#line={n_line}"
        if len(line) > max_bytes:
            while not line.endswith(b"\n") and (line := stream.readline(BLOCK)):
                pass
            yield Refused(line_url, "too_large", b"", max_bytes)
        elif line.strip():
            yield _record(line.removeprefix(b"\xef\xbb\xbf"), line_url, source, max_bytes)


def _record(line: bytes, url: str, source: Source, max_bytes: int) -> Found | Refused:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Refused(url, "unreadable", line[:PREVIEW_BYTES])
    return page_of_record(record, url, source, max_bytes)


def _messages(stream: BinaryIO, url: str, max_bytes: int) -> Iterator[Found | Refused]:
    number = 0
    for number, message in enumerate(messages(stream, max_bytes), 1):
        message_url = f"{url}#message={number}"
        if message is None:
            yield Refused(message_url, "too_large", b"", max_bytes)
        elif message.strip():
            yield Found(message_url, MAIL, None, message)
        else:
            yield Refused(message_url, "empty")
    if not number:
        yield Refused(url, "unreadable", b"no line that begins with From and ends with a date")


def _articles(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    for item in read_articles(stream, max_bytes):
        if not isinstance(item, Article):
            yield Refused(url, item.reason, item.detail.encode(errors="replace"))
            continue
        article_url = f"{url}#{quote(item.title.replace(' ', '_'))}"
        content = item.text.encode(errors="replace")
        if item.reason:
            yield Refused(article_url, item.reason, content[:PREVIEW_BYTES])
        else:
            yield Found(article_url, source.media_type or "text/x-wiki", item.title, content)
