"""Personal data in a text: where it lies and of which kind, and the text with typed placeholders instead.

In: a text. Out: spans (characters, sorted, not overlapping). Every kind is found by a cheap pattern that begins at a
rare character ('@', a digit, '://', a long token) and is then checked: check digits, number ranges, words beside it.
Where two kinds claim the same characters the more specific one wins, then the longer. What a mask uncovers (a number
that stood too close to another) is found by looking again at the masked text, until nothing is left.

Names of people and street addresses are not covered: no pattern tells them from other words.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.corpus.signals.pii_national import national_ids
from pipeline.corpus.signals.pii_numbers import Match, card_numbers, ibans, social_security_numbers
from pipeline.corpus.signals.pii_online import emails, ip_addresses, url_passwords
from pipeline.corpus.signals.pii_phones import phone_numbers
from pipeline.corpus.signals.pii_secrets import api_keys, private_keys

PiiKind = Literal[
    "private_key",
    "password",
    "api_key",
    "iban",
    "credit_card",
    "us_ssn",
    "national_id",
    "email",
    "ip_address",
    "phone",
]
# In the order in which they win where two claim the same characters.
FINDERS: dict[PiiKind, Callable[[str], Iterable[Match]]] = {
    "private_key": private_keys,
    "password": url_passwords,
    "api_key": api_keys,
    "iban": ibans,
    "credit_card": card_numbers,
    "us_ssn": social_security_numbers,
    "national_id": national_ids,
    "email": emails,
    "ip_address": ip_addresses,
    "phone": phone_numbers,
}
PII_KINDS: tuple[PiiKind, ...] = tuple(FINDERS)
MAX_PASSES = 20  # a pass more is needed only where a mask uncovers something new


@dataclass(frozen=True, slots=True)
class PiiSpan:
    """text[start:end] is personal data of this kind; positions count characters."""

    start: int
    end: int
    kind: str


def placeholder(kind: str) -> str:
    """What stands in a masked text instead of a span of this kind."""
    if kind not in FINDERS:
        raise ValueError(f"pii kind {kind!r} does not exist; there are {', '.join(PII_KINDS)}")
    return f"[{kind.upper()}]"


def find_pii(text: str, kinds: Collection[str] = PII_KINDS) -> list[PiiSpan]:
    """Spans of all `kinds` in `text`, sorted, not overlapping; none is left in the masked text."""
    for kind in kinds:
        placeholder(kind)  # names a kind that does not exist
    spans: list[PiiSpan] = []
    masked = text
    for _ in range(MAX_PASSES):
        if not (found := _found(masked, kinds)):
            break
        spans = sorted([*spans, *_in_original(found, spans)], key=lambda span: span.start)
        masked = mask(text, spans)
    return spans


def mask(text: str, spans: Iterable[PiiSpan]) -> str:
    """`text` with a placeholder instead of each of the sorted `spans`."""
    parts, at = [], 0
    for span in spans:
        parts += (text[at : span.start], placeholder(span.kind))
        at = span.end
    return "".join((*parts, text[at:]))


def _found(text: str, kinds: Collection[str]) -> list[PiiSpan]:
    """The spans of one look at `text`."""
    taken: list[Match] = []
    spans = []
    for kind, finder in FINDERS.items():
        if kind not in kinds:
            continue
        for start, end in sorted(set(finder(text)), key=lambda match: match[0] - match[1]):  # the longest first
            at = bisect_left(taken, (start, end))
            if (at and taken[at - 1][1] > start) or (at < len(taken) and taken[at][0] < end):
                continue
            taken.insert(at, (start, end))
            spans.append(PiiSpan(start, end, kind))
    return sorted(spans, key=lambda span: span.start)


def _in_original(found: list[PiiSpan], masked_spans: list[PiiSpan]) -> list[PiiSpan]:
    """Spans of the masked text as spans of the text before; a match never reaches into a placeholder's brackets."""
    moved, n_masked, shift = [], 0, 0  # shift: characters that the masks before this place took away
    for span in found:
        while n_masked < len(masked_spans):
            mask_span = masked_spans[n_masked]
            width = len(placeholder(mask_span.kind))
            if mask_span.start - shift + width > span.start:
                break
            shift += mask_span.end - mask_span.start - width
            n_masked += 1
        moved.append(PiiSpan(span.start + shift, span.end + shift, span.kind))
    return moved
