"""Values with 95 % intervals, and paired comparisons of two models, from counts per example.

In: counts per example and a function from their sums to a metric (`Counted`). Out: an `Estimate`, or the `Difference`
of two models on the same examples with its interval and p value.

- A rate, such as accuracy, has the exact interval of Clopper and Pearson (1934), which is right for any number of
  examples and for a perfect score; the difference of two has the adjusted Wald interval for paired examples (Agresti
  and Min 2005) and the exact test of McNemar (1947).
- Other metrics have percentile intervals over RESAMPLES seeded resamples (Efron and Tibshirani 1993, chapter 13). The
  resampled unit is what was drawn independently: the document for language models, the example for tasks. Their
  differences are tested by the paired bootstrap: how often is the difference of a resample as far from the observed
  one as that is from zero (Berg-Kirkpatrick et al. 2012, section 3, two-sided)?

scipy is imported where it is used. Legend: N examples, K counts, R resamples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95
Z = 1.959963984540054  # quantile of the normal distribution for COVERAGE
FEW_UNITS = (
    30  # below so many, an interval over resamples is too narrow (Hesterberg 2015, doi:10.1080/00031305.2015.1089789)
)
AT_ONCE = 100  # resamples in memory
NONE = np.zeros(0)
MOST_NUMBERS = 10_000_000  # in memory for them, which is 80 MB: fewer resamples at once if there are many examples


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval, None if there is none. `note` is what a reader of the value has to know."""

    value: float
    low: float | None
    high: float | None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.value:.4f} ({'no interval' if self.low is None else f'{self.low:.4f} to {self.high:.4f}'})"


@dataclass(frozen=True, slots=True)
class Difference:
    """The value of one model minus that of another on the same examples."""

    value: float
    low: float
    high: float
    p_value: float  # two-sided; null hypothesis: the two models are equally good
    n_rows: int  # examples


@dataclass(frozen=True, slots=True)
class Counted:
    """A metric that depends on sums over the examples alone, such as F1 on true, predicted and right entities.

    `value` maps sums (R, K) to values (R,), NaN where there is no value. `counts_NK` has a row per example, as an
    array or a sparse array; bool, int8 and float32 need the least time. `exact` is the value over all examples if
    `value` only approximates it.
    """

    counts_NK: Any
    value: Callable[[np.ndarray], np.ndarray]
    is_rate: bool = False  # the value is the share of examples that are right; see `rate_of`
    note: str = ""
    exact: float | None = None
    is_biased: bool = False  # resamples, which repeat examples, have a higher value on average
    lowest: float = 0.0  # possible value; the highest one is 1

    @property
    def n_rows(self) -> int:
        return self.counts_NK.shape[0]

    def over_all(self) -> float:
        return self._approximate() if self.exact is None else self.exact

    def placed(self, values_R: np.ndarray) -> np.ndarray:
        """The values of resamples, moved by what `value` errs over all examples."""
        if self.is_biased:
            return np.maximum(values_R - np.median(values_R) + self.over_all(), 0)
        return values_R if self.exact is None else values_R + (self.exact - self._approximate())

    def _approximate(self) -> float:
        return float(self.value(np.asarray(self.counts_NK.sum(axis=0), np.float64)[None])[0])


def rate_of(right_N: np.ndarray | Sequence[bool]) -> Counted:
    """The share of examples that are right."""
    right_N = np.asarray(right_N, bool)
    return Counted(np.stack([right_N, np.ones_like(right_N)], axis=1).astype(np.float64), quotient, is_rate=True)


def quotient(sums_RK: np.ndarray) -> np.ndarray:
    """The first sum divided by the second; NaN where that is zero."""
    return divided(sums_RK[:, 0], sums_RK[:, 1])


def divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where `whole` is zero."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)


def estimate(counted: Counted, seed: int = 0) -> Estimate:
    return estimate_from(counted, *resampled_values([counted], seed))


def paired(first: Counted, second: Counted, seed: int = 0) -> Difference:
    """The metric of a model minus that of another; row i of both belongs to the same example."""
    return difference_from(first, second, *resampled_values([first, second], seed))


def resampled_values(counted: Sequence[Counted], seed: int) -> list[np.ndarray]:
    """The values of each metric over the same RESAMPLES resamples of the examples, float64 (R,) each; none of a rate,
    which does not need them."""
    from scipy.sparse import csr_array

    counts = {id(one.counts_NK): one.counts_NK for one in counted if not one.is_rate}  # metrics may share them
    if not counts:
        return [NONE] * len(counted)
    transposed: dict[int, Any] = {key: csr_array(csr_array(counts_NK).T) for key, counts_NK in counts.items()}
    parts: list[list[np.ndarray]] = [[] for _ in counted]
    for times_NR in _times_drawn(counted[0].n_rows, max(one.shape[0] for one in transposed.values()), seed):
        for key, counts_KN in transposed.items():
            sums_RK = np.ascontiguousarray((counts_KN @ times_NR).T)
            for one, part in zip(counted, parts, strict=True):
                if id(one.counts_NK) == key:
                    part.append(one.value(sums_RK))
    return [one.placed(np.concatenate(part)) if part else NONE for one, part in zip(counted, parts, strict=True)]


def _times_drawn(n_rows: int, n_counts: int, seed: int) -> Iterator[np.ndarray]:
    """How often each example is in each resample, float32 (N, R), a few resamples at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, min(AT_ONCE, MOST_NUMBERS // max(n_rows, n_counts)))
    for start in range(0, RESAMPLES, at_once):
        times_NR = np.empty((n_rows, min(at_once, RESAMPLES - start)), np.float32)
        for place in range(times_NR.shape[1]):  # one after the other: the draws do not depend on how many are at once
            times_NR[:, place] = np.bincount(rng.integers(n_rows, size=n_rows, dtype=np.int32), minlength=n_rows)
        yield times_NR


def estimate_from(counted: Counted, values_R: np.ndarray) -> Estimate:
    return _exact_rate(counted) if counted.is_rate else _estimated(counted, values_R)


def difference_from(first: Counted, second: Counted, first_R: np.ndarray, second_R: np.ndarray) -> Difference:
    """From the values of both over the same resamples."""
    return _difference_of_rates(first, second) if first.is_rate else _difference(first, second, first_R - second_R)


def _exact_rate(counted: Counted) -> Estimate:
    n_right, n_all = (int(total) for total in counted.counts_NK.sum(axis=0))
    found = rate(n_right, n_all)
    return replace(found, note="; ".join(filter(None, [found.note, counted.note])))


def _estimated(counted: Counted, values_R: np.ndarray) -> Estimate:
    value, known_R = counted.over_all(), values_R[~np.isnan(values_R)]
    notes, ends = "; ".join(filter(None, [_few(counted.n_rows), counted.note])), (counted.lowest, 1)
    if len(known_R) and (np.ptp(known_R) or value not in ends) and counted.n_rows > 1:
        return replace(interval(value, known_R), note=notes)
    if value not in ends:
        return Estimate(value, None, None, notes)
    at_ends = exact_ends(counted.n_rows if value == 1 else 0, counted.n_rows)  # all resamples are equal
    low, high = (counted.lowest + (1 - counted.lowest) * end for end in at_ends)
    return Estimate(value, low, high, notes)


def _few(n_rows: int) -> str:
    return "" if n_rows >= FEW_UNITS else f"over only {n_rows} example{'' if n_rows == 1 else 's'}"


def _difference(first: Counted, second: Counted, differences_R: np.ndarray) -> Difference:
    value = first.over_all() - second.over_all()
    known_R = differences_R[~np.isnan(differences_R)]
    if not len(known_R) or not np.ptp(known_R):  # as if the interval had no width: the same answers, or one example
        n_apart = first.n_rows if value else 0
        ends = paired_difference(n_apart if value > 0 else 0, n_apart if value < 0 else 0, first.n_rows)
        return replace(ends, value=value)
    # the value is one more resample, so that p is never 0; a hair wider, because equal sums may differ by rounding
    n_as_far = int((np.abs(known_R - value) >= abs(value) - 1e-12).sum())
    return Difference(value, *percentiles(known_R), (n_as_far + 1) / (len(known_R) + 1), first.n_rows)


def _difference_of_rates(first: Counted, second: Counted) -> Difference:
    ours_N, theirs_N = (one.counts_NK[:, 0] > 0 for one in (first, second))
    return paired_difference(int((ours_N & ~theirs_N).sum()), int((theirs_N & ~ours_N).sum()), first.n_rows)


def interval(value: float, values_R: np.ndarray) -> Estimate:
    return Estimate(float(value), *percentiles(values_R))


def percentiles(values_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


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
    """A rate with its exact interval."""
    return Estimate(n_right / n_all, *exact_ends(n_right, n_all), _few(n_all))


def exact_ends(n_right: int, n_all: int) -> tuple[float, float]:
    """The interval of Clopper and Pearson (1934)."""
    from scipy.special import betaincinv

    tail, n_wrong = (1 - COVERAGE) / 2, n_all - n_right
    low = float(betaincinv(n_right, n_wrong + 1, tail)) if n_right else 0.0
    high = float(betaincinv(n_right + 1, n_wrong, 1 - tail)) if n_wrong else 1.0
    return low, high


def paired_difference(only_first: int, only_second: int, n_rows: int) -> Difference:
    """Difference of two accuracies on the same examples, with half an example added to each of the four cells."""
    middle = (only_first - only_second) / (n_rows + 2)
    variance = (only_first + only_second + 1) - (only_first - only_second) ** 2 / (n_rows + 2)
    half = Z * math.sqrt(variance) / (n_rows + 2)
    value, low, high = (only_first - only_second) / n_rows, max(middle - half, -1.0), min(middle + half, 1.0)
    return Difference(value, low, high, mcnemar(only_first, only_second), n_rows)


def mcnemar(only_first: int, only_second: int) -> float:
    """Probability that fair coin tosses split the examples on which two models differ at least as unevenly."""
    n_differ = only_first + only_second
    logs = [
        math.lgamma(n_differ + 1) - math.lgamma(k + 1) - math.lgamma(n_differ - k + 1) - n_differ * math.log(2)
        for k in range(min(only_first, only_second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))
