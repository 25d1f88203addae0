"""Finds personal data in a text, by position and kind, and replaces it with typed placeholders.

In: a text. Out: spans (characters, sorted, not overlapping). Every kind is found by a cheap pattern that begins at a
rare character ('@', a digit, '://', a long token) and is then verified: check digits, number ranges, neighbouring
words. If two kinds claim the same characters, the more specific one has precedence, then the longer match. Masking
can uncover further spans (a number that was too close to another), so the masked text is searched again until nothing
is found.

Names of people and street addresses are not covered, because no pattern distinguishes them from other words.
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
# In order of precedence when two kinds claim the same characters.
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
MAX_PASSES = 20  # another pass is needed only if a mask uncovers something new


@dataclass(frozen=True, slots=True)
class PiiSpan:
    """text[start:end] is personal data of this kind; positions are in characters."""

    start: int
    end: int
    kind: str


def placeholder(kind: str) -> str:
    """The placeholder that replaces a span of this kind in a masked text."""
    if kind not in FINDERS:
        raise ValueError(f"unknown kind of personal data {kind!r}; expected one of {', '.join(PII_KINDS)}")
    return f"[{kind.upper()}]"


def find_pii(text: str, kinds: Collection[str] = PII_KINDS) -> list[PiiSpan]:
    """Spans of all `kinds` in `text`, sorted, not overlapping. The masked text contains none."""
    for kind in kinds:
        placeholder(kind)  # raises for an unknown kind
    spans: list[PiiSpan] = []
    masked = text
    for _ in range(MAX_PASSES):
        if not (found := _found(masked, kinds)):
            break
        spans = sorted([*spans, *_in_original(found, spans)], key=lambda span: span.start)
        masked = mask(text, spans)
    return spans


def mask(text: str, spans: Iterable[PiiSpan]) -> str:
    """`text` with each of the sorted `spans` replaced by a placeholder."""
    parts, at = [], 0
    for span in spans:
        parts += (text[at : span.start], placeholder(span.kind))
        at = span.end
    return "".join((*parts, text[at:]))


def _found(text: str, kinds: Collection[str]) -> list[PiiSpan]:
    """The spans that one pass over `text` finds."""
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
    """Spans of the masked text as spans of the original text. A match never reaches into a placeholder's brackets."""
    moved, n_masked, shift = [], 0, 0  # shift: characters by which the masks before this position shortened the text
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
