"""Metrics of classifiers as counts per example, from which intervals and comparisons are made (intervals.py).

In: true and predicted labels, or probabilities, as arrays with a row per example; true_NC and chosen_NC are boolean
and have any number of labels per row, one for an ordinary classification. Out: a `Counted` per metric.

- macro F1 is the mean over the labels that an example has; the note names the others. A wrong answer with a label
  that does not occur lowers the F1 of the true label, and counts no second time.
- MCC is that of several classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006), 0 for a constant answer.
- ROC-AUC and average precision are means over labels, each against all others; equal probabilities share a threshold.
  Resamples count the examples between two probabilities of positive ones, or of MOST_EDGES quantiles of those.
- the expected calibration error is over 15 bins of equal width (arXiv:1706.04599, section 2), the Brier score is half
  the squared distance of the probabilities from the truth (Brier 1950).

Legend: N examples, C labels, B bins, R resamples.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.intervals import Counted, divided, quotient, rate_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BINS = 15  # of probabilities, arXiv:1706.04599
MOST_EDGES = 128  # per label; up to so many positive examples resamples are exact
SHOWN_LABELS = 10  # in a note


def refuse_unknown_labels(labels: Iterable[str], known: Sequence[str]) -> None:
    if unknown := sorted({*labels} - {*known}):
        raise ValueError(f"the model knows the labels {list(known)}, the examples also have {unknown}")


def places_of(labels: Sequence[str], of: Sequence[str]) -> np.ndarray:
    """The place of each label in the list `of`, int64. Raises ValueError for a label that is not in it."""
    refuse_unknown_labels(labels, of)
    place = {label: i for i, label in enumerate(of)}
    return np.fromiter((place[label] for label in labels), np.int64, len(labels))


def one_hot(classes_N: np.ndarray, n_labels: int) -> np.ndarray:
    """True at the class of each example, bool (N, C)."""
    return np.arange(n_labels) == classes_N[:, None]


def accuracy(true_NC: np.ndarray, chosen_NC: np.ndarray) -> Counted:
    """The share of examples whose labels are all right and complete."""
    return rate_of((true_NC == chosen_NC).all(axis=1))


def f1_metrics(true_NC: np.ndarray, chosen_NC: np.ndarray, labels: Sequence[str]) -> dict[str, Counted]:
    """macro_f1, micro_f1 and weighted_f1."""
    counts, note = _label_counts(true_NC, chosen_NC), missing_note(np.asarray(true_NC.any(axis=0)), labels)
    return {
        "macro_f1": Counted(counts, macro_f1, note=note),
        "micro_f1": Counted(counts, micro_f1),
        "weighted_f1": Counted(counts, weighted_f1),
    }


def mcc(true_NC: np.ndarray, chosen_NC: np.ndarray) -> Counted:
    """The correlation of true and predicted class, from -1 to 1; every example has one of each."""
    return Counted(_label_counts(true_NC, chosen_NC), _mcc, lowest=-1.0)


def missing_note(occurs_C: Sequence[bool] | np.ndarray, labels: Sequence[str]) -> str:
    missing = [label for label, occurs in zip(labels, occurs_C, strict=True) if not occurs]
    if not missing:
        return ""
    shown = ", ".join(missing[:SHOWN_LABELS]) + (", ..." if len(missing) > SHOWN_LABELS else "")
    return f"over {len(labels) - len(missing)} of {len(labels)} labels; no example has {shown}"


def _label_counts(true_NC: np.ndarray, chosen_NC: np.ndarray) -> Any:
    """Per example and label whether it is right, true, predicted; a sparse array (N, 3C)."""
    from scipy.sparse import csr_array, hstack

    return hstack([csr_array(one, dtype=np.float32) for one in (true_NC & chosen_NC, true_NC, chosen_NC)], "csr")


def f1_of(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """2 right / (true + predicted); 0 for a label that neither occurs nor is predicted."""
    return 2 * right / np.maximum(true + predicted, 1)


def macro_f1(sums_RK: np.ndarray) -> np.ndarray:
    right_RC, true_RC, predicted_RC = np.split(sums_RK, 3, axis=1)
    occurs_RC = true_RC > 0
    return divided((f1_of(right_RC, true_RC, predicted_RC) * occurs_RC).sum(axis=1), occurs_RC.sum(axis=1))


def micro_f1(sums_RK: np.ndarray) -> np.ndarray:
    right_R, true_R, predicted_R = (part.sum(axis=1) for part in np.split(sums_RK, 3, axis=1))
    return divided(2 * right_R, true_R + predicted_R)


def weighted_f1(sums_RK: np.ndarray) -> np.ndarray:
    """The mean of the labels' F1, weighted by their examples."""
    right_RC, true_RC, predicted_RC = np.split(sums_RK, 3, axis=1)
    return divided((f1_of(right_RC, true_RC, predicted_RC) * true_RC).sum(axis=1), true_RC.sum(axis=1))


def _mcc(sums_RK: np.ndarray) -> np.ndarray:
    right_RC, true_RC, predicted_RC = np.split(sums_RK, 3, axis=1)
    n_R = true_RC.sum(axis=1)
    covariance = right_RC.sum(axis=1) * n_R - (true_RC * predicted_RC).sum(axis=1)
    variances = [n_R**2 - (one**2).sum(axis=1) for one in (true_RC, predicted_RC)]
    return np.nan_to_num(divided(covariance, np.sqrt(variances[0] * variances[1])))


def ranking_metrics(probabilities_NC: np.ndarray, true_NC: np.ndarray, labels: Sequence[str]) -> dict[str, Counted]:
    """roc_auc over the labels that some examples have and some have not, average_precision over those that occur."""
    occurs_C, is_everywhere_C = np.asarray(true_NC.any(axis=0)), np.asarray(true_NC.all(axis=0))
    n_labels, counts = true_NC.shape[1], _between_counts(probabilities_NC, true_NC, MOST_EDGES)
    found: dict[str, Counted] = {}
    for name, function, judged_C in (
        ("roc_auc", _roc_auc, occurs_C & ~is_everywhere_C),
        ("average_precision", _average_precision, occurs_C),
    ):
        values = [_exact(function, probabilities_NC[:, c], true_NC[:, c]) for c in np.flatnonzero(judged_C)]
        exact = float(np.mean(values)) if values else float("nan")
        value = partial(_mean_of_labels, function, n_labels)
        found[name] = Counted(counts, value, note=missing_note(judged_C, labels) if values else "", exact=exact)
    return found


def _exact(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], scores_N: np.ndarray, true_N: np.ndarray
) -> float:
    bins_N, n_bins = _bins_between(scores_N, true_N, len(scores_N))
    positive, negative = (np.bincount(bins_N[which], minlength=n_bins) for which in (true_N, ~true_N))
    return float(function(positive[None].astype(np.float64), negative[None].astype(np.float64))[0])


def _bins_between(scores_N: np.ndarray, true_N: np.ndarray, most_edges: int) -> tuple[np.ndarray, int]:
    """The bin of each score: bin 2i + 1 has those that equal the i-th edge, bin 2i those just below it. Edges are the
    scores of positive examples, or quantiles of them."""
    edges = np.unique(scores_N[true_N])
    if len(edges) > most_edges:
        ends = np.linspace(0, 1, most_edges)
        edges = np.unique(np.quantile(scores_N[true_N], ends, method="nearest"))
    return np.searchsorted(edges, scores_N, "left") + np.searchsorted(edges, scores_N, "right"), 2 * len(edges) + 1


def _between_counts(probabilities_NC: np.ndarray, true_NC: np.ndarray, most_edges: int) -> Any:
    """Per example, label and bin 1 for a positive and, further right, for a negative one; sparse (N, 2 * C * B)."""
    from scipy.sparse import csr_array

    n_rows, n_labels = true_NC.shape
    binned = [_bins_between(probabilities_NC[:, c], true_NC[:, c], most_edges) for c in range(n_labels)]
    n_bins = max(n for _, n in binned)
    places_NC = np.empty((n_rows, n_labels), np.int32)
    for c, (bins_N, _) in enumerate(binned):
        places_NC[:, c] = (np.where(true_NC[:, c], 0, n_labels) + c) * n_bins + bins_N
    ends = np.arange(0, n_rows * n_labels + 1, n_labels, dtype=np.int32)
    return csr_array((np.ones(places_NC.size, np.float32), places_NC.ravel(), ends), (n_rows, 2 * n_labels * n_bins))


def _mean_of_labels(function: Callable[..., np.ndarray], n_labels: int, sums_RK: np.ndarray) -> np.ndarray:
    positive_RCB, negative_RCB = np.split(sums_RK.reshape(len(sums_RK), 2 * n_labels, -1), 2, axis=1)
    values_RC = function(positive_RCB, negative_RCB)
    known_RC = ~np.isnan(values_RC)
    return divided(np.where(known_RC, values_RC, 0).sum(axis=1), known_RC.sum(axis=1))


def _roc_auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The probability that a positive example has a higher score than a negative one; bins are the last axis."""
    below = negative.cumsum(axis=-1) - negative / 2  # equal scores count half
    return divided((positive * below).sum(axis=-1), positive.sum(axis=-1) * negative.sum(axis=-1))


def _average_precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The mean over the positive examples of the precision among all with at least their score."""
    right = positive[..., ::-1].cumsum(axis=-1)[..., ::-1]
    above = right + negative[..., ::-1].cumsum(axis=-1)[..., ::-1]
    precision = divided(right, above)
    return divided((positive * np.nan_to_num(precision)).sum(axis=-1), positive.sum(axis=-1))


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> Counted:
    """The mean distance between probability and share of right answers over the bins, weighted by their answers.

    Both arrays are (N,), of the answered label, or (N, C) with all labels of an example.
    """
    probabilities_NM, right_NM = probabilities.reshape(len(right), -1), right.reshape(len(right), -1)
    n_rows, bins_NM = len(right_NM), bins_of(probabilities_NM)
    places_NM = bins_NM + np.arange(n_rows)[:, None] * N_BINS
    gaps_NB = np.bincount(places_NM.ravel(), (right_NM - probabilities_NM).ravel(), n_rows * N_BINS)
    counts_NK = np.concatenate([gaps_NB.reshape(n_rows, N_BINS), np.full((n_rows, 1), right_NM.shape[1])], axis=1)
    return Counted(counts_NK, _mean_gap, is_biased=True)


def _mean_gap(sums_RK: np.ndarray) -> np.ndarray:
    return np.abs(sums_RK[:, :-1]).sum(axis=1) / sums_RK[:, -1]


def bins_of(probabilities: np.ndarray) -> np.ndarray:
    """Bins of equal width, closed on the right as in arXiv:1706.04599; 0 belongs to the first."""
    return np.clip(np.ceil(probabilities * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)


def brier_score(probabilities_NC: np.ndarray, true_NC: np.ndarray) -> Counted:
    squared_N = ((probabilities_NC - true_NC) ** 2).sum(axis=1) / 2
    return Counted(np.stack([squared_N, np.ones(len(squared_N))], axis=1), quotient)


def reliability_figure(probabilities: np.ndarray, right: np.ndarray) -> "Figure":
    """The share of right answers per bin of the probability, with the number of answers in each bin below."""
    from matplotlib.figure import Figure

    bins = bins_of(probabilities.ravel())
    n_B, of_probability_B, of_right_B = (
        np.bincount(bins, weights, N_BINS) for weights in (None, probabilities.ravel(), right.ravel())
    )
    filled = n_B > 0
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles = (np.arange(N_BINS) + 0.5) / N_BINS
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="well calibrated")
    upper.bar(
        middles[filled], (of_right_B / np.maximum(n_B, 1))[filled], 1 / N_BINS, color="#c9d6df", edgecolor="white"
    )
    x, y = of_probability_B[filled] / n_B[filled], of_right_B[filled] / n_B[filled]
    upper.plot(x, y, "o", color="#1f6f8b", markersize=4, label="mean probability and share")
    upper.set_ylabel("share of right answers")
    upper.set_ylim(0, 1)
    upper.legend(loc="upper left", fontsize="small")
    lower.bar(middles, n_B, 1 / N_BINS, color="#c9d6df", edgecolor="white")
    for place, n in zip(middles, n_B, strict=True):
        lower.text(place, n, f"{int(n):,}" if n else "", ha="center", va="bottom", fontsize=6)
    lower.margins(y=0.2)
    lower.set_ylabel("answers")
    lower.set_xlabel("probability of the answer")
    lower.set_xlim(0, 1)
    return figure
