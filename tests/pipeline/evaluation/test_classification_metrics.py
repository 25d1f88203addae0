"""Metrics of classifiers against scikit-learn, and against resampling of the examples themselves."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as oracle

from pipeline.evaluation import classification_metrics
from pipeline.evaluation.classification_metrics import (
    N_BINS,
    accuracy,
    brier_score,
    calibration_error,
    f1_metrics,
    mcc,
    one_hot,
    places_of,
    ranking_metrics,
    reliability_figure,
)
from pipeline.evaluation.intervals import estimate, paired

LABELS = ["a", "b", "c", "d"]


def one_of_each(seed: int, n_rows: int = 80, n_labels: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted class of each example, and probabilities of all, some of them equal."""
    rng = np.random.default_rng(seed)
    shares_C = np.array([0.5, 0.3, 0.15, 0.05])[:n_labels]
    true_N = rng.choice(n_labels, n_rows, p=shares_C / shares_C.sum())
    scores_NC = np.exp(rng.standard_normal((n_rows, n_labels)).round(1) + 1.5 * one_hot(true_N, n_labels))
    probabilities_NC = (scores_NC / scores_NC.sum(axis=1, keepdims=True)).round(6)  # equal ones stay equal
    probabilities_NC[:, -1] = 1 - probabilities_NC[:, :-1].sum(axis=1)
    return true_N, probabilities_NC.argmax(axis=1), probabilities_NC


def several_of_each(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of 4 labels 80 examples have, some none, and probabilities, rounded so that some are equal."""
    rng = np.random.default_rng(seed)
    true_NC = rng.random((80, 4)) < [0.5, 0.3, 0.1, 0.05]
    true_NC[0] = True
    return true_NC, np.clip(rng.random((80, 4)) * 0.6 + 0.4 * true_NC, 0, 1).round(2)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_labels_equal_scikit_learn(seed):
    true_N, chosen_N, _ = one_of_each(seed)
    true_NC, chosen_NC = one_hot(true_N, 4), one_hot(chosen_N, 4)
    assert accuracy(true_NC, chosen_NC).over_all() == pytest.approx(oracle.accuracy_score(true_N, chosen_N))
    assert mcc(true_NC, chosen_NC).over_all() == pytest.approx(oracle.matthews_corrcoef(true_N, chosen_N))
    for name, counted in f1_metrics(true_NC, chosen_NC, LABELS).items():
        average = name.removesuffix("_f1")
        labels = None if average == "micro" else np.unique(true_N)  # macro: over those that an example has
        expected = oracle.f1_score(true_N, chosen_N, average=average, labels=labels, zero_division=0)
        assert counted.over_all() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_several_labels_equal_scikit_learn(seed):
    true_NC, probabilities_NC = several_of_each(seed)
    chosen_NC = probabilities_NC > 0.5
    assert accuracy(true_NC, chosen_NC).over_all() == pytest.approx(oracle.accuracy_score(true_NC, chosen_NC))
    for name, counted in f1_metrics(true_NC, chosen_NC, LABELS).items():
        expected = oracle.f1_score(true_NC, chosen_NC, average=name.removesuffix("_f1"), zero_division=0)
        assert counted.over_all() == pytest.approx(expected)
    found = ranking_metrics(probabilities_NC, true_NC, LABELS)
    assert found["roc_auc"].over_all() == pytest.approx(oracle.roc_auc_score(true_NC, probabilities_NC))
    expected = oracle.average_precision_score(true_NC, probabilities_NC)
    assert found["average_precision"].over_all() == pytest.approx(expected)


@pytest.mark.parametrize("n_labels", [2, 4])
def test_metrics_of_probabilities_equal_scikit_learn(n_labels):
    true_N, _, probabilities_NC = one_of_each(1, n_labels=n_labels)
    true_NC = one_hot(true_N, n_labels)
    found = ranking_metrics(probabilities_NC, true_NC, LABELS[:n_labels])
    scores = probabilities_NC[:, 1] if n_labels == 2 else probabilities_NC
    assert found["roc_auc"].over_all() == pytest.approx(oracle.roc_auc_score(true_N, scores, multi_class="ovr"))
    expected = oracle.average_precision_score(true_NC, probabilities_NC)
    assert found["average_precision"].over_all() == pytest.approx(expected)
    expected = oracle.brier_score_loss(true_N, scores, scale_by_half=True)
    assert brier_score(probabilities_NC, true_NC).over_all() == pytest.approx(expected)


def test_calibration_error_equals_the_definition_bin_by_bin():
    true_N, chosen_N, probabilities_NC = one_of_each(2, n_rows=300)
    top_N, right_N = probabilities_NC.max(axis=1), true_N == chosen_N
    expected = 0.0
    for b in range(N_BINS):
        inside = (top_N > b / N_BINS) & (top_N <= (b + 1) / N_BINS)
        if inside.any():
            expected += inside.mean() * abs(right_N[inside].mean() - top_N[inside].mean())
    assert calibration_error(top_N, right_N).over_all() == pytest.approx(expected)


def test_calibration_error_of_several_labels_is_that_of_all_of_them_together():
    true_NC, probabilities_NC = several_of_each(0)
    pooled = calibration_error(probabilities_NC.ravel(), true_NC.ravel())
    assert calibration_error(probabilities_NC, true_NC).over_all() == pytest.approx(pooled.over_all())
    assert calibration_error(probabilities_NC, true_NC).n_rows == 80  # the unit that is resampled


def test_calibration_error_is_within_its_interval_also_if_it_is_near_zero():
    """Resamples of a well calibrated model have a larger error, as they repeat examples: 0.04 (0.05 to 0.1)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        top_N = rng.uniform(0.5, 1, 150)
        found = estimate(calibration_error(top_N, rng.random(150) < top_N))
        assert 0 <= found.low < found.value < found.high


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision"])
@pytest.mark.parametrize("most_edges", [256, 8])
def test_ranking_intervals_equal_those_of_resampled_rows(metric, most_edges, monkeypatch):
    """With an edge at every positive example, and with few edges, which only approximate."""
    monkeypatch.setattr(classification_metrics, "MOST_EDGES", most_edges)
    true_N, _, probabilities_NC = one_of_each(3, n_rows=150, n_labels=2)
    score = {"roc_auc": oracle.roc_auc_score, "average_precision": oracle.average_precision_score}[metric]
    rng, values = np.random.default_rng(0), []
    for _ in range(300):
        rows = rng.integers(0, 150, 150)
        sides = [score(true_N[rows] == c, probabilities_NC[rows, c]) for c in (0, 1)]
        values.append(np.mean(sides))
    found = estimate(ranking_metrics(probabilities_NC, one_hot(true_N, 2), LABELS[:2])[metric])
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.012)


def test_degenerate_examples_have_values_or_none():
    """One class only, one example, all right, a label that never occurs, and equal probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_class = one_hot(np.zeros(20, int), 2)
        probabilities_NC = np.full((20, 2), 0.5)
        found = ranking_metrics(probabilities_NC, one_class, LABELS[:2])
        assert np.isnan(found["roc_auc"].over_all()) and found["average_precision"].over_all() == 1
        assert mcc(one_class, one_class).over_all() == 0  # as scikit-learn: nothing was told apart
        both = one_hot(np.arange(20) % 2, 2)
        right, wrong = estimate(mcc(both, both)), estimate(mcc(both, ~both))
        assert (right.value, right.high) == (1, 1) and (wrong.value, wrong.low) == (-1, -1)
        assert 0.6 < right.low < 0.7 and wrong.high == pytest.approx(
            -right.low
        )  # 2 * 0.83 - 1: the exact end for 20 of 20
        macro = f1_metrics(one_class, one_class, LABELS[:2])["macro_f1"]
        assert macro.over_all() == 1 and macro.note == "over 1 of 2 labels; no example has b"
        assert 0.8 < estimate(macro).low < 0.9
        equal = ranking_metrics(probabilities_NC, both, LABELS[:2])
        assert equal["roc_auc"].over_all() == 0.5 and equal["average_precision"].over_all() == 0.5
        single = ranking_metrics(probabilities_NC[:1], both[:1], LABELS[:2])
        assert np.isnan(single["roc_auc"].over_all())
        assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])).over_all() == 0
        perfect = ranking_metrics(both.astype(float), both, LABELS[:2])["roc_auc"]
        assert (estimate(perfect).value, estimate(perfect).high) == (1, 1) and estimate(perfect).low < 0.9


def test_h_macro_f1_is_over_the_labels_that_occur_and_says_so():
    """A label without test rows pulled a perfect score down to 2/3 (torchmetrics#300)."""
    true_NC = one_hot(np.array([0, 1] * 20), 3)
    assert f1_metrics(true_NC, true_NC, LABELS[:3])["macro_f1"].over_all() == 1
    found = estimate(f1_metrics(true_NC, one_hot(np.array([0, 2] * 20), 3), LABELS[:3])["macro_f1"])
    assert found.value == 0.5  # once for the label that was missed, not again for the one that does not occur
    assert found.low == pytest.approx(0.5) == found.high  # every resample has both labels


def test_a_label_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"the model knows the labels \['a', 'b', 'c', 'd'\].*\['mixed'\]"):
        places_of(["a", "mixed"], LABELS)


def test_better_ranking_is_found_by_the_paired_bootstrap():
    true_N, _, probabilities_NC = one_of_each(5, n_rows=400, n_labels=2)
    true_NC = one_hot(true_N, 2)
    noise_N = np.random.default_rng(0).random(400)
    worse_NC = 0.3 * probabilities_NC + 0.7 * np.stack([noise_N, 1 - noise_N], axis=1)
    ours, theirs = (ranking_metrics(one, true_NC, LABELS[:2])["roc_auc"] for one in (probabilities_NC, worse_NC))
    found = paired(ours, theirs)
    assert 0 < found.low < found.value < found.high and found.p_value < 0.01
    assert paired(ours, ours).p_value == 1


def test_reliability_figure_has_the_number_of_answers_in_each_bin():
    figure = reliability_figure(np.array([0.05, 0.98, 0.97, 1.0]), np.array([False, True, True, False]))
    shown = [text.get_text() for text in figure.axes[1].texts if text.get_text()]
    assert shown == ["1", "3"]
