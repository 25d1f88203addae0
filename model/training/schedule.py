"""Schedules as pure functions of the step: the learning rate, and the rows of a batch.

In: the step, the number of steps, where the phases end. Out: a factor of the peak rate, 0 to 1, and the rows of the
first batches. `step` counts the updates before this one: step 0 of a warm-up of n steps has 1/n, and step n has 1.

A run with a stable phase can be extended: until the decay begins, nothing depends on n_steps but the warm-up, whose
length an extended run takes over (TrainConfig.warmup_horizon). So a checkpoint of the stable phase is also one of any
longer run with that warm-up (arXiv:2405.18392 section 4).
"""

import dataclasses
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
    """The factor of the peak learning rates in the update after `step` finished ones."""
    n_warmup = steps_of_warmup(cfg.warmup_fraction, cfg)
    if cfg.schedule == "cosine":
        return cosine(step, cfg.n_steps, n_warmup, cfg.final_lr_fraction)
    if cfg.schedule == "linear":
        return linear(step, cfg.n_steps, n_warmup, cfg.final_lr_fraction)
    n_decay = math.ceil(cfg.decay_fraction * cfg.n_steps)
    return warmup_stable_decay(step, cfg.n_steps, n_warmup, n_decay, cfg.final_lr_fraction)


def steps_of_warmup(fraction: float, cfg: TrainConfig) -> int:
    return math.ceil(fraction * horizon(cfg))


BATCH_WARMUP_DIVISORS = (8, 4, 2)  # an 8th of the rows, then a 4th, then half


def warmup_rows(cfg: TrainConfig) -> tuple[int, ...]:
    """Rows of the first global batches, before all have cfg.rows; empty without a batch warm-up.

    The batch doubles three times, each size for as many steps: gradients are least noisy at the start, where a small
    batch teaches as much per step (arXiv:1812.06162 section 2.2; measured in arXiv:2505.23971).
    """
    n_steps = steps_of_warmup(cfg.batch_warmup_fraction, cfg)
    phases = (len(BATCH_WARMUP_DIVISORS) * step // n_steps for step in range(n_steps))
    return tuple(max(1, cfg.rows // BATCH_WARMUP_DIVISORS[phase]) for phase in phases)


def n_training_rows(cfg: TrainConfig) -> int:
    first = warmup_rows(cfg)
    return sum(first) + (cfg.n_steps - len(first)) * cfg.rows


def stable_end(cfg: TrainConfig) -> int | None:
    """Updates before the decay begins: the last step whose checkpoint a longer run can continue from.

    None where a run cannot be extended: other schedules, and a stable phase that is empty.
    """
    if cfg.schedule != "warmup_stable_decay":
        return None
    end = cfg.n_steps - math.ceil(cfg.decay_fraction * cfg.n_steps)
    return end if end > 0 and end >= steps_of_warmup(cfg.warmup_fraction, cfg) else None


def is_extension(was: TrainConfig, now: TrainConfig, step: int) -> bool:
    """Whether the run `now` is `was` with more steps, and both are alike up to `step` updates.

    Compares the schedule only (n_steps, decay_fraction, warmup_horizon); the caller compares all other settings.
    """
    ends = stable_end(was), stable_end(now)
    if None in ends or now.n_steps <= was.n_steps or now.warmup_horizon not in (None, horizon(was)):
        return False
    return all(step <= end for end in ends if end is not None)


def with_warmup_of(was: TrainConfig, now: TrainConfig) -> TrainConfig:
    """`now` with the warm-up of `was`, in steps, however long `now` is."""
    return dataclasses.replace(now, warmup_horizon=horizon(was))


def horizon(cfg: TrainConfig) -> int:
    """The number of steps that the fractions of the warm-ups refer to."""
    return cfg.warmup_horizon or cfg.n_steps
