"""Metrics against scikit-learn and scipy; intervals against how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from pipeline.evaluation.confusion import confusion_matrix
from pipeline.evaluation.metrics import (
    accuracy,
    bits_per_byte,
    compare,
    f1_of,
    macro_f1,
    macro_f1_of,
    mcnemar,
    paired_difference,
    perplexity,
    rate,
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
    assert accuracy(matrix).value == pytest.approx(accuracy_score(truth, predicted))
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
        found = accuracy(np.array([[right, 200 - right], [0, 0]]))
        held += found.low <= 0.8 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_ratio_resamples_documents_so_that_one_long_one_widens_it():
    even = ratio(np.tile([1.0, 2.0], 50), np.ones(100))
    heavy = ratio(np.array([2000.0, *np.tile([1.0, 2.0], 50)]), np.array([1000.0, *np.ones(100)]))
    assert heavy.high - heavy.low > 2 * (even.high - even.low)


def test_macro_f1_same_seed_is_the_same_interval():
    matrix = np.array([[30, 5], [8, 40]])
    assert macro_f1(matrix, "ab", seed=3) == macro_f1(matrix, "ab", seed=3)
    assert macro_f1(matrix, "ab", seed=3) != macro_f1(matrix, "ab", seed=4)


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


@pytest.mark.parametrize(("right", "n_rows"), [(8, 8), (10, 10), (0, 8), (1, 1), (7, 8), (85, 100)])
def test_h_interval_of_a_rate_is_the_exact_one_also_of_a_perfect_score(right, n_rows):
    """8 of 8 had the interval 1.000 to 1.000, because all resamples are equal (lm-evaluation-harness#4070)."""
    expected = binomtest(right, n_rows).proportion_ci(0.95, method="exact")
    found = rate(right, n_rows)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    matrix = np.array([[right, n_rows - right], [0, 0]])
    assert accuracy(matrix) == found
    if right in (0, n_rows):
        of_f1 = macro_f1(matrix, "ab")
        assert (of_f1.value, of_f1.low, of_f1.high) == (found.value, found.low, found.high)


def test_h_macro_f1_is_over_the_labels_that_occur_and_says_so():
    """A label without test rows pulled a perfect score down to 2/3 (torchmetrics#300)."""
    found = macro_f1(confusion_matrix(["a", "b"] * 20, ["a", "b"] * 20, LABELS), LABELS)
    assert (found.value, found.note) == (1, "over 2 of 3 labels; no example has c")
    predicted = macro_f1(confusion_matrix(["a", "b"] * 20, ["a", "c"] * 20, LABELS), LABELS)
    assert predicted.value == 0.5  # once for the label that was missed, not again for the one that does not occur
    assert predicted.low == pytest.approx(0.5) == predicted.high  # every resample has both labels


@pytest.mark.parametrize("seed", range(3))
def test_h_macro_f1_interval_equals_one_over_resampled_rows(seed):
    """The interval is that of resampled examples, each resample over the labels that occur in it (garak#2076)."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, 12, p=[0.4, 0.4, 0.1, 0.1])
    predicted = np.where(rng.random(12) < 0.7, truth, rng.choice(4, 12))
    scores = []
    for _ in range(3000):
        rows = rng.integers(0, 12, 12)
        true, answers = truth[rows], predicted[rows]
        right = [(label, (true == label).sum(), (answers == label).sum()) for label in set(true.tolist())]
        scores.append(np.mean([2 * ((true == one) & (answers == one)).sum() / (n + m) for one, n, m in right]))
    names = [str(i) for i in range(4)]
    found = macro_f1(confusion_matrix([*map(str, truth)], [*map(str, predicted)], names), names)
    assert (found.low, found.high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.03)


def test_h_one_document_has_no_interval_and_few_are_told():
    """Bits per byte of one document were 1.9 (1.9 to 1.9)."""
    one = bits_per_byte(np.array([7.0, 0.0]), np.array([5, 0]))
    assert (one.low, one.high, one.note) == (None, None, "over one document, which has no interval")
    assert str(one) == "2.0198 (no interval)" and perplexity(np.array([7.0]), np.array([5])).high is None
    few = bits_per_byte(np.arange(1.0, 9), np.full(8, 5))
    assert few.note == "over only 8 documents, so that the interval is too narrow"
    assert not bits_per_byte(np.arange(1.0, 90), np.full(89, 5)).note


def test_h_difference_of_two_models_that_are_never_apart_has_a_width():
    """Two models with the same 8 answers differed by "+0.0000 (+0.0000 to +0.0000)"."""
    assert paired_difference(0, 0, 8).high == pytest.approx(0.196, abs=1e-3)
    held = 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        ours, theirs, _ = rng.multinomial(40, [0.2, 0.1, 0.7])
        found = paired_difference(ours, theirs, 40)
        held += found.low <= 0.1 <= found.high
    assert held / 300 >= 0.93
