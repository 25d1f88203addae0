"""What comes out of a page, whatever its format: the one shape that every extractor returns.

In: nothing. Out: `Extracted`. Which function reads which media type is said in clean.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extracted:
    """`reason` says why there is nothing to use (unreadable, encrypted, no_text, too_large), None where there is."""

    text: str
    title: str | None = None
    extractor: str = ""  # which one won, for the column of that name
    code_language: str | None = None  # of source code
    reason: str | None = None
