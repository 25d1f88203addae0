"""The pieces of a text that remain after spans are cut out.

In: spans in characters. Out: the pieces to keep. A margin on both sides of a span is cut too, because the text around
an example often names or answers it; pieces that are too short are cut as well; a text that would be in too many
pieces is dropped (arXiv:2005.14165, appendix C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

WORD_CHARACTERS = 100  # a piece is shortened by up to this much to end between words


@dataclass(frozen=True, slots=True)
class CutLimits:
    """The fields of DecontaminateConfig that decide what is left."""

    margin: int
    min_piece: int
    max_pieces: int


def pieces_without(text: str, spans: Sequence[tuple[int, int]], limits: CutLimits) -> list[tuple[int, int]]:
    """Start and end of the pieces of `text` to keep, in order; none if there would be too many pieces."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((max(0, start - limits.margin), end + limits.margin) for start, end in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    starts, ends = [0, *(end for _, end in merged)], [*(start for start, _ in merged), len(text)]
    pieces = [_trimmed(text, start, end) for start, end in zip(starts, ends, strict=True) if start < end]
    if len(pieces) > limits.max_pieces:
        return []
    return [(start, end) for start, end in pieces if end - start >= limits.min_piece]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Moved to a border between words if the cut is inside a word, and without white space at the ends."""
    if start > 0 and not text[start - 1].isspace():
        start = next((i for i in range(start, min(end, start + WORD_CHARACTERS)) if text[i].isspace()), start)
    if end < len(text) and not text[end].isspace():
        end = next((i for i in range(end, max(start, end - WORD_CHARACTERS), -1) if text[i - 1].isspace()), end)
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
