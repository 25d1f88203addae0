"""The results of collecting: a page, or the reason why a page is refused.

In: nothing. Out: `Found`, `Refused`, and `page_of_record`, which makes one of them from a record (a line of jsonl, a
row of a table) by the keys in the settings of its source.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.corpus.collect.source import Source
from pipeline.corpus.text_repair import as_text

PREVIEW_BYTES = 1000
TABLE_TYPES = ("text/csv", "text/tab-separated-values")  # media types of files; their rows contain text


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


class Rewound(io.RawIOBase):
    """A stream from its beginning, although its head was already read. Seeking would read an archive again."""

    def __init__(self, head: bytes, rest: BinaryIO):
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        block = block or self.rest.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def page_of_record(record: Any, url: str, source: Source, max_bytes: int) -> Found | Refused:
    """The page with the text under the source's text_key, and with the title and address under its other keys."""
    text = record.get(source.text_key) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        return Refused(url, "no_text_key", repr(record)[:PREVIEW_BYTES].encode(errors="replace"))
    title, own_url = (record.get(key) if key else None for key in (source.title_key, source.url_key))
    url = as_text(own_url) if isinstance(own_url, str) and own_url else url
    content = text.encode(errors="replace")  # JSON may contain lone surrogates, which are not text
    if not content.strip():
        return Refused(url, "empty")
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
    media_type = "text/plain" if source.media_type in (None, *TABLE_TYPES) else source.media_type
    assert media_type is not None
    return Found(url, media_type, as_text(title) if isinstance(title, str) else None, content)
