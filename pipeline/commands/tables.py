"""What several commands say alike: plain tables with columns padded to their widest cell, counts, and questions."""

import sys
from collections.abc import Sequence


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The header, a rule, and one line per row; the columns `right` are aligned to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def count_text(n: int, noun: str, plural: str = "") -> str:
    """For instance "1 asset" or "1,204 assets"; `plural` is that of a noun that takes no s."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def agreed(question: str) -> bool:
    """Whether the user agrees; false without a terminal to ask at."""
    return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
