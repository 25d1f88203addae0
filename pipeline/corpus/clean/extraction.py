"""The result of extraction, which every extractor returns whatever the format of the page.

In: nothing. Out: `Extracted`. stage.py maps media types to extractors.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extracted:
    """`reason` is why there is no text (unreadable, encrypted, no_text, too_large), or None if there is one."""

    text: str
    title: str | None = None
    extractor: str = ""  # the extractor that was used, for the column of that name
    code_language: str | None = None  # of source code
    reason: str | None = None
