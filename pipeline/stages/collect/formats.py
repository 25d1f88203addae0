"""What stands in one file: a page, a page a line of jsonl, or a page an article of a MediaWiki dump.

In: an open file of unknown content and its name. Out: `Found` pages and `Refused` ones, one after the other, in
bounded memory: a page above the limit is refused without being read to its end.
"""

import bz2
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from pipeline.stages.collect.members import UNREADABLE, Member
from pipeline.stages.collect.sources import Source
from pipeline.stages.collect.wiki_dump import Article, read_articles

MEDIA_TYPE_OF_SUFFIX = {
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".rst": "text/x-rst",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
}
COMPRESSED = {".bz2": bz2.BZ2File, ".gz": lambda stream: gzip.GzipFile(fileobj=stream)}
DUMP = re.compile(r"\.xml(-p\d+p\d+)?[^./]*$", re.IGNORECASE)  # Wikimedia names parts of a dump ...xml-p10p30302
PREVIEW_BYTES = 1000
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    url: str
    media_type: str
    title: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    url: str
    reason: str
    preview: bytes = b""
    score: float | None = None


def read_member(member: Member, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    """The pages of one file, each with its own address below `url`."""
    if member.refused:
        yield Refused(url, member.refused)
        return
    name, decompress = member.name.lower(), None
    for suffix, opener in COMPRESSED.items():
        if name.endswith(suffix):
            name, decompress = name.removesuffix(suffix), opener
    media_type = MEDIA_TYPE_OF_SUFFIX.get("." + name.rpartition(".")[2]) if "." in name else None
    try:
        with member.open() as raw:
            stream = decompress(raw) if decompress else raw
            if name.endswith(".jsonl"):
                yield from _lines(stream, url, source, max_bytes)
            elif DUMP.search(name):
                yield from _articles(stream, url, source, max_bytes)
            elif media_type := source.media_type or media_type:
                yield _whole(stream, url, media_type, max_bytes)
            else:
                yield Refused(url, "unsupported")
    except UNREADABLE as error:
        yield Refused(url, "unreadable", str(error).encode())


def _whole(stream: BinaryIO, url: str, media_type: str, max_bytes: int) -> Found | Refused:
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
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
            yield _record(line.removeprefix(b"\xef\xbb\xbf"), line_url, source)


def _record(line: bytes, url: str, source: Source) -> Found | Refused:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Refused(url, "unreadable", line[:PREVIEW_BYTES])
    text = record.get(source.text_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return Refused(url, "no_text_key", line[:PREVIEW_BYTES])
    title, own_url = (record.get(key) if key else None for key in (source.title_key, source.url_key))
    url = own_url if isinstance(own_url, str) and own_url else url
    content = text.encode(errors="replace")  # JSON may hold lone surrogates, which are no text
    if not content.strip():
        return Refused(url, "empty")
    return Found(url, source.media_type or "text/plain", title if isinstance(title, str) else None, content)


def _articles(stream: BinaryIO, url: str, source: Source, max_bytes: int) -> Iterator[Found | Refused]:
    for item in read_articles(stream, max_bytes):
        if not isinstance(item, Article):
            yield Refused(url, item.reason, item.detail.encode())
            continue
        article_url = f"{url}#{quote(item.title.replace(' ', '_'))}"
        content = item.text.encode(errors="replace")
        if item.reason:
            yield Refused(article_url, item.reason, content[:PREVIEW_BYTES])
        else:
            yield Found(article_url, source.media_type or "text/x-wiki", item.title, content)
