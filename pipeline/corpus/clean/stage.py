"""Stage `clean`: extracts and repairs the text of every page; no page is dropped for its content.

In: any number of page shards. Out: document shards of the same names, and in dropped/ the pages that gave no text:
too_large, binary, undecodable, no_text, error, or, because each page is processed in a worker process with limits on
time and memory, timeout, crash, out_of_memory; the next build tries these again (store/parts.py).

Steps per page: decode (text_repair), extract by media type (TEXT_FORMATS, FILE_FORMATS), remove boilerplate lines
(boilerplate; web pages only), repair (text_repair). The id of a document is the hash of its text, ignoring case and
spacing.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pipeline.corpus.charsets import HTML
from pipeline.corpus.clean.boilerplate import without_boilerplate
from pipeline.corpus.clean.code_text import code_text, notebook_text
from pipeline.corpus.clean.docx_text import docx_text
from pipeline.corpus.clean.epub_text import epub_text
from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.html_text import html_text
from pipeline.corpus.clean.mail_text import mail_text
from pipeline.corpus.clean.markdown_text import markdown_text
from pipeline.corpus.clean.pdf_text import pdf_text
from pipeline.corpus.clean.plain_text import plain_text
from pipeline.corpus.clean.rst_text import rst_text
from pipeline.corpus.clean.table_text import table_text
from pipeline.corpus.clean.wiki_markup import wiki_text
from pipeline.corpus.shown_text import as_shown, log_as_shown, markup_as_shown, with_line_ends, without_controls
from pipeline.corpus.text_repair import decode, normalised, repair, repaired
from pipeline.store.engine import Done, Failed
from pipeline.store.parts import map_shards
from pipeline.store.records import DOCUMENT, DROPPED, PREVIEW_CHARACTERS, Counts, Shards, dropped_row
from pipeline.store.settings import Count, Positive, check_values
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import LIMIT, UNICODE, Outcome, Stage, Work

MB = 1_000_000
HEADER_CHARSET = re.compile(r"""charset\s{0,9}=\s{0,9}["']?([^\s"';,]{1,40})""", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanConfig:
    page_seconds: Annotated[
        Positive,
        "Time limit per page in seconds; a page that takes longer twice is dropped as timeout.",
    ] = field(default=20.0, metadata=LIMIT)
    page_memory_mb: Annotated[
        Count,
        "Memory limit per page in megabytes of address space, on Linux only; a page that needs more is dropped as"
        " out_of_memory.",
    ] = field(default=2048, metadata=LIMIT)
    max_page_mb: Annotated[
        Positive, "Collected pages larger than this many megabytes are dropped as too_large before they are parsed."
    ] = 20.0

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class PageItem:
    """One page as sent to a worker; `content` is cut to a preview if the page is `too_large`."""

    page_id: str
    source: str
    url: str
    media_type: str
    title: str | None
    licence: str | None
    content: bytes
    too_large: bool
    charset: str | None = None  # in the header with which a server sent the page
    context: str | None = None  # what its container says about its markup


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The result for one page; `reason` is None for a page that gave a text."""

    reason: str | None
    text: str  # for a dropped page its first characters, if there are any
    title: str | None = None
    id: str = ""
    extractor: str = ""
    code_language: str | None = None
    n_mojibake: int = 0
    n_boilerplate_lines: int = 0
    n_unknown_templates: int | None = None


@dataclass(frozen=True, slots=True)
class TextFormat:
    """A format that is text. `as_read` says what is done to the decoded text before `extract` interprets it."""

    extract: Callable[[str, PageItem], Extracted]  # a function of the text and of its page
    as_read: Callable[[str], str] = as_shown


def _named(extractor: str, function: Callable[[str], str]) -> Callable[[str, PageItem], Extracted]:
    return lambda text, page: Extracted(function(text), extractor=extractor)


# Repair by media type: `as_read` before a format is interpreted, after it `repaired` for all that is not `verbatim`.
TEXT_FORMATS = {
    HTML: TextFormat(lambda text, page: html_text(text), markup_as_shown),
    "text/plain": TextFormat(_named("plain", plain_text), log_as_shown),
    "text/markdown": TextFormat(lambda text, page: markdown_text(text), with_line_ends),  # their code is verbatim
    "text/x-rst": TextFormat(lambda text, page: rst_text(text), with_line_ends),
    "text/x-wiki": TextFormat(lambda text, page: wiki_text(text, page.context)),
    # all of it is verbatim
    "text/x-source": TextFormat(lambda text, page: code_text(text, page.url), with_line_ends),
    "text/csv": TextFormat(lambda text, page: table_text(text), without_controls),
    "text/tab-separated-values": TextFormat(lambda text, page: table_text(text, "\t"), without_controls),
    "application/x-ipynb+json": TextFormat(lambda text, page: notebook_text(text), str),
}
FILE_FORMATS: dict[
    str, Callable[[bytes], Extracted]
] = {  # functions of the bytes, because these formats are not text
    "application/pdf": pdf_text,
    "application/epub+zip": epub_text,
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": docx_text,
    "message/rfc822": mail_text,
}


def clean(cfg: CleanConfig, inputs: tuple[Shards, ...], work: Work) -> Outcome:
    counts = map_shards(
        work,
        inputs,
        read=lambda path: _pages(path, int(cfg.max_page_mb * MB)),
        function=clean_page,
        write=_write,
        seconds=cfg.page_seconds,
        memory_mb=cfg.page_memory_mb,
        unit="pages",
    )
    kept = tuple(path.name for path in shard_paths(work.directory))
    return Outcome(rows=counts.kept, counts=counts, content=kept)


CLEAN = Stage(
    name="clean",
    version=4,
    function=clean,
    handle=Shards,
    libraries=(
        "ftfy",
        "lxml",
        "mwparserfromhell",
        "numpy",
        "pypdfium2",
        "resiliparse",
        "trafilatura",
        UNICODE,
    ),
    by_shard=True,
)


def clean_page(item: PageItem) -> Cleaned:
    """The text of one page. Runs in a worker process, so a failure affects only this page."""
    if item.too_large:
        return Cleaned("too_large", "", item.title)
    preview = ""
    if (file_format := FILE_FORMATS.get(item.media_type)) is not None:
        extracted = file_format(item.content)
    elif (text_format := TEXT_FORMATS.get(item.media_type)) is not None:
        decoded, reason = decode(item.content, item.media_type, item.charset)
        if decoded is None:
            return Cleaned(reason, "")
        preview = repair(decoded[: 4 * PREVIEW_CHARACTERS])
        extracted = text_format.extract(text_format.as_read(decoded), item)
    else:
        known = ", ".join([*TEXT_FORMATS, *FILE_FORMATS])
        raise ValueError(f"media type {item.media_type!r}, expected one of {known}")
    if extracted.reason is not None:
        return Cleaned(extracted.reason, preview)
    return _finished(item, extracted, preview)


def _finished(item: PageItem, extracted: Extracted, preview: str) -> Cleaned:
    text, n_boilerplate_lines = (
        without_boilerplate(extracted.text) if item.media_type == HTML else (extracted.text, 0)
    )
    text, n_mojibake = repaired(text, extracted.verbatim)
    if not text.strip():
        return Cleaned("no_text", preview)
    return Cleaned(
        reason=None,
        text=text,
        title=repair(item.title or extracted.title or "") or None,
        id=text_digest(normalised(text)),
        extractor=extracted.extractor,
        code_language=extracted.code_language,
        n_mojibake=n_mojibake,
        n_boilerplate_lines=n_boilerplate_lines,
        n_unknown_templates=extracted.n_unknown_templates,
    )


def _pages(path: Path, max_bytes: int) -> list[PageItem]:
    columns = ["id", "source", "url", "media_type", "title", "licence", "content", "http_headers", "context"]
    items = []
    for row in read_table(path, columns=columns).to_pylist():
        content = row["content"]
        too_large = len(content) > max_bytes
        items.append(
            PageItem(
                page_id=row["id"],
                source=row["source"],
                url=row["url"],
                media_type=row["media_type"],
                title=row["title"],
                licence=row["licence"],
                content=content[: 4 * PREVIEW_CHARACTERS] if too_large else content,
                too_large=too_large,
                charset=_charset_of_headers(row["http_headers"]),
                context=row["context"],
            )
        )
    return items


def _charset_of_headers(http_headers: str | None) -> str | None:
    """The charset in the Content-Type of a JSON object of headers."""
    if http_headers is None:
        return None
    try:
        headers = json.loads(http_headers)
    except ValueError:
        return None
    values = headers.items() if isinstance(headers, dict) else ()
    content_type = next((str(value) for key, value in values if key.lower() == "content-type"), "")
    match = HEADER_CHARSET.search(content_type)
    return match[1] if match else None


def _write(part: Path, items: list[PageItem], answers: list[Done | Failed]) -> Counts:
    counts = Counts(rows_in=len(items))
    kept, dropped = [], []
    for item, answer in zip(items, answers, strict=True):
        cleaned = Cleaned(answer.reason, "") if isinstance(answer, Failed) else answer.value
        if cleaned.reason is None:
            counts.kept += 1
            kept.append(_document_row(item, cleaned))
        else:
            counts.drop(cleaned.reason)
            dropped.append(_dropped_row(item, cleaned.reason, cleaned.text))
    write_rows(part / "kept.parquet", kept, DOCUMENT)
    if dropped:
        write_rows(part / f"{DROPPED_FOLDER}.parquet", dropped, DROPPED)
    return counts


def _document_row(item: PageItem, cleaned: Cleaned) -> dict[str, Any]:
    return {
        "id": cleaned.id,
        "page_id": item.page_id,
        "source": item.source,
        "url": item.url,
        "title": cleaned.title,
        "licence": item.licence,
        "media_type": item.media_type,
        "extractor": cleaned.extractor,
        "code_language": cleaned.code_language,
        "n_mojibake": cleaned.n_mojibake,
        "n_boilerplate_lines": cleaned.n_boilerplate_lines,
        "n_unknown_templates": cleaned.n_unknown_templates,
        "text": cleaned.text,
    }


def _dropped_row(item: PageItem, reason: str, text: str) -> dict[str, Any]:
    preview = text or item.content[: 4 * PREVIEW_CHARACTERS].decode("utf-8", "replace")
    page = {"id": item.page_id, "page_id": item.page_id, "source": item.source, "url": item.url, "text": preview}
    return dropped_row(page, CLEAN.name, reason)
