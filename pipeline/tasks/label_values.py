"""Reads labels as data files write them: numbers, truth values, missing values, and names that a task declares.

In: a value of a row, and the settings `labels` and `rename` of a task, which map values in the data to names. Out:
the label as text, or None where there is none; or the labels of a row that may have several.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from model.data.examples import repaired
from pipeline.corpus.examples import paths

MOST_CHARACTERS = 500  # of a label; a longer one is probably a text
LABEL = re.compile(r"[^=\s][^=]*")
MISSING = {"nan", "-nan", "nat", "null", "<na>", "#n/a"}  # what programs write for a missing value, in lower case
SHARE = re.compile(r"0?\.\d+")
TRUTHS = {"1": True, "true": True, "yes": True, "y": True, "t": True, "x": True, "": False}
TRUTHS |= {"0": False, "false": False, "no": False, "n": False, "f": False}  # in lower case
WHOLE = re.compile(r"(-?\d+)\.0")  # a whole number, as a program writes it whose column has missing values


@lru_cache  # asked for every row
def names_of(labels: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [entry.rpartition("=") for entry in labels]
    if not all(separator and name for _, separator, name in pairs):
        raise ValueError(f"labels={labels} must be texts of the form value=name")
    return {value: name for value, _, name in pairs}


def label_text(label: Any) -> str | None:
    """A label as text, None if it is missing: true, false and numbers as in JSON, whole numbers without ".0"."""
    if isinstance(label, float) and not math.isfinite(label):
        return None
    text = repaired(label if isinstance(label, str) else "" if label is None else json.dumps(label))
    if text.casefold() in MISSING or not text:
        return None
    return whole[1] if (whole := WHOLE.fullmatch(text)) else text


def too_long(label: str) -> str:
    """What is wrong with the length of a label, "" if nothing is."""
    if len(label) <= MOST_CHARACTERS:
        return ""
    return f"{len(label):,} characters, expected at most {MOST_CHARACTERS}: is it the column of a text?"


def named(value: Any, names: Mapping[str, str]) -> str | None:
    """The name of a label, None if it has none; 1.0 and 1 are found under each other, and so are True and true."""
    text = repaired(value) if isinstance(value, str) else json.dumps(value)
    written = text if text in names else label_text(value) or ""
    truth = written.casefold() if written.casefold() in ("true", "false") else written
    return next((names[one] for one in (written, f"{written}.0", truth, truth.title()) if one in names), None)


def shown(value: Any) -> str:
    """A value of the data in a message, with the word for one that is no single value."""
    of = "a list: " if isinstance(value, list) else "an object: " if isinstance(value, dict) else ""
    return of + paths.shown(value)


def label_names(labels: Any, where: str, key: str = "labels") -> tuple[str, ...]:
    """As "value=name", sorted, so that the order in the file has no effect."""
    if isinstance(labels, list) and key == "labels":
        labels = {name: name for name in labels}
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in [*labels, *labels.values()]):
        of_names = " or a list of names" if key == "labels" else ""
        raise ValueError(f'{where}: {key} is a table of texts {{ "value in the data" = "name" }}{of_names}')
    for name in labels.values():
        if not LABEL.fullmatch(name):
            raise ValueError(f"{where}: label name {name!r} must not be empty, start with a space or contain '='")
    return tuple(sorted(f"{value}={name}" for value, name in labels.items()))


def truth(value: Any) -> bool | None:
    """Whether a row has the label in whose place this value is written; None if the value does not answer that.

    A missing value answers no, because programs leave cells of absent labels empty. A number between 0 and 1, such as
    the share of the people who chose the label, answers yes from 0.5 on, as is usual (arXiv:1903.04561 section 3).
    """
    if isinstance(value, list | dict):
        return None
    text = (label_text(value) or "").casefold()
    return float(text) >= 0.5 if SHARE.fullmatch(text) else TRUTHS.get(text)


def marked(marks: Mapping[str, Any]) -> list[str]:
    """The labels that are marked with 1 among marks of 0 and 1. Raises ValueError for another mark."""
    truths = {label: truth(mark) for label, mark in marks.items()}
    if unclear := [label for label, has in truths.items() if has is None]:
        raise ValueError(f"{shown(unclear[0])}: {shown(marks[unclear[0]])}")
    return [label for label, has in truths.items() if has]


def listed_labels(value: Any, separator: str | None) -> list[Any]:
    """The labels in a list, in an object of 0 and 1, or in a text, which may be a list as JSON or Python write it.

    Without a separator a text is one label. Raises ValueError if it is none of these.
    """
    if isinstance(value, dict):
        return marked(value)
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            value = _list_in(text)
        else:
            value = text.split(separator) if separator else [text]
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if nested := [one for one in values if isinstance(one, list | dict)]:
        raise ValueError(shown(nested[0]))
    return [one for one in values if label_text(one) is not None]


def _list_in(text: str) -> list[Any]:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return [text]
