"""The answers of a question in the forms in which data sets have them, and whether they are in the text.

In: the value of a row's `answers`, and of `answer_start` if there is one. Out: (first character, text) of every
answer, none for a question without an answer; or a drop reason with its details. The forms:

- a list of objects with `text` and `answer_start` or `start`, as in SQuAD's own files; one such object;
- an object with lists `text` and `answer_start`, as in Hugging Face's squad;
- a text, or a list of texts; without a start its place is searched, and it must be in the text exactly once;
- in a table of cells the same as JSON; an empty cell is a question without an answer.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from pipeline.corpus.examples.paths import shown

Answer = tuple[int, str]  # first character, text
Fault = tuple[str, str]  # drop reason, details
STARTS = ("answer_start", "start")


def answers_in(text: str, value: Any, start: Any = None) -> tuple[Answer, ...] | Fault:
    """Answers without repetitions, or why the row cannot be used."""
    found = _listed(value, start)
    if found is None:
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return ("no_answers", "") if missing else ("not_answers", shown(value))
    answers: dict[Answer, None] = {}
    for answer, first in found:
        placed = _placed(text, answer, first)
        if isinstance(placed[0], str):
            return placed  # type: ignore[return-value]
        answers[placed] = None  # type: ignore[index]
    return tuple(answers)


def _listed(value: Any, start: Any) -> list[tuple[Any, Any]] | None:
    """Pairs of a text and a start, which may be None; None if this is none of the forms."""
    if isinstance(value, str):
        value = _from_cell(value)
    if isinstance(value, str):
        return [(value, start)] if value.strip() else []
    if isinstance(value, dict):
        texts, starts = value.get("text"), next((value[key] for key in STARTS if key in value), None)
        if not isinstance(texts, list):
            return None if texts is None else [(texts, starts)]
        starts = [None] * len(texts) if starts is None else starts
        same_length = isinstance(starts, list) and len(starts) == len(texts)
        return list(zip(texts, starts, strict=True)) if same_length else None
    if not isinstance(value, list):
        return None
    pairs = [
        (one.get("text"), next((one[key] for key in STARTS if key in one), None)) if isinstance(one, dict) else one
        for one in value
    ]
    starts = start if isinstance(start, list) and len(start) == len(pairs) else [None] * len(pairs)
    return [one if isinstance(one, tuple) else (one, first) for one, first in zip(pairs, starts, strict=True)]


def _from_cell(cell: str) -> Any:
    """The value that a cell holds as JSON; the cell itself if it is a text."""
    if not cell.lstrip().startswith(("{", "[")):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    is_answers = isinstance(found, dict) or all(isinstance(one, dict | str) for one in found)
    return found if is_answers else cell


def _placed(text: str, answer: Any, start: Any) -> Answer | Fault:
    if not isinstance(answer, str):
        return "not_answers", shown(answer)
    if not answer.strip():
        return "empty_answer", ""
    if start is None or start == "":
        n_found = _occurrences(text, answer)
        if n_found == 1:
            return text.index(answer), answer
        return ("answer_not_in_text" if not n_found else "answer_found_twice"), shown(answer)
    first = _whole(start)
    if first is None:
        return "not_answers", f"start {shown(start)}"
    if not 0 <= first <= first + len(answer) <= len(text):
        return "answer_outside_text", f"start {first} of {len(text)} characters"
    if text[first : first + len(answer)] != answer:
        return "answer_not_at_start", f"{shown(answer)}, found {shown(text[first : first + len(answer)])}"
    return first, answer


def _occurrences(text: str, answer: str) -> int:
    """How often the answer is in the text, 2 for more than once; occurrences may overlap."""
    first = text.find(answer)
    return 0 if first < 0 else 1 + (text.find(answer, first + 1) >= 0)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def texts_of(answers: Sequence[Any]) -> list[str]:
    """The texts of the column `answers` of an example."""
    return [answer["text"] for answer in answers]
