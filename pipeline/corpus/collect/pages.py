"""The results of collecting: a page, or the reason why a page is refused.

In: nothing. Out: `Found`, `Refused`, `Note`, and `page_of_record`, which makes a page or a refusal of a record (a
line of jsonl, a row of a table) by the keys in the settings of its source. If the source does not name the key of the
text, usual names of it are tried too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.collect.source import Source
from pipeline.corpus.text_repair import as_text

PREVIEW_BYTES = 1000
TABLE_TYPES = ("text/csv", "text/tab-separated-values")  # media types of files; their rows contain text
DEFAULT_TEXT_KEY = "text"
USUAL_TEXT_KEYS = (  # in order of precedence, if a source does not set text_key
    *(DEFAULT_TEXT_KEY, "content", "contents", "page_content", "raw_content", "full_text", "body"),
    *("article", "document", "passage", "context"),
)
KEYS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Found:
    url: str
    media_type: str
    title: str | None
    content: bytes
    context: str | None = None  # JSON object: what its container says about its markup


@dataclass(frozen=True, slots=True)
class Refused:
    url: str
    reason: str
    preview: bytes = b""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a file that its user should know, although nothing of it is lost."""

    url: str
    text: str


Item = Found | Refused | Note


def refused(url: str, reason: str, detail: str) -> Refused:
    """A refusal whose preview says what was found."""
    return Refused(url, reason, detail.encode(errors="replace")[:PREVIEW_BYTES])


def text_key_in(names: Iterable[str], source: Source) -> str | None:
    """The name that contains the text: text_key, else the same in other letters, else a usual name of it."""
    names = [name for name in names if isinstance(name, str)]
    if source.text_key in names:
        return source.text_key
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.strip().casefold(), name)
    wanted = USUAL_TEXT_KEYS if source.text_key == DEFAULT_TEXT_KEY else (source.text_key.strip().casefold(),)
    return next((folded[key] for key in wanted if key in folded), None)


def has_text(record: Any, source: Source) -> bool:
    return isinstance(record, Mapping) and _keyed_text(record, source) is not None


def _keyed_text(record: Mapping[str, Any], source: Source) -> str | None:
    if isinstance(text := record.get(source.text_key), str):
        return text
    key = text_key_in((key for key, value in record.items() if isinstance(value, str)), source)
    return None if key is None else record[key]


def page_of_record(record: Any, url: str, source: Source, max_bytes: int) -> Found | Refused:
    """The page with the text under the source's text_key, and with the title and address under its other keys."""
    text = _keyed_text(record, source) if isinstance(record, Mapping) else None
    if text is None and isinstance(record, Mapping):  # {"row": {"text": ...}}, as servers of data sets answer
        inner = [value for value in record.values() if has_text(value, source)]
        if len(inner) == 1:
            return page_of_record(inner[0], url, source, max_bytes)
    if text is None:
        return refused(url, "no_text_key", f"{found_keys(record)}; text_key is {source.text_key!r}")
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


def found_keys(record: Any) -> str:
    """What a record is, in words, for example: found the keys id (number), body (text)."""
    if not isinstance(record, Mapping):
        return f"found {_kind_of(record)} instead of a record"
    if not record:
        return "found a record without keys"
    keys = [f"{str(key)[:50]} ({_kind_of(value)})" for key, value in list(record.items())[:KEYS_SHOWN]]
    return f"found the keys {', '.join(keys)}" + (" ..." if len(record) > KEYS_SHOWN else "")


def _kind_of(value: Any) -> str:
    names = {str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    if isinstance(value, list):
        return f"list of {len(value)}"
    return "record" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
