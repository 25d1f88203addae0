"""Which checkpoint of a run is its best, and when validations end the run early.

In: the values of validations, in order. Out: the best of them, and whether `patience` of them in a row did not
improve it. Both depend on nothing but these values, so that a resumed run decides as one that was never stopped. The
schedule of the learning rate is that of the planned number of steps, also where fewer are done.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Valued = tuple[int, float]  # step and value of a validation


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    metric: str  # name of the value of a validation that decides
    higher_is_better: bool = False
    keeps_best: bool = False  # the result has the weights of the best validation; False = those of the last step
    patience: int | None = None  # validations in a row without improvement that end the run; None = none do

    def best(self, validations: Iterable[Valued]) -> Valued | None:
        """The first of the best ones; values that are not finite are never best."""
        finite = [(step, value) for step, value in validations if math.isfinite(value)]
        if not finite:
            return None
        return min(finite, key=lambda valued: (-valued[1] if self.higher_is_better else valued[1], valued[0]))

    def is_over(self, validations: Sequence[Valued]) -> bool:
        """Whether the run ends after the last of `validations`, which are in order."""
        if self.patience is None:
            return False
        best = self.best(validations)
        n_since = sum(1 for step, _ in validations if best is None or step > best[0])
        return n_since >= self.patience


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: the updates that were done, and the validation whose weights it has; None: the last ones."""

    n_steps: int
    best: Valued | None = None
