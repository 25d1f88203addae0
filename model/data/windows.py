"""Windows over a text that is longer than the model reads.

In: the number of pieces of a text, and how many of them fit into a window. Out: windows that overlap and cover all
pieces. Every piece is owned by one window, that in which it is farthest from an edge, because it sees the most of the
text around it there. Training supervises a piece, and answering reads it, only where it is owned, so that nothing is
lost at an edge and nothing counts twice.
"""

from typing import NamedTuple


class Window(NamedTuple):
    """Pieces `start` to `end` - 1 of a text, of which it owns `owns_from` to `owns_to` - 1."""

    start: int
    end: int
    owns_from: int
    owns_to: int


def windows_of(n: int, most: int, overlap: int) -> list[Window]:
    """Windows of at most `most` pieces over a text of `n`; neighbours share `overlap`. Every text has at least one.

    The two ends of the text are no edges: nothing is missing beyond them.
    """
    if not 0 <= overlap < most:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than the {most} pieces of a window")
    starts = range(0, max(n - overlap, 1), most - overlap)
    ends = [min(start + most, n) for start in starts]
    borders = [(start + end) // 2 for start, end in zip(starts[1:], ends[:-1], strict=True)]
    return list(map(Window, starts, ends, [0, *borders], [*borders, n]))
