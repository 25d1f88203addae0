"""What collecting finds: a page, or the reason why there is none.

In: nothing. Out: `Found`, `Refused`, and `page_of_record`, which makes one of them from a record (a line of jsonl, a
row of a table) by the keys that its source names.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.corpus.collect.source import Source
from pipeline.corpus.text_repair import as_text

PREVIEW_BYTES = 1000
TABLE_TYPES = ("text/csv", "text/tab-separated-values")  # of files; what stands in their rows is text


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
    """A stream whose head was read already, from its beginning; going back would read an archive once more."""

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
    """The text under the source's text_key, with the title and the address under its other keys."""
    text = record.get(source.text_key) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        return Refused(url, "no_text_key", repr(record)[:PREVIEW_BYTES].encode(errors="replace"))
    title, own_url = (record.get(key) if key else None for key in (source.title_key, source.url_key))
    url = as_text(own_url) if isinstance(own_url, str) and own_url else url
    content = text.encode(errors="replace")  # JSON may hold lone surrogates, which are no text
    if not content.strip():
        return Refused(url, "empty")
    if len(content) > max_bytes:
        return Refused(url, "too_large", content[:PREVIEW_BYTES], max_bytes)
    media_type = "text/plain" if source.media_type in (None, *TABLE_TYPES) else source.media_type
    assert media_type is not None
    return Found(url, media_type, as_text(title) if isinstance(title, str) else None, content)
