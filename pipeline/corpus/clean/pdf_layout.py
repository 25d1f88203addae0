"""Turns the lines of the pages of a PDF into text with headings, paragraphs, lists and code.

In: the lines of every page with their places and sizes, and the file's own outline. Out: (text, first heading).
Steps:
1. running heads and feet are removed: a line at the top or the foot of a page that recurs on three pages or more,
  with all digits taken as equal, or that begins or ends with the page number; so are lines of a table of contents;
2. headings: lines that are in the outline, and lines higher than the body by HEADING_RATIO, ranked by size;
3. lines in a fixed-pitch font are kept unchanged, with their indentation; items of lists get '- ';
4. other lines are joined to paragraphs, which end at a gap, at an indented line, or after a short line that ends a
   sentence; words that were hyphenated at the end of a line are joined again.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

Outline = dict[tuple[int, str], int]  # (page, title without spaces in lower case) -> level from 1

HEADING_RATIO = 1.15  # ratio of the height of a heading to that of the body; our own value, tested on two manuals
MAX_HEADING_CHARACTERS = 200
MAX_LEVELS = 4
EDGE_LINES = 2  # lines at the top and at the foot of a page that can be running heads
EDGE_SHARE = 0.15  # part of the height of a page in which they are
REPEATS = 3  # pages on which a line must recur to be a running head
GAP_RATIO = 1.35  # ratio of the distance of two lines to the usual one, above which they are two paragraphs
SHORT_SHARE = 0.8  # of the width of the text: a shorter line may end a paragraph
BULLET = re.compile(
    "[\u2022\u25e6\u25aa\u25ab\u25cf\u25cb\u25a0\u25a1\u2023\u2043\u00b7\uf0b7\uf0a7\u27a2\u2713][ \t]*"
)
ITEM = re.compile(r"(?:[-\u2013*] |\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.)] )\S")
ROMAN = re.compile(r"[ivxlc]{1,7}", re.IGNORECASE)
NUMBER_SIGNS = " 0123456789ivxlcIVXLC"
LEADERS = (".....", ". . . . .")  # of a table of contents, before the number of the page
DIGITS = re.compile(r"\d+")
OUTER_NUMBERS = re.compile(r"\A\W{0,5}(\d{1,6})\b|\b(\d{1,6})\W{0,5}\Z")
SENTENCE_END = re.compile("[.!?:;][\"')\\]\u2019\u201d]?$")
HYPHENS = "-\u00ad\u2010\u0002\ufffe"  # pdfium returns the last two for a hyphen at the end of a line
LAST_WORD = re.compile(rf"(\w+)[{HYPHENS}]$")
FIRST_WORD = re.compile(r"[^\W\d_]+")
INNER_HYPHEN = re.compile("(?<=[\u0002\ufffe])(?=.)")  # where pdfium itself joined two lines
WORD = re.compile(r"\w+(?:-\w+)*")


@dataclass(slots=True)
class Line:
    text: str
    page: int
    left: float  # points from the left edge of the page
    right: float
    bottom: float  # points from the foot of the page
    size: float  # height of the font, points
    place: float  # as a fraction of the height of the page: 0 = foot, 1 = top
    fixed: bool  # in a fixed-pitch font


def laid_out(pages: list[list[Line]], outline: Outline) -> tuple[str, str | None]:
    """Returns the text and its first heading."""
    body_size = _most([(line.size, len(line.text)) for page in pages for line in page])
    lines = _without_running_heads(pages, body_size * HEADING_RATIO)
    levels = _levels(lines, body_size)
    marks = [_heading_level(line, outline, levels) for line in lines]
    heading = next((line.text for line, level in zip(lines, marks, strict=True) if level), None)
    words = {word.casefold() for line in lines for word in WORD.findall(line.text)}
    text, before = [], ""
    for block in _blocks(lines, marks, words):
        text += ["\n" if before.startswith("- ") and block.startswith("- ") else "\n\n"] * bool(text) + [block]
        before = block
    return "".join(text), heading


def _most(weighted: list[tuple[float, int]]) -> float:
    """The value with the largest weight; the smaller of two equal ones."""
    weights: Counter[float] = Counter()
    for value, weight in weighted:
        weights[value] += weight
    return min(weights, key=lambda value: (-weights[value], value), default=0.0)


def _without_running_heads(pages: list[list[Line]], heading_size: float) -> list[Line]:
    edges = [{id(line): _edge_key(line) for line in _edge_lines(page, heading_size)} for page in pages]
    counts = Counter(key for page in edges for key in set(page.values()))
    offsets = Counter(
        offset
        for page, keys in zip(pages, edges, strict=True)
        for offset in {offset for line in page if id(line) in keys for offset in _offsets(line)}
    )
    numbering = {offset for offset, count in offsets.items() if count >= max(REPEATS, len(pages) // 4)}
    kept = []
    for page, keys in zip(pages, edges, strict=True):
        for line in page:
            key = keys.get(id(line))
            runs = key is not None and (
                counts[key] >= REPEATS or ROMAN.fullmatch(key[1]) or not numbering.isdisjoint(_offsets(line))
            )
            if not runs and not line.text.rstrip(NUMBER_SIGNS).endswith(LEADERS):
                kept.append(line)
    return kept


def _offsets(line: Line) -> set[int]:
    """Differences between the numbers at the ends of a line and the page index: equal for all page numbers."""
    ends = OUTER_NUMBERS.finditer(line.text)
    return {int(number) - line.page for match in ends for number in match.groups() if number}


def _edge_lines(page: list[Line], heading_size: float) -> list[Line]:
    by_place = sorted(page, key=lambda line: line.place)
    ends = [line for line in by_place[:EDGE_LINES] if line.place < EDGE_SHARE]
    ends += [line for line in by_place[-EDGE_LINES:] if line.place > 1 - EDGE_SHARE]
    return [line for line in ends if line.size < heading_size]


def _edge_key(line: Line) -> tuple[bool, str]:
    return line.place > 0.5, DIGITS.sub("#", " ".join(line.text.split()))


def _levels(lines: list[Line], body_size: float) -> dict[float, int]:
    """Size -> level, the largest first, for the sizes larger than the body."""
    sizes = sorted({line.size for line in lines if line.size >= body_size * HEADING_RATIO}, reverse=True)
    levels: dict[float, int] = {}
    for size in sizes:
        near = next((known for known in levels if known - size < 0.06 * known), None)
        levels[size] = levels[near] if near is not None else min(MAX_LEVELS, 1 + len(set(levels.values())))
    return levels


def _heading_level(line: Line, outline: Outline, levels: dict[float, int]) -> int:
    """The level of a heading, 0 for a line that is not a heading."""
    if len(line.text) > MAX_HEADING_CHARACTERS or not any(c.isalpha() for c in line.text):
        return 0
    key = "".join(line.text.split()).casefold()
    named = outline.get((line.page, key)) or outline.get((line.page, re.sub(r"^[\d.]+", "", key)))
    if named:
        return min(named, 6)
    return 0 if line.fixed else levels.get(line.size, 0)


def _blocks(lines: list[Line], marks: list[int], words: set[str]) -> Iterator[str]:
    """Headings, listings and paragraphs in their order."""
    pitches, width = _pitches(lines), max((line.right for line in lines), default=0.0)
    held: list[Line] = []
    before = 0
    for line, level in zip(lines, marks, strict=True):
        starts = _ends_heading if level else _starts_block
        pitch = max(pitches.get(size, 1.2 * size) for size in (line.size, held[-1].size if held else 0.0))
        if held and (level != before or starts(held[-1], line, pitch, width)):
            yield _block(held, before, words)
            held = []
        held.append(line)
        before = level
    if held:
        yield _block(held, before, words)


def _pitches(lines: list[Line]) -> dict[float, float]:
    """Size -> the usual distance between consecutive lines, in points."""
    steps: dict[float, list[tuple[float, int]]] = {}
    for above, line in pairwise(lines):
        step = round(above.bottom - line.bottom, 1)
        if above.page == line.page and above.size == line.size and 0 < step < 4 * max(line.size, 1):
            steps.setdefault(line.size, []).append((step, 1))
    return {size: _most(found) for size, found in steps.items()}


def _ends_heading(above: Line, line: Line, pitch: float, width: float) -> bool:
    """Whether these are two headings, not two lines of one."""
    is_wrapped = above.page == line.page and above.right > 0.6 * width and above.size == line.size
    return not is_wrapped or not 0 < above.bottom - line.bottom < 2 * max(line.size, 1)


def _starts_block(above: Line, line: Line, pitch: float, width: float) -> bool:
    if line.fixed or above.fixed:
        return line.fixed != above.fixed or (above.page == line.page and above.bottom - line.bottom > 3 * pitch)
    if BULLET.match(line.text) or ITEM.match(line.text):
        return True
    ended = SENTENCE_END.search(above.text) is not None
    is_short = above.right < SHORT_SHARE * width
    if above.page != line.page or line.bottom > above.bottom:  # next page or column
        return ended and (is_short or line.text[:1].isupper())
    if above.bottom - line.bottom > GAP_RATIO * pitch:
        return True
    indented = (
        line.left - above.left > 0.6 * line.size and not BULLET.match(above.text) and not ITEM.match(above.text)
    )
    return ended and (is_short or indented)


def _block(lines: list[Line], level: int, words: set[str]) -> str:
    if level:
        return "#" * level + " " + " ".join(line.text for line in lines)
    if lines[0].fixed:
        return "\n".join(_indented(lines))
    text = _joined([line.text for line in lines], words)
    return "- " + text[match.end() :] if (match := BULLET.match(text)) else text


def _indented(lines: list[Line]) -> Iterator[str]:
    """Lines in a fixed-pitch font, indented by spaces according to their places."""
    left = min(line.left for line in lines)
    for line in lines:
        pitch = (line.right - line.left) / max(1, len(line.text))
        yield " " * min(80, round((line.left - left) / pitch) if pitch > 0 else 0) + line.text


def _joined(texts: list[str], words: set[str]) -> str:
    """One paragraph. Hyphenated words are joined; their hyphen is kept if the file has it elsewhere, too."""
    texts = [part for text in texts for part in INNER_HYPHEN.split(text)]
    pieces = [texts[0]]
    for text in texts[1:]:
        left, right = LAST_WORD.search(pieces[-1][-100:]), FIRST_WORD.match(text)
        if left is None or right is None or not right[0][0].islower():
            pieces[-1] = re.sub(rf"[{HYPHENS[1:]}]$", "-", pieces[-1]) if left else pieces[-1] + " "
            pieces.append(text)
            continue
        whole, parted = (f"{left[1]}{sign}{right[0]}".casefold() for sign in ("", "-"))
        keeps = parted in words and whole not in words
        pieces[-1] = pieces[-1][:-1] + ("-" if keeps else "")
        pieces.append(text)
    return "".join(pieces)
