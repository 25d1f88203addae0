"""Metrics against scikit-learn and scipy; intervals against how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from pipeline.evaluation.metrics import (
    accuracy_of,
    bits_per_byte,
    compare,
    confusion_matrix,
    estimate,
    f1_of,
    macro_f1_of,
    mcnemar,
    perplexity,
    ratio,
)

LABELS = ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_classification_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice(LABELS, 60, p=[0.6, 0.3, 0.1]).tolist()
    predicted = np.where(rng.random(60) < 0.5, truth, rng.choice(LABELS[:2], 60)).tolist()
    matrix = confusion_matrix(truth, predicted, LABELS)
    assert (matrix == sklearn_confusion_matrix(truth, predicted, labels=LABELS)).all()
    assert accuracy_of(matrix) == pytest.approx(accuracy_score(truth, predicted))
    options = {"labels": LABELS, "zero_division": 0}
    np.testing.assert_allclose(f1_of(matrix), f1_score(truth, predicted, average=None, **options))
    assert macro_f1_of(matrix) == pytest.approx(f1_score(truth, predicted, average="macro", **options))


def test_f1_class_that_never_occurs_counts_zero():
    matrix = confusion_matrix(["a", "b"], ["a", "b"], LABELS)
    assert f1_of(matrix).tolist() == [1, 1, 0]


def test_bits_per_byte_one_bit_a_byte_is_one():
    n_bytes = np.array([3, 5, 100])
    assert bits_per_byte(np.log(2) * n_bytes, n_bytes).value == pytest.approx(1)


def test_perplexity_of_a_fair_die_is_six():
    n_tokens = np.array([4, 9])
    die = perplexity(np.log(6) * n_tokens, n_tokens)
    assert (die.value, die.low, die.high) == pytest.approx((6, 6, 6))


def test_ratio_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        n_bytes = rng.integers(50, 200, 80)
        bits = n_bytes * (1.5 + 0.3 * rng.standard_normal(80))
        found = ratio(bits, n_bytes)
        held += found.low <= 1.5 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_accuracy_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        right = rng.binomial(200, 0.8)
        found = estimate(accuracy_of, np.array([[right, 200 - right], [0, 0]]))
        held += found.low <= 0.8 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_ratio_resamples_documents_so_that_one_long_one_widens_it():
    even = ratio(np.tile([1.0, 2.0], 50), np.ones(100))
    heavy = ratio(np.array([2000.0, *np.tile([1.0, 2.0], 50)]), np.array([1000.0, *np.ones(100)]))
    assert heavy.high - heavy.low > 2 * (even.high - even.low)


def test_estimate_same_seed_is_the_same_interval():
    matrix = np.array([[30, 5], [8, 40]])
    assert estimate(macro_f1_of, matrix, seed=3) == estimate(macro_f1_of, matrix, seed=3)
    assert estimate(macro_f1_of, matrix, seed=3) != estimate(macro_f1_of, matrix, seed=4)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (2, 9), (40, 70), (300, 220)])
def test_mcnemar_equals_exact_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_compare_counts_what_only_one_model_has_right():
    truth = ["a"] * 10
    compared = compare(truth, ["a"] * 9 + ["b"], ["a"] * 4 + ["b"] * 5 + ["a"])
    assert (compared.only_first_right, compared.only_second_right) == (5, 1)
    assert compared.difference.value == pytest.approx(0.4)
    assert compared.difference.low < 0.4 < compared.difference.high
