"""Metrics, thresholds and the word baseline of texts with any number of labels."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from pipeline.evaluation.label_sets import (
    FEW_POSITIVES,
    best_thresholds,
    f1_table,
    label_matrix,
    share_threshold,
    tfidf_label_sets,
)


def random_decisions(n_rows: int, rates: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C), rounded so that some are equal, and whether a text has a label."""
    rng = np.random.default_rng(seed)
    has_NC = rng.random((n_rows, len(rates))) < rates
    return np.round(np.clip(rng.normal(0.3 + 0.3 * has_NC, 0.2), 0, 1), 2), has_NC


def test_f1_precision_and_recall_equal_those_of_scikit_learn():
    values_NC, has_NC = random_decisions(200, [0.5, 0.1, 0.0])
    predicted_NC = values_NC >= [0.4, 0.5, 2.0]
    theirs = [
        metric(has_NC, predicted_NC, average=None, zero_division=0)
        for metric in (f1_score, precision_score, recall_score)
    ]
    for ours_C, theirs_C in zip(f1_table(has_NC, predicted_NC), theirs, strict=True):
        np.testing.assert_allclose(ours_C, theirs_C)


@pytest.mark.parametrize("seed", range(5))
def test_threshold_of_a_label_has_the_best_f1_of_all_thresholds(seed):
    values_NC, has_NC = random_decisions(300, [0.3, 0.06], seed)
    thresholds_C = best_thresholds(values_NC, has_NC)
    found_C, _, _ = f1_table(has_NC, values_NC >= thresholds_C)
    for c in range(2):
        tried = [f1_score(has_NC[:, c], values_NC[:, c] >= one) for one in np.unique(values_NC[:, c])]
        assert found_C[c] == pytest.approx(max(tried))
        assert thresholds_C[c] not in values_NC[:, c]  # between two probabilities, so that rounding changes no answer


def test_threshold_of_a_rare_label_is_reached_by_as_many_texts_as_have_it():
    """One threshold for all rare labels gave every text the frequent ones and no text the others."""
    values_NC, has_NC = np.random.default_rng(0).random((400, 3)) * [1.0, 0.1, 0.01], np.zeros((400, 3), bool)
    has_NC[: FEW_POSITIVES - 1, :2] = True
    reached_C = (values_NC >= best_thresholds(values_NC, has_NC)).sum(axis=0)
    assert reached_C.tolist() == [FEW_POSITIVES - 1, FEW_POSITIVES - 1, 0]


def test_equal_probabilities_reach_a_threshold_together_or_not_at_all():
    values_N, has_N = np.array([0.9, 0.4, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0, 0], bool)
    assert 0.4 < share_threshold(values_N, has_N) < 0.9
    assert 0.0 < share_threshold(values_N, np.ones(5, bool)) < 0.1
    assert share_threshold(np.full(5, 0.2), np.zeros(5, bool)) == pytest.approx(0.6)


def test_thresholds_of_a_label_that_all_texts_have_are_reached_by_all():
    has_NC = np.ones((20, 1), bool)
    assert (np.full((20, 1), 0.2) >= best_thresholds(np.full((20, 1), 0.2), has_NC)).all()


def test_label_matrix_is_by_name_and_refuses_other_labels():
    assert label_matrix([["b", "a"], [], ["c"]], ["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"the model knows the labels \['a'\], the examples also have \['b'\]"):
        label_matrix([["a", "b"]], ["a"])


def test_word_baseline_answers_sets_and_survives_labels_that_all_or_few_texts_have():
    texts = [f"{'sun' if i % 2 else 'rain'} {'red' if i % 3 else 'blue'} n{i}" for i in range(120)]
    sets = [["always", *(["warm"] if i % 2 else []), *(["cold"] if i == 7 else [])] for i in range(120)]
    answers = tfidf_label_sets(texts, sets, [str(i) for i in range(120)], ["sun blue", "rain red", ""])
    assert answers[0]["labels"] == ["always", "warm"] and answers[1]["labels"] == ["always"]
    assert all(answer["of_labels"].shape == (3,) for answer in answers)
    one_group = tfidf_label_sets(texts, sets, ["g"] * 120, ["sun blue"])  # nothing to choose thresholds on
    assert one_group[0]["labels"] == ["always", "warm"]
