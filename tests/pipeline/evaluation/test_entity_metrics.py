"""Entity F1 against seqeval on random tags; what a mistake is called."""

import random

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from model.data.spans import Span
from pipeline.evaluation.entity_metrics import (
    EntityMistake,
    entity_counts,
    entity_mistakes,
    f1,
    macro_f1,
    precision,
    recall,
)

LABELS = ["a", "b", "c"]


def random_tags(rng: random.Random, n: int) -> list[str]:
    return [tag if tag == "O" else f"{tag}-{rng.choice(LABELS)}" for tag in rng.choices("OBI", (3, 2, 2), k=n)]


def spans(tags: list[str]) -> list[Span]:
    return [Span(first, last + 1, label) for label, first, last in get_entities(tags)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore::seqeval.metrics.v1.UndefinedMetricWarning")
def test_f1_equals_that_of_seqeval_on_random_tags():
    rng = random.Random(0)
    for _ in range(40):
        lengths = [rng.randint(1, 15) for _ in range(rng.randint(1, 8))]
        true = [random_tags(rng, n) for n in lengths]
        found = [
            [old if rng.random() < 0.7 else new for old, new in zip(tags, random_tags(rng, len(tags)), strict=True)]
            for tags in true
        ]
        counts_NL3 = entity_counts(list(map(spans, true)), list(map(spans, found)), LABELS)
        counts_3 = counts_NL3.sum(axis=(0, 1))
        assert f1(counts_3) == pytest.approx(f1_score(true, found, zero_division=0))
        assert precision(counts_3) == pytest.approx(precision_score(true, found, zero_division=0))
        assert recall(counts_3) == pytest.approx(recall_score(true, found, zero_division=0))
        by_label = classification_report(true, found, output_dict=True, zero_division=0)
        for label, of_label_3 in zip(LABELS, counts_NL3.sum(axis=0), strict=True):
            if of_label_3[1:].any():
                assert f1(of_label_3) == pytest.approx(by_label[label]["f1-score"])
        if all(of_label_3[2] for of_label_3 in counts_NL3.sum(axis=0)):
            assert macro_f1(counts_NL3.sum(axis=0)) == pytest.approx(by_label["macro avg"]["f1-score"])


def test_macro_f1_is_over_the_labels_that_occur():
    assert macro_f1(np.array([[1, 1, 1], [0, 5, 0], [0, 0, 1]])) == pytest.approx(0.5)
    assert macro_f1(np.zeros((2, 3), int)) == 0


def test_every_mistake_is_of_one_kind():
    true = [Span(0, 3, "a"), Span(5, 8, "a"), Span(10, 20, "b"), Span(30, 31, "c"), Span(40, 41, "c")]
    found = [Span(0, 3, "b"), Span(6, 8, "a"), Span(10, 14, "b"), Span(15, 20, "b"), Span(40, 41, "c")]
    assert list(entity_mistakes(true, found)) == [
        EntityMistake("wrong type", true[0], found[0]),
        EntityMistake("wrong border", true[1], found[1]),
        EntityMistake("wrong border", true[2], found[2]),
        EntityMistake("invented", None, found[3]),
        EntityMistake("missed", true[3], None),
    ]
