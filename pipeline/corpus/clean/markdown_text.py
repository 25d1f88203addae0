"""Markdown without its front matter and comments, which a reader does not see; everything else reads as it is.

In: text. Out: `Extracted`, with the code as `verbatim`: fenced and indented blocks and code inside lines. A comment
inside code is code, and code inside a comment is a comment, so both are looked for in one pass, as CommonMark 0.31
reads blocks (sections 4.4 to 4.6) and spans of code (6.1). A fence that is not closed goes on to the end.
"""

import re
from bisect import bisect_right
from collections.abc import Generator, Iterator

from pipeline.corpus.clean.extraction import Extracted, joined

EXTRACTOR = "markdown"
FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:(?![ \t]*\n).*?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
FENCE = re.compile(r"([ \t>]*)(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}(?=[^`\n]*$)|~{3,})", re.MULTILINE)
LIST_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+)(?=\S)")
INLINE = re.compile(r"\\[`<\\]|`+|<!--")
BLANK = re.compile(r"[ \t]*(?:\n|\Z)")
BLANK_LINE = re.compile(r"\n[ \t]*\n")
CODE_INDENT = 4


def markdown_text(text: str) -> Extracted:
    text = FRONT_MATTER.sub("", text)
    shown, verbatim = joined(_pieces(text))
    return Extracted(shown, extractor=EXTRACTOR, verbatim=verbatim)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of the text without its comments, each with whether it is code."""
    place = 0
    for start, end, is_code in _Blocks(text).spans():
        yield text[place:start], False
        if is_code:
            yield text[start:end], True
        place = end
    yield text[place:], False


class _Blocks:
    """One pass over the lines of a text. `offset` is where the text of the current list item begins."""

    def __init__(self, text: str):
        self.text = text
        self.offset = 0
        self.last_end = text.rfind("-->")
        self.runs: dict[int, list[int]] = {}  # length of a run of backticks -> where such runs stand
        for run in re.finditer("`+", text):
            self.runs.setdefault(len(run[0]), []).append(run.start())

    def spans(self) -> Iterator[tuple[int, int, bool]]:
        """Code and comments in their order: where they begin and end, and whether it is code."""
        place, is_mid_line, is_after_blank = 0, False, True
        while place < len(self.text):
            if is_mid_line:
                place, is_mid_line = yield from self._prose(place)
            elif blank := BLANK.match(self.text, place):
                place, is_after_blank = max(blank.end(), place + 1), True
                continue
            elif fence := FENCE.match(self.text, place):
                end = self._end_of_fence(fence)
                yield place, end, True
                place = end + 1
            elif is_after_blank and self._indent(place) >= self.offset + CODE_INDENT:
                end = self._end_of_indented(place)
                yield place, end, True
                place = end + 1
            else:
                self._see_list(place, is_after_blank)
                place, is_mid_line = yield from self._prose(place)
            is_after_blank = False

    def _line_end(self, place: int) -> int:
        end = self.text.find("\n", place)
        return len(self.text) if end < 0 else end

    def _indent(self, place: int) -> int:
        line = self.text[place : self._line_end(place)]
        return len((line[: len(line) - len(line.lstrip(" \t"))]).expandtabs(4))

    def _see_list(self, place: int, is_after_blank: bool) -> None:
        if item := LIST_ITEM.match(self.text, place):
            self.offset = len(item[0].expandtabs(4))
        elif is_after_blank and self._indent(place) < self.offset:
            self.offset = 0

    def _end_of_fence(self, fence: re.Match[str]) -> int:
        sign = fence[2]
        closing = re.compile(rf"^[ \t>]*{sign[0]}{{{len(sign)},}}[ \t]*$", re.MULTILINE)
        end = closing.search(self.text, self._line_end(fence.end()))
        return end.end() if end else len(self.text)

    def _end_of_indented(self, place: int) -> int:
        end = self._line_end(place)
        following = end + 1
        while following < len(self.text):
            if blank := BLANK.match(self.text, following):
                following = max(blank.end(), following + 1)
            elif self._indent(following) >= self.offset + CODE_INDENT:
                end = self._line_end(following)
                following = end + 1
            else:
                break
        return end

    def _prose(self, place: int) -> Generator[tuple[int, int, bool], None, tuple[int, bool]]:
        """Code and comments of the line at `place`. Returns where to go on, and whether that is inside a line.

        A span of code may end in a later line of the paragraph, a comment anywhere.
        """
        end = self._line_end(place)
        while inline := INLINE.search(self.text, place, end):
            if inline[0] == "<!--":
                closed = self.text.find("-->", inline.end()) if inline.end() <= self.last_end else -1
                place = inline.end() if closed < 0 else closed + 3
                if closed >= 0:
                    yield inline.start(), place, False
            elif inline[0][0] == "`" and (closed := self._closing(inline)) is not None:
                place = closed
                yield inline.start(), place, True
            else:
                place = inline.end()
            if place > end:
                return place, True
        return end + 1, False

    def _closing(self, opening: re.Match[str]) -> int | None:
        """The end of the span of code that begins with these backticks, in the same paragraph."""
        starts = self.runs.get(len(opening[0]), [])
        following = bisect_right(starts, opening.start())
        if following == len(starts):
            return None
        start = starts[following]
        is_far = BLANK_LINE.search(self.text, opening.end(), start)
        return None if is_far else start + len(opening[0])
