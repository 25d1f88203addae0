"""The result of extraction, which every extractor returns whatever the format of the page.

In: nothing. Out: `Extracted`. stage.py maps media types to extractors.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

FENCE = re.compile(r"^[ \t]*(`{3,})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Extracted:
    """`reason` is why there is no text (unreadable, encrypted, no_text, too_large), or None if there is one."""

    text: str
    title: str | None = None
    extractor: str = ""  # the extractor that was used, for the column of that name
    code_language: str | None = None  # of source code
    reason: str | None = None
    n_unknown_templates: int | None = None  # of a wiki: inside a sentence, shown by their values; None = not a wiki
    verbatim: tuple[tuple[int, int], ...] = ()  # spans of `text` that are code, in their order; they are not repaired


def fence_around(code: str) -> str:
    """The fence of a listing: longer than any in it."""
    return "`" * max((len(match[1]) + 1 for match in FENCE.finditer(code)), default=3)


def joined(pieces: Iterable[tuple[str, bool]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of pieces, each with whether it is code, and the spans of the code: `text` and `verbatim`."""
    texts: list[str] = []
    verbatim: list[tuple[int, int]] = []
    length = 0
    for text, is_code in pieces:
        texts.append(text)
        if is_code and text:
            verbatim.append((length, length + len(text)))
        length += len(text)
    return "".join(texts), tuple(verbatim)
