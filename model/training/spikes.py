"""Loss spikes: steps whose loss or gradient is far above that of the steps before.

In: loss and gradient norm of the last steps, and of this one. Out: by how many deviations this one is above them.
The deviation is robust: the median absolute deviation times 1.4826, so that it equals the standard deviation where
values are normal (Hampel 1974, doi:10.1080/01621459.1974.10482962), above the median. Mean and standard deviation
would be moved by the very spikes that they are to find. Leaving out the update of such a step is OLMo's skip-step
(arXiv:2501.00656 section 3), as are the window of 128 steps and six deviations, of loss or gradient norm, as the
limit for that. A step is reported when its loss is more than SPIKE deviations above the median.

Everything is a pure function of the history, which is part of a checkpoint, so that a resume skips the same steps.
The history is a list of numbers on the host; `is_spike_on_device` decides alike by a tensor, so that the host need
not wait for the numbers of a step before it launches the update.

Legend: W steps of the window, 2 = loss and gradient norm.
"""

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

WINDOW = 128  # steps that a step is compared with
MIN_STEPS = 32  # with fewer there is nothing to compare with
SPIKE = 4.0  # deviations of the loss from which on a step is reported: of normal losses, 1 in 30,000
MAD_TO_DEVIATION = 1.4826
MIN_DEVIATION = 1e-3  # of the median: where values hardly differ at all, a ripple is no spike
TINY = 1e-30  # a deviation of zero would divide by it

History = list[tuple[float, float]]  # loss and gradient norm of the last steps, oldest first


def deviations_above(history: Sequence[float], value: float) -> float:
    """By how many deviations `value` is above the median of `history`; 0 with fewer than MIN_STEPS of them."""
    if len(history) < MIN_STEPS:
        return 0.0
    middle = median(history)
    deviation = MAD_TO_DEVIATION * median(abs(past - middle) for past in history)
    return (value - middle) / max(deviation, MIN_DEVIATION * abs(middle), TINY)


def spike_of(history: History, loss: float, gradient_norm: float) -> float:
    """The larger of the deviations of loss and gradient norm."""
    losses, norms = zip(*history, strict=True) if history else ((), ())
    return max(deviations_above(losses, loss), deviations_above(norms, gradient_norm))


def loss_spike_of(history: History, loss: float, min_rise: float = 0.0) -> float:
    """The deviations of the loss alone: gradients of small batches have outliers every few hundred steps, which
    clipping takes care of and which nobody needs to read about.

    0 for a loss less than `min_rise` nats above the median: where losses are nearly 0, as at the end of a
    fine-tuning, their deviation is nearly 0 too, and a single wrong answer is hundreds of deviations above.
    """
    losses = [past for past, _ in history]
    return deviations_above(losses, loss) if losses and loss - median(losses) >= min_rise else 0.0


def with_step(history: History, loss: float, gradient_norm: float) -> History:
    """The history after one more step. A spike enters it too: a level that stays becomes the new normal."""
    return [*history[-(WINDOW - 1) :], (loss, gradient_norm)]


def history_on_device(history: History, device: torch.device) -> Tensor:
    """(2, W) float64, oldest first; NaN where there was no step yet."""
    missing = [(float("nan"), float("nan"))] * (WINDOW - len(history))
    return torch.tensor([*missing, *history], dtype=torch.float64).T.contiguous().to(device)


def is_spike_on_device(history_2W: Tensor, values_2: Tensor, limit: float) -> Tensor:
    """Whether `spike_of` is above `limit`, as a 0-d bool tensor: the host reads nothing."""
    middle_21 = _medians(history_2W)
    deviation_21 = MAD_TO_DEVIATION * _medians((history_2W - middle_21).abs())
    least_21 = (MIN_DEVIATION * middle_21.abs()).clamp(min=TINY)
    deviations_21 = (values_2.double().unsqueeze(1) - middle_21) / deviation_21.maximum(least_21)
    n_steps_21 = (~history_2W.isnan()).sum(dim=1, keepdim=True)
    return ((n_steps_21 >= MIN_STEPS) & (deviations_21 > limit)).any()


def with_step_on_device(history_2W: Tensor, values_2: Tensor, is_counted: Tensor) -> Tensor:
    """The history after one more step, or as it was where `is_counted` is False."""
    after_2W = torch.cat([history_2W[:, 1:], values_2.double().unsqueeze(1)], dim=1)
    return torch.where(is_counted, after_2W, history_2W)


def _medians(values_2W: Tensor) -> Tensor:
    """(2, 1): the median of what is not NaN in each row, the mean of two where their number is even."""
    sorted_2W = values_2W.nan_to_num(nan=float("inf")).sort(dim=1).values
    n_21 = (~values_2W.isnan()).sum(dim=1, keepdim=True)
    lower_21, upper_21 = (sorted_2W.gather(1, index.clamp(min=0)) for index in ((n_21 - 1) // 2, n_21 // 2))
    return (lower_21 + upper_21) / 2
