"""Context checks shared by the finders of personal data: where numbers occur in a text, and the words next to them.

A cluster is a run of digits with at most three separators between two of them: a possible phone number, card number
or national id. Finders examine only clusters, which are rare in ordinary text.
"""

import re
from functools import lru_cache

Match = tuple[int, int]  # start and end in characters

CLUSTER = re.compile(r"[0-9](?:[ .\-/()\u00a0\u2010-\u2013]{0,3}[0-9]){5,}")
NO_ID = re.compile(r"(?<!\+)[0-9]{1,3}\.[0-9]{5,}|[0-9]{20,}")  # a decimal fraction; too many digits for any finder
MARGIN = 16  # characters next to a cluster that can belong to an id: letters before and after its digits
# Not part of a longer word, decimal number, path or dashed id.
ALONE_BEFORE = r"(?<![\w])(?<![\w][-.,/+])(?<![$\u20ac\u00a3])"
ALONE_AFTER = r"(?![\w])(?![-.,/=+][0-9A-Za-z])"
PLACEHOLDER_END = re.compile(r"\[[A-Z_]{2,16}\]")


@lru_cache(maxsize=1)  # four finders search the same text one after the other
def clusters(text: str) -> tuple[Match, ...]:
    return tuple(match.span() for match in CLUSTER.finditer(text) if not NO_ID.fullmatch(text, *match.span()))


def digits_of(number: str) -> str:
    return "".join(c for c in number if c in "0123456789")


def words_near(words: re.Pattern[str], text: str, start: int, end: int, before: int = 60, after: int = 30) -> bool:
    """Whether one of `words` is within this many characters of text[start:end]; placeholders do not count."""
    for beside in (text[max(0, start - before) : start], text[end : end + after]):
        if words.search(PLACEHOLDER_END.sub(" ", beside)):
            return True
    return False


def words_pattern(words: str) -> re.Pattern[str]:
    """A case-insensitive pattern for any of the space-separated `words`; '_' matches an optional space or hyphen."""
    alternatives = (re.escape(word).replace("_", "[ _-]?") for word in sorted(words.split(), key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(alternatives)})(?![^\W_])", re.IGNORECASE)
