"""Intervals and paired tests against scipy, against plain resampling, and against how often they hold the truth."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from pipeline.evaluation import intervals
from pipeline.evaluation.intervals import (
    Counted,
    estimate,
    mcnemar,
    paired,
    paired_difference,
    quotient,
    rate,
    rate_of,
    ratio,
)


def f1(sums_RK: np.ndarray) -> np.ndarray:
    return 2 * sums_RK[:, 0] / np.maximum(sums_RK[:, 1] + sums_RK[:, 2], 1)


def f1_counted(true_N: np.ndarray, chosen_N: np.ndarray) -> Counted:
    return Counted(np.stack([true_N & chosen_N, true_N, chosen_N], axis=1).astype(float), f1)


def test_ratio_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        n_bytes = rng.integers(50, 200, 80)
        bits = n_bytes * (1.5 + 0.3 * rng.standard_normal(80))
        found = ratio(bits, n_bytes)
        held += found.low <= 1.5 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_rate_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = rate(rng.binomial(200, 0.8), 200)
        held += found.low <= 0.8 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_ratio_resamples_documents_so_that_one_long_one_widens_it():
    even = ratio(np.tile([1.0, 2.0], 50), np.ones(100))
    heavy = ratio(np.array([2000.0, *np.tile([1.0, 2.0], 50)]), np.array([1000.0, *np.ones(100)]))
    assert heavy.high - heavy.low > 2 * (even.high - even.low)


@pytest.mark.parametrize("seed", range(3))
def test_estimate_equals_one_over_resampled_rows(seed):
    rng = np.random.default_rng(seed)
    true_N, chosen_N = rng.random((2, 40)) < 0.5
    scores = []
    for _ in range(3000):
        rows = rng.integers(0, 40, 40)
        n_right = (true_N[rows] & chosen_N[rows]).sum()
        scores.append(2 * n_right / (true_N[rows].sum() + chosen_N[rows].sum()))
    found = estimate(f1_counted(true_N, chosen_N))
    assert found.value == pytest.approx(f1_score(true_N, chosen_N))
    assert (found.low, found.high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.03)


def test_estimate_is_the_same_for_sparse_counts_and_fewer_resamples_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    counted = f1_counted(*(rng.random((2, 50)) < 0.5))
    found = estimate(counted, seed=3)
    assert found != estimate(counted, seed=4)
    monkeypatch.setattr(intervals, "MOST_NUMBERS", 350)
    assert estimate(Counted(csr_array(counted.counts_NK), f1), seed=3) == found


def test_estimate_of_equal_resamples_is_the_exact_interval_of_a_rate():
    """All right was 1.000 (1.000 to 1.000)."""
    true_N = np.array([True] * 8)
    perfect, nothing = estimate(f1_counted(true_N, true_N)), estimate(f1_counted(true_N, ~true_N))
    assert (perfect.value, perfect.low, perfect.high) == (1, rate(8, 8).low, 1)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, rate(0, 8).high)
    assert perfect.note == "over only 8 examples"


def test_estimate_of_one_example_has_no_interval():
    found = estimate(Counted(np.array([[0.4, 1.0]]), quotient))
    assert (found.value, found.low, found.high) == (0.4, None, None)


def test_estimate_leaves_out_resamples_without_a_value():
    found = estimate(Counted(np.array([[1.0, 1.0]] + [[0.0, 0.0]] * 9 + [[0.0, 1.0]]), quotient))
    assert found.value == 0.5 and 0 <= found.low <= 0.5 <= found.high <= 1


def test_estimate_of_an_approximation_is_moved_to_the_exact_value():
    rng = np.random.default_rng(0)
    counts_NK = np.stack([rng.random(200), np.ones(200)], axis=1)
    plain, moved = estimate(Counted(counts_NK, quotient)), estimate(Counted(counts_NK, quotient, exact=0.6))
    shift = 0.6 - plain.value
    assert (moved.value, moved.low, moved.high) == pytest.approx((0.6, plain.low + shift, plain.high + shift))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (2, 9), (40, 70), (300, 220)])
def test_mcnemar_equals_exact_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_paired_rates_are_compared_by_mcnemar():
    ours, theirs = rate_of([True] * 9 + [False]), rate_of([True] * 4 + [False] * 5 + [True])
    found = paired(ours, theirs)
    assert found == paired_difference(5, 1, 10) and found.n_rows == 10
    assert found.value == pytest.approx(0.4) and found.p_value == mcnemar(5, 1)


def test_paired_bootstrap_rejects_equal_models_about_5_times_in_100():
    """Two models with the same chances to be right: a p value below 0.05 is luck."""
    rng = np.random.default_rng(0)
    rejected = 0
    for seed in range(200):
        true_N = rng.random(120) < 0.4
        ours, theirs = (f1_counted(true_N, np.where(rng.random(120) < 0.8, true_N, ~true_N)) for _ in range(2))
        rejected += paired(ours, theirs, seed).p_value < 0.05
    assert 0.01 <= rejected / 200 <= 0.09


def test_paired_bootstrap_finds_a_better_model_and_holds_the_difference():
    rng = np.random.default_rng(0)
    true_N = rng.random(500) < 0.4
    chosen = [np.where(rng.random(500) < share, true_N, ~true_N) for share in (0.9, 0.7)]
    ours, theirs = (f1_counted(true_N, one) for one in chosen)
    found, back = paired(ours, theirs), paired(theirs, ours)
    assert found.value == pytest.approx(f1_score(true_N, chosen[0]) - f1_score(true_N, chosen[1]))
    assert 0 < found.low < found.value < found.high and found.p_value < 0.005
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert back.p_value == found.p_value


def test_paired_models_with_the_same_answers_are_not_told_apart():
    """Their difference was "+0.0000 (+0.0000 to +0.0000)"."""
    counted = f1_counted(*(np.random.default_rng(0).random((2, 30)) < 0.5))
    found = paired(counted, counted)
    assert (found.value, found.p_value) == (0, 1) and found.low < 0 < found.high


def test_paired_perfect_and_useless_model_are_told_apart():
    """All resamples have the same difference, which is not zero."""
    true_N = np.array([True] * 12)
    found = paired(f1_counted(true_N, true_N), f1_counted(true_N, ~true_N))
    assert found.value == 1 and found.low < 1 == found.high and found.p_value == pytest.approx(2**-11)


@pytest.mark.parametrize(("right", "n_rows"), [(8, 8), (10, 10), (0, 8), (1, 1), (7, 8), (85, 100)])
def test_h_interval_of_a_rate_is_the_exact_one_also_of_a_perfect_score(right, n_rows):
    """8 of 8 had the interval 1.000 to 1.000, because all resamples are equal (lm-evaluation-harness#4070)."""
    expected = binomtest(right, n_rows).proportion_ci(0.95, method="exact")
    found = rate(right, n_rows)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert estimate(rate_of([True] * right + [False] * (n_rows - right))) == found


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
