"""Which labels a classifier confuses: the confusion matrix as a table and as a figure, of bounded size.

In: a confusion matrix and its labels, which are texts of the user. Out: Markdown with all markup escaped, and a
figure. Beyond MOST_SHOWN labels the table has the most frequent confusions, and the figure the labels that are
confused most, because a full matrix grows with the square of the labels.

matplotlib is imported where it is used. Legend: C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.classification_metrics import places_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SHOWN = 40  # labels in a matrix
MOST_CONFUSIONS = 30  # rows of the table that replaces it
WITH_SHARES = 12  # labels up to which a cell of the figure has room for its share
LABEL_CHARACTERS = 30  # in the figure


def confusion_matrix(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Examples by true label (rows) and predicted label (columns), int64 (C, C)."""
    matrix_CC = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix_CC, (places_of(truth, labels), places_of(predicted, labels)), 1)
    return matrix_CC


def confusion_tables(matrix_CC: np.ndarray, labels: Sequence[str]) -> str:
    """The whole matrix, or the most frequent confusions of many labels, as Markdown."""
    names = [plain(label) for label in labels]
    if len(labels) <= MOST_SHOWN:
        rows = [[name, *(f"{n:,}" for n in row)] for name, row in zip(names, matrix_CC, strict=True)]
        return "\nConfusion matrix (rows: true label, columns: predicted):\n\n" + table(["", *names], rows)
    wrong_CC = matrix_CC - np.diag(np.diagonal(matrix_CC))
    places = np.argsort(-wrong_CC, axis=None, kind="stable")[:MOST_CONFUSIONS]
    found = [np.unravel_index(place, wrong_CC.shape) for place in places if wrong_CC.flat[place]]
    rows = [[names[true], names[other], f"{matrix_CC[true, other]:,}"] for true, other in found]
    return (
        f"\nThe {len(rows)} most frequent confusions among {len(labels):,} labels, which cover"
        f" {sum(int(wrong_CC[one]) for one in found):,} of {wrong_CC.sum():,} wrong answers:\n\n"
        + table(["true label", "predicted label", "examples"], rows)
    )


def confusion_figure(matrix_CC: np.ndarray, labels: Sequence[str]) -> "Figure":
    """The matrix as shades of its row shares, with the counts; of many labels those that are confused most."""
    from matplotlib.figure import Figure

    shown = most_confused(matrix_CC)
    counts = matrix_CC[np.ix_(shown, shown)]
    shares = counts / np.maximum(matrix_CC[shown].sum(axis=1, keepdims=True), 1)
    names = [_short(labels[int(place)]) for place in shown]
    has_shares = len(shown) <= WITH_SHARES
    side = 2.5 + (0.6 if has_shares else 0.35) * len(shown)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # parse_math: a label may contain a $, which would begin a formula
    axes.set_xticks(range(len(names)), names, rotation=30 if has_shares else 90, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    if len(shown) < len(labels):
        axes.set_title(f"the {len(shown)} of {len(labels):,} labels with the most wrong answers")
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]:,}" + (f"\n{shares[row, column]:.1%}" if has_shares else "")
        axes.text(column, row, text, ha="center", va="center", color=color)
    return figure


def most_confused(matrix_CC: np.ndarray) -> np.ndarray:
    """Places of the labels with the most wrong answers, as true or predicted label, in their order: at most
    MOST_SHOWN."""
    wrong = matrix_CC.sum(axis=0) + matrix_CC.sum(axis=1) - 2 * np.diagonal(matrix_CC)
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_SHOWN])


def _short(label: str) -> str:
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in label).split())
    return line if len(line) <= LABEL_CHARACTERS else f"{line[: LABEL_CHARACTERS - 3]}..."
