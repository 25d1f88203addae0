"""Writes Markdown for a data card: tables, and untrusted text with all markup escaped.

In: numbers and texts. Out: Markdown in which no part of a page, an address or a licence acts as markup.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

LONGEST_CELL = 80  # characters of a text from outside
LONGEST_ADDRESS = 70
NUMBERS = ("", "-", "under 0.1 %")  # that do not begin with a digit
MARKUP = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|#~$"} | {"&": "&amp;"})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are already Markdown. A column is right-aligned if every cell begins with a digit."""
    numeric = [
        bool(rows) and all(row[place][:1].isdigit() or row[place] in NUMBERS for row in rows)
        for place in range(len(header))
    ]
    rule = ["---:" if is_number else "---" for is_number in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows]) + "\n"


def plain(text: object) -> str:
    """A text from outside as plain words: one line, without invisible characters or markup."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
    return (line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 3] + "...").translate(MARKUP)


def plain_line(text: str) -> str:
    """A longer text from outside as plain words: only single words are shortened."""
    return " ".join(plain(word) for word in text.split())


def code(name: str) -> str:
    """A name as code."""
    return (
        "`"
        + "".join(sign if sign.isprintable() and sign not in "`|\\" else "?" for sign in name[:LONGEST_CELL])
        + "`"
    )


def address(url: str) -> str:
    """The end of an address as code; only the name of a local file, because its folders are private."""
    parts = urlsplit(url) if url.startswith("file:") else None
    shown = "file:.../" + parts.path.rsplit("/", 1)[-1] if parts else url
    return code(shown if len(shown) <= LONGEST_ADDRESS else "..." + shown[3 - LONGEST_ADDRESS :])


def count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def documents(number: int) -> str:
    return counted(number, "document")


def counted(number: int, noun: str) -> str:
    """For instance "1 source" or "1,204 sources"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """A percentage with one decimal; a share above 0 is never shown as 0."""
    if not whole:
        return "-"
    value = 100 * part / whole
    return f"{value:.1f} %" if value >= 0.1 or not part else "under 0.1 %"


def per_million(n: int, words: int) -> str:
    return f"{1_000_000 * n / words:,.1f}" if words else "-"


def size(n_bytes: int) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:,.1f} {unit}"
    return f"{n_bytes:,} bytes"


def listed(words: Sequence[str], most: int = 6) -> str:
    """The words as "a, b and c"; if there are more than `most`, the first and the number of the others."""
    shown = list(words[:most])
    if len(words) > most:
        shown.append(f"{len(words) - most} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1] if shown else ""]))
