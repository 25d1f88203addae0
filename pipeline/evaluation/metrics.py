"""Metrics of models with 95 % intervals.

In: nats, tokens and bytes per document; or a confusion matrix. Out: bits per byte and perplexity; accuracy and F1.

- A rate, such as accuracy, has the exact interval of Clopper and Pearson (1934), which is right for any number of
  examples and for a perfect score.
- Other metrics have percentile intervals over RESAMPLES seeded resamples (Efron and Tibshirani 1993, chapter 13). The
  resampled unit is what was drawn independently: the document for language models, the example for classification.
  A single unit has no such interval.
- The difference of two accuracies has the adjusted Wald interval for paired examples (Agresti and Min 2005).

scipy is imported where it is used. Legend: R resamples, K cells of a confusion matrix, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95
Z = 1.959963984540054  # quantile of the normal distribution for COVERAGE
FEW_UNITS = (
    30  # below so many, an interval over resamples is too narrow (Hesterberg 2015, doi:10.1080/00031305.2015.1089789)
)
AT_ONCE = 100  # resamples in memory
SHOWN_LABELS = 10  # in a note


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval, None if there is none. `note` says what a reader of the value has to know."""

    value: float
    low: float | None
    high: float | None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.value:.4f} ({'no interval' if self.low is None else f'{self.low:.4f} to {self.high:.4f}'})"


def interval(value: float, values_R: np.ndarray) -> Estimate:
    low, high = np.quantile(values_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(float(value), float(low), float(high))


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0, unit: str = "document") -> Estimate:
    """Ratio of two sums, resampled by item: nats / tokens or bits / bytes per document."""
    n_items, n_full = len(numerators), int((denominators > 0).sum())
    note = "" if n_full >= FEW_UNITS else f"over only {n_full} {unit}s, so that the interval is too narrow"
    if n_full == 1:
        note = f"over one {unit}, which has no interval"
        return Estimate(float(numerators.sum() / denominators.sum()), None, None, note)
    draws = np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), size=RESAMPLES)
    below_R = draws @ denominators
    # a resample of only empty documents has no value
    values_R = (draws @ numerators)[below_R > 0] / below_R[below_R > 0]
    return replace(interval(numerators.sum() / denominators.sum(), values_R), note=note)


def rate(n_right: int, n_all: int) -> Estimate:
    """A rate with its exact interval (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    tail, n_wrong = (1 - COVERAGE) / 2, n_all - n_right
    low = float(betaincinv(n_right, n_wrong + 1, tail)) if n_right else 0.0
    high = float(betaincinv(n_right + 1, n_wrong, 1 - tail)) if n_wrong else 1.0
    note = "" if n_all >= FEW_UNITS else f"over only {n_all} examples"
    return Estimate(n_right / n_all, low, high, note)


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray, seed: int = 0) -> Estimate:
    """Bits per byte from arrays with one entry per document."""
    return ratio(nats / math.log(2), n_bytes, seed)


def perplexity(nats: np.ndarray, n_tokens: np.ndarray, seed: int = 0) -> Estimate:
    """exp of the mean nats per token, from arrays with one entry per document."""
    mean = ratio(nats, n_tokens, seed)
    low, high = (None if end is None else math.exp(end) for end in (mean.low, mean.high))
    return Estimate(math.exp(mean.value), low, high, mean.note)


def accuracy(matrix_CC: np.ndarray) -> Estimate:
    return rate(int(np.trace(matrix_CC)), int(matrix_CC.sum()))


def f1_of(matrix_CC: np.ndarray) -> np.ndarray:
    """F1 per class (C,): 2 tp / (2 tp + fp + fn); 0 for a class that neither occurs nor is predicted."""
    return _f1(np.diagonal(matrix_CC), matrix_CC.sum(axis=1), matrix_CC.sum(axis=0))


def _f1(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return 2 * right / np.maximum(true + predicted, 1)


def macro_f1_of(matrix_CC: np.ndarray) -> float:
    """Mean F1 over the labels that occur among the true ones."""
    return float(f1_of(matrix_CC)[matrix_CC.sum(axis=1) > 0].mean())


def macro_f1(matrix_CC: np.ndarray, labels: Sequence[str], seed: int = 0) -> Estimate:
    """Mean F1 over the labels that occur among the true ones, with its interval; the note names the others.

    A wrong answer with a label that does not occur lowers the F1 of the true label, and counts no second time. If all
    answers are right, or all are wrong, then all resamples are equal, and the interval is the exact one of accuracy.
    """
    occurs_C = matrix_CC.sum(axis=1) > 0
    exact, n_rows, value = accuracy(matrix_CC), int(matrix_CC.sum()), macro_f1_of(matrix_CC)
    notes = [exact.note] if exact.note else []
    if not occurs_C.all():
        missing = [label for label, occurs in zip(labels, occurs_C, strict=True) if not occurs]
        shown = ", ".join(missing[:SHOWN_LABELS]) + (", ..." if len(missing) > SHOWN_LABELS else "")
        notes.append(f"over {occurs_C.sum()} of {len(labels)} labels; no example has {shown}")
    note = "; ".join(notes)
    if exact.value in (0, 1):
        return replace(exact, value=value, note=note)
    return replace(interval(value, _resampled_macro_f1(matrix_CC, n_rows, seed)), note=note)


def _resampled_macro_f1(matrix_CC: np.ndarray, n_rows: int, seed: int) -> np.ndarray:
    """Macro-F1 of RESAMPLES resamples of the examples, each over the labels that occur in it, float64 (R,)."""
    from scipy.sparse import csr_array

    true_K, predicted_K = np.nonzero(matrix_CC)  # cells: at most one per example, however many labels there are
    counts_K = matrix_CC[true_K, predicted_K]
    shape = (len(counts_K), len(matrix_CC))
    cells_K, ones_K = np.arange(len(counts_K)), np.ones(len(counts_K), np.int64)
    of_true_KC, of_predicted_KC = (csr_array((ones_K, (cells_K, side_K)), shape) for side_K in (true_K, predicted_K))
    of_right_KC = csr_array(((true_K == predicted_K).astype(np.int64), (cells_K, true_K)), shape)
    rng, parts = np.random.default_rng(seed), []
    for _ in range(0, RESAMPLES, AT_ONCE):
        draws_RK = rng.multinomial(n_rows, counts_K / n_rows, size=AT_ONCE)
        true_RC = draws_RK @ of_true_KC
        f1_RC = _f1(draws_RK @ of_right_KC, true_RC, draws_RK @ of_predicted_KC)
        parts.append((f1_RC * (true_RC > 0)).sum(axis=1) / (true_RC > 0).sum(axis=1))
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares two models on the same examples: `difference` is the first accuracy minus the second."""

    difference: Estimate
    only_first_right: int
    only_second_right: int
    p_value: float  # exact McNemar test, two-sided; null hypothesis: both are wrong equally often


def compare(truth: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Comparison:
    right = np.array(truth) == np.array(first), np.array(truth) == np.array(second)
    ours, theirs = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return Comparison(paired_difference(ours, theirs, len(truth)), ours, theirs, mcnemar(ours, theirs))


def paired_difference(only_first: int, only_second: int, n_rows: int) -> Estimate:
    """Difference of two accuracies on the same examples, with half an example added to each of the four cells."""
    middle = (only_first - only_second) / (n_rows + 2)
    variance = (only_first + only_second + 1) - (only_first - only_second) ** 2 / (n_rows + 2)
    half = Z * math.sqrt(variance) / (n_rows + 2)
    return Estimate((only_first - only_second) / n_rows, max(middle - half, -1.0), min(middle + half, 1.0))


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability that fair coin tosses split the examples on which two models differ at least as unevenly."""
    n_differ = only_first + only_second
    logs = [
        math.lgamma(n_differ + 1) - math.lgamma(k + 1) - math.lgamma(n_differ - k + 1) - n_differ * math.log(2)
        for k in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
