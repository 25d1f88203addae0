"""Loss spikes: steps whose loss or gradient lies far above that of the steps before.

In: loss and gradient norm of the last steps, and of this one. Out: by how many deviations this one lies above.
The deviation is robust: median and median absolute deviation, times 1.4826 so that it equals the standard deviation
where values are normal (Hampel 1974, doi:10.1080/01621459.1974.10482962). Mean and standard deviation would be
carried off by the very spikes they are to find. Leaving out the update of such a step is OLMo's skip-step
(arXiv:2501.00656 section 3); the window of 128 steps is theirs too, and so are six deviations, of loss or gradient
norm, as the limit for that. Told is a step whose loss lies SPIKE above.

Everything is a pure function of the history, which lies in the checkpoint: a resume finds and skips the same steps.
"""

from collections.abc import Sequence
from statistics import median

WINDOW = 128  # steps that a step is compared with
MIN_STEPS = 32  # before so many there is nothing to compare with
SPIKE = 4.0  # deviations of the loss that are told: of normal ones, 1 in 30,000
MAD_TO_DEVIATION = 1.4826
MIN_DEVIATION = 1e-3  # of the median: where values hardly differ at all, a ripple is no spike

History = list[tuple[float, float]]  # loss and gradient norm of the last steps, oldest first


def deviations_above(history: Sequence[float], value: float) -> float:
    """By how many deviations `value` lies above the median of `history`; 0 with fewer than MIN_STEPS of them."""
    if len(history) < MIN_STEPS:
        return 0.0
    middle = median(history)
    deviation = MAD_TO_DEVIATION * median(abs(past - middle) for past in history)
    return (value - middle) / max(deviation, MIN_DEVIATION * abs(middle), 1e-30)


def spike_of(history: History, loss: float, gradient_norm: float) -> float:
    """The larger of the deviations of loss and gradient norm."""
    losses, norms = zip(*history, strict=True) if history else ((), ())
    return max(deviations_above(losses, loss), deviations_above(norms, gradient_norm))


def loss_spike_of(history: History, loss: float, min_rise: float = 0.0) -> float:
    """The deviations of the loss alone: gradients of small batches have outliers every few hundred steps that the
    clipping takes care of, and that nobody wants to be told of.

    0 for a loss that lies less than `min_rise` nats above the median: where losses are nearly 0, as at the end of a
    fine-tuning, their deviation is nearly 0 too, and a single wrong answer lies hundreds of deviations above.
    """
    losses = [past for past, _ in history]
    return deviations_above(losses, loss) if losses and loss - median(losses) >= min_rise else 0.0


def with_step(history: History, loss: float, gradient_norm: float) -> History:
    """The history after one more step. A spike enters it too: a level that stays becomes the new normal."""
    return [*history[-(WINDOW - 1) :], (loss, gradient_norm)]
