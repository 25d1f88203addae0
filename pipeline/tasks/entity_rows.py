"""Entities of a labelled row as sorted spans of characters, or what is wrong with them.

In: a text, and its entities as data write them: a list of objects, or of lists [start, end, label], or such a list as
JSON in a cell of a table. Out: spans, or a drop reason with its detail. `end` is the character after the last one,
counted from 0 as `start` is, in characters of Unicode and not in bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from model.data.examples import repaired
from model.data.spans import Span
from pipeline.corpus.examples.paths import SHOWN_CHARACTERS, shown, value_at
from pipeline.tasks.label_values import too_long

IN_LISTS = {"start": "0", "end": "1", "label": "2"}  # positions in [start, end, label]


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """Why a row is dropped."""

    reason: str
    detail: str


def spans_in(text: str, entities: Any, keys: Mapping[str, str], names: Mapping[str, str]) -> list[Span]:
    """The entities, sorted. `keys` lead to start, end and label; `names` has the names of the labels to keep, all if
    it is empty. Raises Refused."""
    if isinstance(entities, str):
        try:
            entities = json.loads(entities)
        except (ValueError, RecursionError):
            raise Refused("unreadable_entities", entities[: 2 * SHOWN_CHARACTERS]) from None
    if entities is None:
        raise Refused("no_entities", "a row without entities needs an empty list")
    if not isinstance(entities, list):
        raise Refused("unreadable_entities", f"a list is expected, got {shown(entities)}")
    spans = sorted({_span(text, entity, keys) for entity in entities})
    if names:
        spans = [Span(span.start, span.end, names[span.label]) for span in spans if span.label in names]
    for one, other in pairwise(spans):
        if other.start < one.end:
            first, second = (f"{text[span.start : span.end]!r} ({span.label})" for span in (one, other))
            raise Refused("overlapping_entities", f"{first} and {second}")
    return spans


def _span(text: str, entity: Any, keys: Mapping[str, str]) -> Span:
    keys = IN_LISTS if isinstance(entity, list | tuple) else keys
    start, end, label = (value_at(list(entity) if isinstance(entity, tuple) else entity, keys[key]) for key in keys)
    if not (_is_whole(start) and _is_whole(end)):
        raise Refused(
            "unreadable_entities", f"{keys['start']} and {keys['end']} are no whole numbers: {shown(entity)}"
        )
    if not isinstance(label, str) or not (label := repaired(label)):
        raise Refused("no_label", f"no text at {keys['label']}: {shown(entity)}")
    if fault := too_long(label):
        raise Refused("long_label", fault)
    start, end = int(start), int(end)
    if not 0 <= start < end <= len(text):
        what = "is empty" if start == end else "points outside the text"
        raise Refused("entity_outside_text", f"{start} to {end} ({label}) {what} of {len(text):,} characters")
    if not text[start:end].strip():
        raise Refused("empty_entity", f"{start} to {end} ({label}) has only white space")
    return Span(start, end, label)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1


def struct_of(spans: Sequence[Span]) -> list[dict[str, Any]]:
    return [span._asdict() for span in spans]
