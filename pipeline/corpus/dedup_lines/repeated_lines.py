"""Decides which lines and paragraphs of a text are removed because many documents of its site contain them.

In: a text, and the keys (hashes) of the lines that many documents of the site contain. Out: `Unit`s, the lines or
paragraphs of the text; which of them are removed; the text without them.

Frequency alone does not distinguish boilerplate from content: manuals repeat notes, plays their stage directions,
listings their imports. So a repeated line is removed only if one of these is true, and kept in case of doubt:
- it is long, consists of letters rather than signs, and occurs in a large part of the site;
- it is in a run of repeated lines, several or long ones, with which the document begins or ends.
Headings, rows of tables, listings, and texts of code or tables are kept. In texts with hard line breaks (plain text,
reStructuredText, mail) a line is not a unit of meaning: there only whole paragraphs of prose are removed, so that
verses are kept.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import xxhash

TextLayout = Literal["lines", "paragraphs", "nothing"]
OWN_LINES = frozenset(  # media types whose text has one line per paragraph or item of a list
    {
        "text/html",
        "text/x-wiki",
        "application/epub+zip",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    }
)
UNTOUCHED = frozenset({"text/x-source", "text/csv", "text/tab-separated-values"})
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
HEADING = re.compile(r"\s*(?:[-*] )?#{1,6} ")
TABLE = re.compile(r"\s*(?:\||[+=-]{2}[\s+=-]*$)")  # a row, or the rule of a table in plain text
INDENTED = re.compile(r"(?: {4}|\t)\s*(?![-*] |\d)\S")  # a listing, not an item within a list
CODE = re.compile(r"[{}=\\]")
MIN_RUN = 3  # as many repeated lines at the edge of a document are removed however short they are
SHORTEST_RUN = 100  # characters that a run of fewer lines needs
LETTERS = 0.7  # share of the characters that are not white space; below it is code, a table or a formula
PROSE_WIDTH = 50  # characters per line on average; verse has less
MIN_PARAGRAPH = 100  # characters; a shorter one may be a refrain or the closing of a letter
HTTP = ("http", "https")


Repeated = Mapping[int, tuple[int, int]]  # key -> documents of the site that contain it, documents of the site


class LineLimits(Protocol):
    @property
    def min_fraction(self) -> float: ...
    @property
    def min_characters(self) -> int: ...
    @property
    def max_characters(self) -> int: ...


class Unit(NamedTuple):
    """A line or a paragraph: text[start:end]. `key` is None if it must be kept."""

    start: int
    end: int
    key: int | None
    is_heading: bool


def site_of(url: str, source: str) -> str:
    """The host of a web address in lower case, otherwise unchanged; the source if there is no host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in HTTP else None
    except ValueError:  # not a valid address
        host = None
    return host or source


def layout_of(media_type: str, code_language: str | None) -> TextLayout:
    if code_language is not None or media_type in UNTOUCHED:
        return "nothing"
    return "lines" if media_type in OWN_LINES else "paragraphs"


def units_of(text: str, layout: TextLayout) -> list[Unit]:
    """The units of a text in order: those that can be removed, and those in between, which have no key."""
    if layout == "lines":
        return list(_lines(text))
    return list(_paragraphs(text)) if layout == "paragraphs" else []


def key_of(line: str) -> int:
    """A hash that is equal for lines that differ only in case, white space or Unicode form."""
    folded = line.lower() if line.isascii() else unicodedata.normalize("NFKC", line).casefold()
    return xxhash.xxh3_64_intdigest(" ".join(folded.split()).encode(errors="surrogatepass"))


def going(text: str, units: Sequence[Unit], repeated: Repeated, layout: TextLayout, cfg: LineLimits) -> list[int]:
    """Indices of the `units` to remove; `repeated` has the lines that may be removed at an edge, or everywhere."""
    found = {
        place
        for place, unit in enumerate(units)
        if unit.key is not None
        and unit.key in repeated
        and _is_common(repeated[unit.key], cfg)
        and _is_prose(text, unit, cfg)
    }
    if layout == "lines":
        found |= _run(units, repeated, cfg, from_the_end=False)
        found |= _run(units, repeated, cfg, from_the_end=True)
    return sorted(found)


def without(text: str, removed: Iterable[Unit]) -> str:
    """`text` without the removed units. Gaps are closed, with one empty line between paragraphs."""
    left: list[str] = []
    position = n_breaks = 0
    for start, end in [*((unit.start, unit.end) for unit in removed), (len(text), len(text))]:
        part = text[position:start]
        tail = part.lstrip("\n")
        n_breaks = max(n_breaks, len(part) - len(tail))
        if head := tail.rstrip("\n"):
            left += "\n" * (n_breaks if left else 0), head
            n_breaks = len(tail) - len(head)
        position = end
    return "".join(left)


def kind_of(text: str, unit: Unit) -> str:
    """`paragraph` if there is an empty line or an end of the text on both sides, otherwise `line`."""
    before = text[max(0, unit.start - 2) : unit.start]
    after = text[unit.end : unit.end + 2]
    return "paragraph" if before in ("", "\n", "\n\n") and after in ("", "\n", "\n\n") else "line"


def _lines(text: str) -> Iterator[Unit]:
    start, fence = 0, ""
    for line in text.split("\n"):
        end = start + len(line)
        mark = FENCE.match(line)
        if fence:
            fence = "" if mark and line.strip() == fence else fence
            if line:
                yield Unit(start, end, None, False)
        elif mark:
            fence = mark[1]
            yield Unit(start, end, None, False)
        elif line and not line.isspace():
            key = None if TABLE.match(line) else key_of(line)
            yield Unit(start, end, key, HEADING.match(line) is not None)
        start = end + 1


def _paragraphs(text: str) -> Iterator[Unit]:
    block: list[Unit] = []
    for unit in _physical_lines(text):
        if unit.end > unit.start:
            block.append(unit)
        elif block:
            yield _paragraph(text, block)
            block = []
    if block:
        yield _paragraph(text, block)


def _physical_lines(text: str) -> Iterator[Unit]:
    """The lines of a text. Those that must be kept have no key; an empty one has length 0."""
    start, fence = 0, ""
    for line in text.split("\n"):
        end, mark = start + len(line), FENCE.match(line)
        stays = bool(fence or mark)
        if mark:
            fence = "" if line.strip() == fence else fence or mark[1]
        if not line.strip() and not fence:
            end = start
        stays = stays or INDENTED.match(line) or TABLE.match(line) or HEADING.match(line)
        yield Unit(start, end, None if stays else 0, False)
        start += len(line) + 1


def _paragraph(text: str, block: Sequence[Unit]) -> Unit:
    start, end = block[0].start, block[-1].end
    n_characters = end - start
    is_prose = n_characters >= max(MIN_PARAGRAPH, PROSE_WIDTH * len(block)) and all(
        unit.key is not None for unit in block
    )
    return Unit(start, end, key_of(text[start:end]) if is_prose else None, False)


def _is_common(counts: tuple[int, int], cfg: LineLimits) -> bool:
    documents, site_documents = counts
    return documents >= cfg.min_fraction * site_documents


def _is_prose(text: str, unit: Unit, cfg: LineLimits) -> bool:
    if unit.is_heading or not cfg.min_characters <= unit.end - unit.start <= cfg.max_characters:
        return False
    whole = text[unit.start : unit.end]
    if INDENTED.match(whole) or CODE.search(whole):
        return False
    line = "".join(whole.split())
    return sum(map(str.isalpha, line)) >= LETTERS * len(line)


def _run(units: Sequence[Unit], repeated: Repeated, cfg: LineLimits, *, from_the_end: bool) -> set[int]:
    """Indices of the repeated lines at one end of the text. A heading is removed only with the lines below it."""
    run: list[int] = []
    for place in range(len(units) - 1, -1, -1) if from_the_end else range(len(units)):
        unit = units[place]
        if unit.is_heading and not run and not from_the_end:
            continue  # the title is kept; what follows it may be removed
        if unit.key not in repeated or unit.end - unit.start > cfg.max_characters or (unit.is_heading and not run):
            break
        run.append(place)
    while run and units[run[-1]].is_heading and not from_the_end:
        run.pop()
    n_characters = sum(units[place].end - units[place].start for place in run)
    return set(run) if len(run) >= MIN_RUN or n_characters >= SHORTEST_RUN else set()
