"""The blocks that a text is made of: headings, paragraphs, lists, tables and code.

In: a text as stage `clean` writes it: Markdown, or plain lines. Out: blocks in their order, of which each knows its
place; between them is nothing but white space. Steps: go through the lines once; a fence, a heading, a list, a table
or indented lines begin a block of their own, everything else up to an empty line is a paragraph.

A text without Markdown's headings (`#`, or a line that is underlined) may have others, each alone between empty
lines: "Chapter 3" and the like, "2.3 Methods", and lines of CAPITALS.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["heading", "paragraph", "list", "table", "code"]
Span = tuple[int, int]

FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
UNDERLINE = re.compile(r" {0,3}(={3,}|-{3,})[ \t]*$")
MARK = r"([ \t]*)(?:[-*+\u2022]|#\.|\d{1,9}[.)])"  # of an item of a list, with what it is indented by
ITEM = re.compile(rf"{MARK}[ \t]+\S")
TABLE_ROW = re.compile(r"[ \t]*\|")
INDENT = re.compile(r" {4}| {0,3}\t")
DIVISION = re.compile(r"(?:part|book|volume|chapter|act|appendix|section|scene|article)[ \t]+\w{1,8}\b")
NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,5})\.?[ \t]+[^\W\d_]")
MOST_HEADING_CHARACTERS, MOST_HEADING_WORDS = 100, 14
SENTENCE_END = (".", "!", "?", ":", ";", ",")
LEVEL_OF_CAPITALS = 2  # below chapters, as in "CHAPTER I" and, after it, "DOWN THE RABBIT HOLE"
INNER_DIVISIONS = ("scene", "section", "article")


@dataclass(frozen=True, slots=True)
class Block:
    kind: Kind
    start: int  # of its first character that is no white space
    end: int  # behind its last one
    level: int = 0  # of a heading, from 1
    title: str = ""  # of a heading, without its marks


def blocks_of(text: str) -> list[Block]:
    lines = _Lines(text)
    found = list(lines.blocks())
    return found if any(block.kind == "heading" for block in found) else _with_plain_headings(text, found)


class _Lines:
    """One pass over the lines of a text."""

    def __init__(self, text: str):
        self.text = text
        self.spans = [match.span() for match in re.finditer(r"[^\n]*\n|[^\n]+", text)]
        self.lines = [text[start:end].rstrip() for start, end in self.spans]

    def blocks(self) -> Iterator[Block]:
        place = 0
        while place < len(self.lines):
            if not self.lines[place]:
                place += 1
                continue
            kind, after, level, title = self._next(place)
            start, end = self.spans[place][0], self.spans[after - 1][1]
            content = self.text[start:end]
            yield Block(kind, end - len(content.lstrip()), start + len(content.rstrip()), level, title)
            place = after

    def _next(self, place: int) -> tuple[Kind, int, int, str]:
        """Kind of the block that begins here, the line after it, and level and title of a heading."""
        line = self.lines[place]
        if FENCE.match(line):
            return "code", self._after_fence(place), 0, ""
        if heading := ATX.match(line):
            title = re.sub(r"(?:^|[ \t])#+$", "", heading[2]).strip()
            return "heading", place + 1, len(heading[1]), title or heading[2]
        if self._is_underlined(place):
            return "heading", place + 2, 1 if "=" in self.lines[place + 1] else 2, line.strip()
        if ITEM.match(line):
            return "list", self._after_list(place), 0, ""
        if TABLE_ROW.match(line):
            return "table", self._while(place, TABLE_ROW), 0, ""
        if INDENT.match(line):
            return "code", self._while(place, INDENT), 0, ""
        return "paragraph", self._after_paragraph(place), 0, ""

    def _is_underlined(self, place: int) -> bool:
        is_first = not place or not self.lines[place - 1]
        return is_first and place + 1 < len(self.lines) and bool(UNDERLINE.match(self.lines[place + 1]))

    def _after_fence(self, place: int) -> int:
        """Without an end the code goes on to the end of the text."""
        mark = FENCE.match(self.lines[place])
        assert mark
        for number in range(place + 1, len(self.lines)):
            line = self.lines[number].strip()
            if len(line) >= len(mark[1]) and line == mark[1][0] * len(line):
                return number + 1
        return len(self.lines)

    def _while(self, place: int, form: re.Pattern[str]) -> int:
        while place < len(self.lines) and form.match(self.lines[place]):
            place += 1
        return place

    def _after_paragraph(self, place: int) -> int:
        place += 1
        while place < len(self.lines) and self.lines[place] and not self._interrupts(place):
            place += 1
        return place

    def _interrupts(self, place: int) -> bool:
        line = self.lines[place]
        return bool(FENCE.match(line) or ATX.match(line) or ITEM.match(line) or TABLE_ROW.match(line))

    def _after_list(self, place: int) -> int:
        """A list goes on with items, with indented lines, and with lines that follow without an empty one."""
        after_empty = False
        while place < len(self.lines):
            line = self.lines[place]
            if not line:
                after_empty = True
                place += 1
                continue
            if ATX.match(line) or (after_empty and not ITEM.match(line) and not line[0].isspace()):
                break
            place = self._after_fence(place) if FENCE.match(line) else place + 1
            after_empty = False
        while not self.lines[place - 1]:
            place -= 1
        return place


def _with_plain_headings(text: str, blocks: list[Block]) -> list[Block]:
    return [
        Block("heading", block.start, block.end, level, text[block.start : block.end])
        if (level := _plain_level(text, block))
        else block
        for block in blocks
    ]


def _plain_level(text: str, block: Block) -> int | None:
    """Level of a heading that no mark makes one; None = it is none."""
    line = text[block.start : block.end]
    is_short = len(line) <= MOST_HEADING_CHARACTERS and len(line.split()) <= MOST_HEADING_WORDS
    if block.kind == "table" or "\n" in line or not is_short or line.removesuffix(".").endswith(SENTENCE_END):
        return None
    if division := DIVISION.match(line.lower()):
        return 2 if division[0].startswith(INNER_DIVISIONS) else 1
    if line.endswith("."):
        return None
    if number := NUMBERED.match(line):
        return 1 + number[1].count(".")
    n_letters = sum(map(str.isalpha, line))
    return LEVEL_OF_CAPITALS if line.isupper() and n_letters >= max(3, len(line) // 2) else None


def parts_of(text: str, kind: Kind, start: int, end: int) -> Iterator[list[Span]]:
    """Ever smaller parts of a block, down to lines, with the white space between them in the part before it."""
    content = text[start:end]
    if kind == "list":
        items = list(re.finditer(rf"^{MARK}[ \t]", content, re.MULTILINE))
        least = min((len(item[1].expandtabs(4)) for item in items), default=0)
        yield _divided(start, end, [item.start() for item in items if len(item[1].expandtabs(4)) <= least])
    if kind in ("code", "list"):
        yield _divided(start, end, [match.end() for match in re.finditer(r"\n[ \t]*\n+", content)])
    if kind in ("code", "list", "table"):
        yield _divided(start, end, [match.end() for match in re.finditer(r"\n", content)])


def _divided(start: int, end: int, places: list[int]) -> list[Span]:
    """The span, cut before each of these places, which count from its start."""
    borders = [start, *(start + place for place in places if 0 < place < end - start), end]
    return list(itertools.pairwise(borders))
