"""Reads the pages of one file: the file itself, or one per record of json, row of a table, message or wiki article.

In: a file of unknown content and its name. Out: `Found` pages and `Refused` ones, one after the other, in bounded
memory: a page above the limit is refused without being read to its end. The first bytes show how a file is compressed
and whether it contains records of JSON or Parquet; for other formats its suffix decides, or its first bytes if it has
no suffix. Files that are not text (pdf, epub, docx) are kept unchanged; `clean` extracts their text.
"""

import errno
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa

from pipeline.corpus.clean.code_text import LANGUAGE_OF_NAME, language_of_first_line, language_of_name
from pipeline.corpus.collect.file_kinds import ARCHIVE, archive_reason, is_archive_name, kind_of
from pipeline.corpus.collect.json_records import JSON_SUFFIXES, json_pages, looks_like_records, may_be_json
from pipeline.corpus.collect.mbox import FROM_LINE, messages
from pipeline.corpus.collect.members import UNREADABLE, Member
from pipeline.corpus.collect.pages import (
    PREVIEW_BYTES,
    TABLE_TYPES,
    Found,
    Item,
    Note,
    Refused,
    refused,
)
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.tables import parquet_pages, table_pages
from pipeline.corpus.collect.unpacking import (
    OPENERS,
    ROW_BYTES,
    Bounded,
    Budget,
    Rewound,
    TooLarge,
    compression_of,
    most_unpacked,
)
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
    ".log": "text/plain",
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
PARQUET_SUFFIXES = (".parquet", ".pq")
MBOX_SUFFIXES = (".mbox", ".mbx")
DUMP = re.compile(r"\.xml(-p\d+p\d+)?[^./]*$", re.IGNORECASE)  # Wikimedia names the parts of a dump ...xml-p10p30302
HEAD_BYTES = 1000  # bytes read to recognise a file without a suffix
RECORD_BYTES = 1_000_000  # bytes read to recognise records of JSON in a file that is not named so
PDF_MAGIC = b"%PDF-"
PARQUET_MAGIC = b"PAR1"
EPUB_MAGIC = b"mimetypeapplication/epub+zip"  # OCF 3.3 section 4.3: the first file of the zip
BROKEN = (*UNREADABLE, pa.ArrowException)
OUT_OF_RESOURCES = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE}  # no fault of a file


@dataclass(frozen=True, slots=True)
class _File:
    """What all steps of reading one file need."""

    url: str
    source: Source
    max_bytes: int
    budget: Budget
    inside: str  # folder or archive


def read_member(
    member: Member, url: str, source: Source, max_bytes: int, budget: Budget | None = None
) -> Iterator[Item]:
    """The pages of one file, each with its own address below `url`; what it unpacks to is spent from `budget`."""
    if member.refused:
        yield refused(url, member.refused, member.detail)
        return
    budget = budget or Budget(most_unpacked(member.size))
    file = _File(url, source, max_bytes, budget, "folder" if member.path else "archive")
    item, name = None, member.name.lower()
    try:
        with member.open() as raw:
            for item in _unpacked_pages(raw, name, file):
                budget.spend(0 if isinstance(item, Note) else ROW_BYTES)
                yield item
        if item is None:
            yield Refused(url, "empty")  # so that every file is counted
    except TooLarge as error:
        yield refused(url, "too_large", str(error))
    except MemoryError:  # pyarrow's is also an ArrowException
        raise
    except BROKEN as error:
        if is_out_of_resources(error):
            raise
        yield refused(url, "broken_archive" if is_archive_name(name) else "unreadable", str(error))


def is_out_of_resources(error: BaseException) -> bool:
    """Whether an error is the fault of the machine and not of a file."""
    return getattr(error, "errno", None) in OUT_OF_RESOURCES


def _unpacked_pages(raw: Any, name: str, file: _File) -> Iterator[Item]:
    """The pages of a file that may be compressed, which its first bytes show, whatever its name is."""
    head, raw = _beginning(raw, HEAD_BYTES)
    named = next((suffix for suffix in OPENERS if name.endswith(suffix)), "")
    if suffix := compression_of(head):
        stream = io.BufferedReader(Bounded(OPENERS[suffix](raw), file.budget))
        yield from _pages(stream, name.removesuffix(named), file)
        return
    if named and head and kind_of(head) is None:
        head, raw = _beginning(raw, RECORD_BYTES)
        if not looks_like_records(head, file.source):
            detail = f"the name ends in {named}, but the file is not compressed in that way"
            yield refused(file.url, "unreadable", detail)
            return
    yield from _pages(raw, name.removesuffix(named), file)


def _beginning(stream: Any, n_bytes: int) -> tuple[bytes, Any]:
    """The first bytes, and the stream from its beginning; a file on this machine stays one that can seek."""
    head = stream.read(n_bytes)
    if isinstance(stream, io.BytesIO) or isinstance(getattr(stream, "raw", None), io.FileIO):
        stream.seek(0)
        return head, stream
    return head, io.BufferedReader(Rewound(head, stream))


def _pages(stream: Any, name: str, file: _File) -> Iterator[Item]:
    url, source, max_bytes = file.url, file.source, file.max_bytes
    media_type = source.media_type or media_type_of_name(name)
    head, stream = _beginning(stream, HEAD_BYTES)
    is_records = False
    if media_type not in (SOURCE_CODE, NOTEBOOK) and may_be_json(head):
        beginning, stream = _beginning(stream, RECORD_BYTES)
        is_records = looks_like_records(beginning, source)
    if head.startswith(PARQUET_MAGIC) or name.endswith(PARQUET_SUFFIXES):
        yield from parquet_pages(stream, url, source, max_bytes, file.budget)
    elif is_records or name.endswith(JSON_SUFFIXES):
        by_line = not name.endswith(".json")
        yield from json_pages(stream, url, source, max_bytes, by_line=by_line)
    elif name.endswith(MBOX_SUFFIXES):
        yield from _messages(stream, url, max_bytes)
    elif media_type in TABLE_TYPES or media_type_of_name(name) in TABLE_TYPES:
        yield from table_pages(stream, url, media_type or TABLE_TYPES[0], source, max_bytes)
    elif DUMP.search(name):
        yield from _articles(stream, url, source, max_bytes)
    elif media_type is not None:
        yield _whole(stream, url, media_type, max_bytes)
    else:
        yield from _unnamed(stream, head, name, file)


def media_type_of_name(name: str) -> str | None:
    """The media type by the name of a file, without its compression suffix; None if the name does not show it."""
    suffix = "." + name.rpartition(".")[2] if "." in name.rpartition("/")[2] else ""
    if (language_of_name(name) is not None and suffix not in MEDIA_TYPE_OF_SUFFIX) or _is_build_file(name):
        return SOURCE_CODE
    return MEDIA_TYPE_OF_SUFFIX.get(suffix)


def _is_build_file(name: str) -> bool:
    return name.rpartition("/")[2] in LANGUAGE_OF_NAME


def _unnamed(stream: Any, head: bytes, name: str, file: _File) -> Iterator[Found | Refused]:
    """A file whose name does not show its format: a script, a PDF, a book or a mailbox, by its first bytes."""
    if not head:
        return
    if "." not in name.rpartition("/")[2] and FROM_LINE.match(head):
        yield from _messages(stream, file.url, file.max_bytes)
    elif media_type := _media_type_of_head(head):
        yield _whole(stream, file.url, media_type, file.max_bytes)
    elif kind := kind_of(head):
        reason, words = archive_reason(stream, kind[1], inside=file.inside) if kind[0] == ARCHIVE else kind
        yield refused(file.url, reason, words)
    elif is_archive_name(name):
        yield refused(file.url, "broken_archive", "its name is that of an archive, its content is none")
    else:
        yield Refused(file.url, "unsupported", head)


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
        yield refused(url, "unreadable", "no line that begins with From and ends with a date")


def _articles(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    for item in read_articles(stream, max_bytes):
        if not isinstance(item, Article):
            yield refused(url, item.reason, item.detail)
            continue
        article_url = f"{url}#{quote(item.title.replace(' ', '_'))}"
        content = item.text.encode(errors="replace")
        if item.reason:
            yield Refused(article_url, item.reason, content[:PREVIEW_BYTES])
        else:
            yield Found(article_url, source.media_type or "text/x-wiki", item.title, content, item.context)
