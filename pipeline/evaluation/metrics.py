"""Metrics of models with 95 % bootstrap intervals.

In: nats, tokens and bytes per document; or a confusion matrix. Out: bits per byte and perplexity; accuracy and F1.

Intervals are percentile intervals over RESAMPLES seeded resamples (Efron and Tibshirani 1993, chapter 13). The
resampled unit is what was drawn independently: the document for language models, the example for classification.

Legend: R resamples, C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


def interval(value: float, values_R: np.ndarray) -> Estimate:
    low, high = np.quantile(values_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(value), float(low), float(high))


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Estimate:
    """Ratio of two sums, resampled by item: nats / tokens or bits / bytes per document."""
    n_items = len(numerators)
    draws = np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), size=RESAMPLES)
    below_R = draws @ denominators
    # a resample of only empty documents has no value
    values_R = (draws @ numerators)[below_R > 0] / below_R[below_R > 0]
    return interval(numerators.sum() / denominators.sum(), values_R)


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray, seed: int = 0) -> Estimate:
    """Bits per byte from arrays with one entry per document."""
    return ratio(nats / math.log(2), n_bytes, seed)


def perplexity(nats: np.ndarray, n_tokens: np.ndarray, seed: int = 0) -> Estimate:
    """exp of the mean nats per token, from arrays with one entry per document."""
    mean = ratio(nats, n_tokens, seed)
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))


def confusion_matrix(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Examples by true label (rows) and predicted label (columns), int64 (C, C)."""
    place = {label: i for i, label in enumerate(labels)}
    matrix_CC = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix_CC, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    return matrix_CC


def accuracy_of(matrix_CC: np.ndarray) -> np.ndarray:
    """Share of the counts on the diagonal; leading axes are kept."""
    return np.trace(matrix_CC, axis1=-2, axis2=-1) / matrix_CC.sum((-2, -1))


def f1_of(matrix_CC: np.ndarray) -> np.ndarray:
    """F1 per class (..., C): 2 tp / (2 tp + fp + fn); 0 for a class that neither occurs nor is predicted."""
    right_C = np.diagonal(matrix_CC, axis1=-2, axis2=-1)
    both_C = matrix_CC.sum(-1) + matrix_CC.sum(-2)
    return 2 * right_C / np.maximum(both_C, 1)


def macro_f1_of(matrix_CC: np.ndarray) -> np.ndarray:
    return f1_of(matrix_CC).mean(-1)


def estimate(metric: Callable[[np.ndarray], np.ndarray], matrix_CC: np.ndarray, seed: int = 0) -> Estimate:
    """`metric` of a confusion matrix with its interval; resampling its cells is resampling examples."""
    n_rows = int(matrix_CC.sum())
    cells = np.random.default_rng(seed).multinomial(n_rows, matrix_CC.ravel() / n_rows, size=RESAMPLES)
    return interval(float(metric(matrix_CC)), metric(cells.reshape(RESAMPLES, *matrix_CC.shape)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares two models on the same examples: `difference` is the first accuracy minus the second."""

    difference: Estimate
    only_first_right: int
    only_second_right: int
    p_value: float  # exact McNemar test, two-sided; null hypothesis: both are wrong equally often


def compare(truth: Sequence[str], first: Sequence[str], second: Sequence[str], seed: int = 0) -> Comparison:
    right = np.array(truth) == np.array(first), np.array(truth) == np.array(second)
    ours, theirs = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    n_rows = len(truth)
    shares = np.array([ours, theirs, n_rows - ours - theirs]) / n_rows
    draws = np.random.default_rng(seed).multinomial(n_rows, shares, size=RESAMPLES)
    difference = interval((ours - theirs) / n_rows, (draws[:, 0] - draws[:, 1]) / n_rows)
    return Comparison(difference, ours, theirs, mcnemar(ours, theirs))


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability that fair coin tosses split the examples on which two models differ at least as unevenly."""
    n_differ = only_first + only_second
    logs = [
        math.lgamma(n_differ + 1) - math.lgamma(k + 1) - math.lgamma(n_differ - k + 1) - n_differ * math.log(2)
        for k in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
