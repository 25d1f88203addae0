"""Stage `clean`: the text of every page, repaired; nothing is dropped for what it says.

In: any number of page shards. Out: document shards of the same names, and in dropped/ the pages that gave no text:
too_large, binary, undecodable, no_text, or, because each page is worked on in a worker process with a time and a
memory limit, timeout, crash, out_of_memory, error.

Steps a page: decode, extract by media type (html_text, wiki_markup, plain_text), repair (text_repair). The id of a
document is the hash of its text without case and spacing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pipeline.stages.engine import Done, Failed
from pipeline.stages.html_text import html_text
from pipeline.stages.plain_text import markdown_text, plain_text, rst_text
from pipeline.stages.records import DOCUMENT, DROPPED, PREVIEW_CHARACTERS, Counts, Shards
from pipeline.stages.shards import DROPPED_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.stages.store import Outcome, Stage, Work, map_shards
from pipeline.stages.text_repair import decode, normalised, repair
from pipeline.stages.wiki_markup import wiki_text

MB = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanConfig:
    page_seconds: Annotated[float, "a page that takes longer is dropped as timeout; seconds, above 0"] = 20.0
    max_page_mb: Annotated[float, "larger pages are dropped as too_large without being read; MB, above 0"] = 20.0

    def __post_init__(self) -> None:
        for name in ("page_seconds", "max_page_mb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not above 0")


@dataclass(frozen=True, slots=True)
class PageItem:
    """One page on its way to a worker; `content` is cut to a preview when it is `too_large`."""

    page_id: str
    source: str
    url: str
    media_type: str
    title: str | None
    licence: str | None
    content: bytes
    too_large: bool


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`reason` is None for a page that gave a text."""

    reason: str | None
    id: str
    title: str | None
    text: str


EXTRACTORS: dict[str, Callable[[str], tuple[str | None, str]]] = {
    "text/html": html_text,
    "text/plain": lambda text: (None, plain_text(text)),
    "text/markdown": lambda text: (None, markdown_text(text)),
    "text/x-rst": lambda text: (None, rst_text(text)),
    "text/x-wiki": lambda text: (None, wiki_text(text)),
}


def clean(cfg: CleanConfig, inputs: tuple[Shards, ...], work: Work) -> Outcome:
    counts = map_shards(
        work,
        inputs,
        read=lambda path: _pages(path, int(cfg.max_page_mb * MB)),
        function=clean_page,
        write=_write,
        seconds=cfg.page_seconds,
        unit="pages",
    )
    kept = tuple(path.name for path in shard_paths(work.directory))
    return Outcome(rows=counts.kept, counts=counts, content=kept)


CLEAN = Stage(
    name="clean",
    version=1,
    function=clean,
    handle=Shards,
    libraries=("charset-normalizer", "ftfy", "lxml", "mwparserfromhell", "trafilatura"),
)


def clean_page(item: PageItem) -> Cleaned:
    """Runs in a worker process; whatever goes wrong here costs this page only."""
    if item.too_large:
        return Cleaned("too_large", "", item.title, "")
    text, reason = decode(item.content, item.media_type)
    if text is None:
        return Cleaned(reason, "", None, "")
    if item.media_type not in EXTRACTORS:
        raise ValueError(f"media type {item.media_type!r}, expected one of {', '.join(EXTRACTORS)}")
    title, extracted = EXTRACTORS[item.media_type](text)
    repaired = repair(extracted)
    title = repair(item.title or title or "") or None
    if not repaired.strip():
        return Cleaned("no_text", "", title, repair(text[: 4 * PREVIEW_CHARACTERS]))
    return Cleaned(None, text_digest(normalised(repaired)), title, repaired)


def _pages(path: Path, max_bytes: int) -> list[PageItem]:
    columns = ["id", "source", "url", "media_type", "title", "licence", "content"]
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
            )
        )
    return items


def _write(part: Path, items: list[PageItem], answers: list[Done | Failed]) -> Counts:
    counts = Counts(rows_in=len(items))
    kept, dropped = [], []
    for item, answer in zip(items, answers, strict=True):
        cleaned = Cleaned(answer.reason, "", None, "") if isinstance(answer, Failed) else answer.value
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
        "text": cleaned.text,
    }


def _dropped_row(item: PageItem, reason: str, text: str) -> dict[str, Any]:
    preview = text or item.content[: 4 * PREVIEW_CHARACTERS].decode("utf-8", "replace")
    return {
        "id": item.page_id,
        "page_id": item.page_id,
        "source": item.source,
        "url": item.url,
        "stage": CLEAN.name,
        "reason": reason,
        "score": None,
        "preview": preview[:PREVIEW_CHARACTERS],
    }
