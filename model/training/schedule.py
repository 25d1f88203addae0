"""Schedules as pure functions of the step: the learning rate, and the rows of a batch.

In: the step, the steps in all, where the phases end. Out: a factor of the peak rate, 0 to 1; the rows of the first
batches. `step` counts the updates done before this one, so that step 0 of a warmup of n steps has 1/n, step n has 1.
"""

import math

from model.training.config import TrainConfig


def warmup_stable_decay(step: int, n_steps: int, n_warmup: int, n_decay: int, final: float) -> float:
    """Linear up, flat, linear down to `final`, which the step after the last would have (arXiv:2405.18392)."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    left = n_steps - step
    if left >= n_decay:
        return 1.0
    return final + (1 - final) * left / n_decay


def cosine(step: int, n_steps: int, n_warmup: int, final: float) -> float:
    """Linear up, then half a cosine down to `final` (arXiv:1608.03983, one cycle)."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def linear(step: int, n_steps: int, n_warmup: int, final: float) -> float:
    """Linear up, then linear down to `final`."""
    return warmup_stable_decay(step, n_steps, n_warmup, n_steps - n_warmup, final)


def lr_factor(step: int, cfg: TrainConfig) -> float:
    """What the peak learning rates are multiplied by in the update that follows `step` finished ones."""
    n_warmup = math.ceil(cfg.warmup_fraction * cfg.n_steps)
    if cfg.schedule == "cosine":
        return cosine(step, cfg.n_steps, n_warmup, cfg.final_lr_fraction)
    if cfg.schedule == "linear":
        return linear(step, cfg.n_steps, n_warmup, cfg.final_lr_fraction)
    n_decay = math.ceil(cfg.decay_fraction * cfg.n_steps)
    return warmup_stable_decay(step, cfg.n_steps, n_warmup, n_decay, cfg.final_lr_fraction)


BATCH_WARMUP_PARTS = (8, 4, 2)  # an 8th of the rows, then a 4th, then half


def warmup_rows(cfg: TrainConfig) -> tuple[int, ...]:
    """Rows of the first global batches, before all have cfg.rows; empty without a batch warm-up.

    The batch doubles three times, each size for as many steps: gradients are least noisy at the start, where a small
    batch teaches as much a step (arXiv:1812.06162 section 2.2; measured in arXiv:2505.23971).
    """
    n_steps = math.ceil(cfg.batch_warmup_fraction * cfg.n_steps)
    phases = (len(BATCH_WARMUP_PARTS) * step // n_steps for step in range(n_steps))
    return tuple(max(1, cfg.rows // BATCH_WARMUP_PARTS[phase]) for phase in phases)


def n_training_rows(cfg: TrainConfig) -> int:
    """Rows that the whole training reads."""
    first = warmup_rows(cfg)
    return sum(first) + (cfg.n_steps - len(first)) * cfg.rows
