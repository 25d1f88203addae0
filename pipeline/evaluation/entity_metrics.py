"""Compares the entities that were found in texts with the true ones.

In: true and found entities of each text. Out: counts per text and label, F1 of them, and the mistakes. An entity is
right if its first and last character and its label are (strict, as in CoNLL-2003 and seqeval); F1 is over all
entities of all labels (micro), of one label, or the mean over the labels that occur (macro).

Legend: N texts, L labels; the last axis (3) counts right, found and true entities.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from model.data.spans import Span
from pipeline.evaluation.intervals import Counted

MISTAKES = ("missed", "invented", "wrong type", "wrong border")


class EntityMistake(NamedTuple):
    kind: str  # one of MISTAKES
    true: Span | None  # at least one of the two
    found: Span | None

    @property
    def span(self) -> Span:
        """Where it is."""
        span = self.found or self.true
        assert span is not None
        return span


def entity_counts(
    true: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]], labels: Sequence[str]
) -> np.ndarray:
    """Right, found and true entities per text and label, int64 (N, L, 3)."""
    numbers = {label: i for i, label in enumerate(labels)}
    counts_NL3 = np.zeros((len(true), len(labels), 3), np.int64)
    for text, (of_true, of_found) in enumerate(zip(true, found, strict=True)):
        for column, spans in enumerate((set(of_true) & set(of_found), of_found, of_true)):
            for label, n in Counter(span.label for span in spans).items():
                counts_NL3[text, numbers[label], column] = n
    return counts_NL3


def metrics_of(counts_NL3: np.ndarray) -> dict[str, Counted]:
    """f1, precision, recall and macro_f1 of all texts."""
    counts_NK, n_labels = counts_NL3.reshape(len(counts_NL3), -1), counts_NL3.shape[1]

    def micro(metric: Callable[[np.ndarray], np.ndarray]) -> Counted:
        return Counted(counts_NL3.sum(axis=1), metric)

    def macro(sums_RK: np.ndarray) -> np.ndarray:
        return macro_f1(sums_RK.reshape(-1, n_labels, 3))

    return {
        "f1": micro(f1),
        "precision": micro(precision),
        "recall": micro(recall),
        "macro_f1": Counted(counts_NK, macro),
    }


def f1(counts_3: np.ndarray) -> np.ndarray:
    """F1 from right, found and true along the last axis; 0 where nothing is found and nothing true."""
    return 2 * counts_3[..., 0] / np.maximum(counts_3[..., 1] + counts_3[..., 2], 1)


def precision(counts_3: np.ndarray) -> np.ndarray:
    return counts_3[..., 0] / np.maximum(counts_3[..., 1], 1)


def recall(counts_3: np.ndarray) -> np.ndarray:
    return counts_3[..., 0] / np.maximum(counts_3[..., 2], 1)


def macro_f1(counts_L3: np.ndarray) -> np.ndarray:
    """Mean F1 over the labels that a true entity has; 0 if there is none."""
    occurs_L = counts_L3[..., 2] > 0
    return (f1(counts_L3) * occurs_L).sum(axis=-1) / np.maximum(occurs_L.sum(axis=-1), 1)


def entity_mistakes(true: Sequence[Span], found: Sequence[Span]) -> Iterator[EntityMistake]:
    """The mistakes in one text. A found entity that overlaps true ones is compared with the first of them, first by
    its characters: the right ones with another label are a wrong type, all others a wrong border."""
    missed = [span for span in true if span not in found]
    for span in found:
        if span in true:
            continue
        touching = [one for one in missed if one.start < span.end and span.start < one.end]
        touching.sort(key=lambda one: one[:2] != span[:2])
        if not touching:
            yield EntityMistake("invented", None, span)
            continue
        missed.remove(touching[0])
        kind = "wrong type" if touching[0][:2] == span[:2] else "wrong border"
        yield EntityMistake(kind, touching[0], span)
    for span in missed:
        yield EntityMistake("missed", span, None)
