"""Warns at the start of a training that takes absurdly long, such as one of 10**12 steps.

In: the progress of a training. Out: the same progress, and one warning with the time that the training takes, as
measured on its first steps. Before it starts, `gristmill plan` and `gristmill run` estimate the time by formula.
"""

import logging
import time
from collections.abc import Callable

from pipeline.store.progress import duration_text

LONG_SECONDS = 7 * 24 * 3600.0
MEASURED_STEPS = 3  # after the first one, which is slower than the others
MEASURED_SECONDS = 2.0
MOST_PASSES = 1000  # over the training data
log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


def paced(progress: Progress, clock: Callable[[], float] = time.monotonic) -> Progress:
    """`progress` of a training, which also warns if the training takes longer than LONG_SECONDS."""
    first: tuple[int, float] | None = None  # steps done and time at the first call
    is_measured = False

    def told(done: int, total: int) -> None:
        nonlocal first, is_measured
        progress(done, total)
        now = clock()
        if first is None:
            first = done, now
        steps, seconds = done - first[0], now - first[1]
        if is_measured or steps < MEASURED_STEPS or seconds < MEASURED_SECONDS:
            return
        is_measured = True
        left = (total - done) * seconds / steps
        if left > LONG_SECONDS:
            log.warning(
                "at %.3g seconds per step, the %s steps that are left take about %s; if that is not meant, stop the"
                " run and lower n_steps (or epochs)",
                *(seconds / steps, f"{total - done:,}", duration_text(left)),
            )

    return told


def warn_of_passes(passes: float, n_tokens: int) -> None:
    if passes > MOST_PASSES:
        log.warning(
            "the training reads %s tokens, its data %s times over; a model learns little after a few passes:"
            " lower n_steps, or add sources",
            *(f"{n_tokens:,}", f"{passes:,.0f}"),
        )
