"""The most confident mistakes of a model with their texts, and how often it is wrong in which part of the examples.

In: the mistakes that a kind of task finds (`Judge.mistakes`), and the examples. Out: mistakes.md of the Report
folder, and the section of report.md about the parts. The texts stay in the folder: report.md is kept by Dagster and
sent to MLflow, which may be a server of many people, and becomes the description of a registered model.

An example is wrong if it has at least one mistake. The parts are those of the kind and those that any text has: its
length, a negation, digits, and capitals; and each label if there are few.

Legend: N examples.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.answers import TableRows
from pipeline.evaluation.intervals import rate
from pipeline.evaluation.results import quoted

FILE = "mistakes.md"
MOST_SHOWN = 50  # mistakes
MOST_CHARACTERS = 1000  # of a text
FEWEST = 10  # examples of a part: the error rate of fewer means nothing
MOST_VALUES = 40  # of a column, so that they are labels
NOT_PARTS = ("id", "text", "split", "group_id")
NEGATION = re.compile(
    r"\b(?:no|not|never|none|nothing|nobody|neither|nor|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE
)
DIGIT = re.compile(r"\d")
CAPITALS = re.compile(r"\b[^\W\d_a-z]{3,}\b")  # a word of capitals, or of a script without small letters
Slices = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong in an example; one may have several, such as two missed entities."""

    row: int  # place of the example
    expected: str
    answered: str
    confidence: float  # probability of the answer
    text: str = ""  # what is shown of the example, if not its text from the beginning


def worst_mistakes(mistakes: Iterable[Mistake], n_rows: int) -> tuple[list[Mistake], np.ndarray]:
    """The most confident ones, and for each example whether it has one, bool (N,)."""
    wrong_N = np.zeros(n_rows, bool)

    def noted() -> Iterable[Mistake]:
        for one in mistakes:
            wrong_N[one.row] = True
            yield one

    return heapq.nlargest(MOST_SHOWN, noted(), key=lambda one: (one.confidence, -one.row)), wrong_N


def mistakes_markdown(worst: Sequence[Mistake], n_wrong: int, examples: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "# The most confident mistakes",
        f"\n{n_wrong:,} of {len(examples):,} examples have a mistake. The texts are data of the task, so that"
        " this file is not sent to MLflow.",
    ]
    for number, one in enumerate(worst, 1):
        text = printable(one.text or str(examples[one.row]["text"]))
        shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
        lines.append(
            f"\n{number}. expected **{plain(one.expected) or '-'}**, answered **{plain(one.answered) or '-'}**,"
            f" probability {one.confidence:.3f}\n\n{quoted(shown)}"
        )
    return "\n".join(lines) + "\n"


def printable(text: str) -> str:
    """The text without signs that a terminal or a page would act on, such as escapes; line ends stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)


def slices_table(slices: Slices, wrong_N: np.ndarray) -> str:
    """A section of the report: the share of wrong examples in each part."""
    n_wrong, rows = int(wrong_N.sum()), []
    for name, values in slices.items():
        n_all, n_of_wrong = Counter(values), Counter(compress(values, wrong_N))
        groups = sorted((group for group, n in n_all.items() if n >= FEWEST), key=_in_order)
        if len(groups) > 1:
            rows += [_slice_row(name, group, n_of_wrong[group], n_all[group]) for group in groups]
    if not rows:
        return ""
    whole = f"{n_wrong:,} of {len(wrong_N):,} examples have a mistake ({n_wrong / len(wrong_N):.1%})"
    return (
        f"\n## Where the model is wrong\n\n{whole}. The most confident mistakes with their texts are in {FILE} of the"
        f" folder of this report. Parts of fewer than {FEWEST} examples are left out.\n\n"
        + table(["part", "is", "wrong", "95 % interval", "examples"], rows)
    )


def _in_order(group: str) -> list[tuple[int, str]]:
    """A key that puts "9 to 10" before "11 to 12"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", group.replace(",", ""))]


def _slice_row(name: str, group: str, n_wrong: int, n_all: int) -> list[str]:
    found = rate(n_wrong, n_all)
    return [plain(name), plain(group), f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}", f"{n_all:,}"]


def slices_of(examples: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """Parts of the examples that need no knowledge of the task."""
    lengths, flags = [], {"negation (English)": [], "digits": [], "word in capitals": []}
    for row in examples:
        text = str(row["text"])
        lengths.append(len(text.split()))
        for found, pattern in zip(flags.values(), (NEGATION, DIGIT, CAPITALS), strict=True):
            found.append("yes" if pattern.search(text) else "no")
    return {**_of_columns(examples), "words": quarters(np.array(lengths)), **flags}


def quarters(lengths_N: np.ndarray) -> list[str]:
    """The quarter of each length as its range; examples of one length are in one quarter."""
    if not len(lengths_N):
        return []
    edges = np.unique(np.quantile(lengths_N, [0.25, 0.5, 0.75], method="inverted_cdf"))
    place_N = np.searchsorted(edges, lengths_N, side="left")
    names = {p: lengths_N[place_N == p] for p in np.unique(place_N)}
    texts = {p: f"{of.min():,} to {of.max():,}" for p, of in names.items()}
    return [texts[p] for p in place_N]


def _of_columns(examples: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """Columns of the kind with few different texts."""
    if not isinstance(examples, TableRows):
        return {}
    columns = [f.name for f in examples.table.schema if f.name not in NOT_PARTS and _is_text(f.type)]
    few = [name for name in columns if 1 < len(examples.table[name].unique()) <= MOST_VALUES]
    return {name: examples.table[name].to_pylist() for name in few}


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_mistakes(directory: Path) -> str:
    """mistakes.md of a Report. Raises ValueError when the evaluation wrote none."""
    path = directory / FILE
    if not path.exists():
        raise ValueError(f"{directory} has no {FILE}: the kind of task lists no mistakes; evaluate the task again")
    return path.read_text("utf-8")
