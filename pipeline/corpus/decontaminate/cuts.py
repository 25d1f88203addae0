"""What is left of a text around places that have to go.

In: places in characters. Out: the pieces that stay. Both sides of a place lose a margin, because what stands around
an example often names or answers it; a piece that is too short says nothing by itself and goes, too; a text in too
many pieces is no text any more (arXiv:2005.14165, appendix C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

WORD_CHARACTERS = 100  # so far a piece gives way to end between words


@dataclass(frozen=True, slots=True)
class CutLimits:
    """The fields of decontaminate.DecontaminateConfig that decide what is left."""

    margin: int
    min_piece: int
    max_pieces: int


def pieces_without(text: str, spans: Sequence[tuple[int, int]], limits: CutLimits) -> list[tuple[int, int]]:
    """Start and end of what stays of `text`, in order; none where the text would fall into too many pieces."""
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
    """Between words where a cut fell into one, and without white space at the ends."""
    if start > 0 and not text[start - 1].isspace():
        start = next((i for i in range(start, min(end, start + WORD_CHARACTERS)) if text[i].isspace()), start)
    if end < len(text) and not text[end].isspace():
        end = next((i for i in range(end, max(start, end - WORD_CHARACTERS), -1) if text[i - 1].isspace()), end)
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
