"""What counts as a spike: examples, and laws of the rule."""

import random

import numpy as np
import pytest
import torch

from model.training.spikes import (
    MIN_STEPS,
    SPIKE,
    WINDOW,
    deviations_above,
    history_on_device,
    is_spike_on_device,
    loss_spike_of,
    spike_of,
    with_step,
    with_step_on_device,
)


def normal(n: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(3.0, 0.1) for _ in range(n)]


def test_deviations_of_normal_values_are_standard_deviations():
    history = np.random.default_rng(0).normal(3.0, 0.1, 20_000).tolist()
    assert deviations_above(history, 3.5) == pytest.approx(5.0, rel=0.02)


def test_deviations_are_unmoved_by_spikes_in_the_history():
    history = normal(100)
    spoilt = [*history[:-5], *[1000.0] * 5]
    assert deviations_above(spoilt, 4.0) == pytest.approx(deviations_above(history, 4.0), rel=0.2)


def test_deviations_without_enough_history_are_zero():
    assert deviations_above(normal(MIN_STEPS - 1), 1e9) == 0.0 < SPIKE < deviations_above(normal(MIN_STEPS), 1e9)


def test_deviations_below_the_median_are_negative():
    assert deviations_above(normal(100), 0.0) < 0


def test_deviations_from_a_constant_history_count_a_ripple_as_nothing():
    assert deviations_above([2.0] * 50, 2.001) < SPIKE < deviations_above([2.0] * 50, 2.1)


def test_spike_is_seen_in_the_gradient_alone():
    history = list(zip(normal(100), normal(100, seed=1), strict=True))
    assert spike_of(history, 3.0, 30.0) > SPIKE > spike_of(history, 3.0, 3.0)
    assert spike_of([], 3.0, 30.0) == 0.0


def test_history_keeps_the_last_steps_and_a_new_level_becomes_normal():
    history = list(zip(normal(WINDOW), normal(WINDOW), strict=True))
    for _ in range(WINDOW):
        history = with_step(history, 9.0, 9.0)
    assert len(history) == WINDOW and spike_of(history, 9.0, 9.0) < 1


def test_spike_is_not_reported_where_the_loss_is_small():
    """A loss of 0.17 after losses near 0 was a spike of 170 deviations, in a fine-tuning where nothing was wrong."""
    history = [(0.001 + loss / 1000, 1.0) for loss in normal(100)]
    assert loss_spike_of(history, 0.17) > SPIKE
    assert loss_spike_of(history, 0.17, min_rise=1.0) == 0.0
    assert loss_spike_of(history, 3.0, min_rise=1.0) > SPIKE
    assert loss_spike_of([], 3.0, min_rise=1.0) == 0.0


@pytest.mark.parametrize("n_before", [0, MIN_STEPS - 1, MIN_STEPS, 101, WINDOW])
def test_device_decides_as_the_host_does_step_by_step(n_before):
    """Even and odd numbers of steps, a full window that drops the oldest, spikes and steps that are not counted."""
    draw = random.Random(n_before)
    history = list(zip(normal(n_before, seed=1), normal(n_before, seed=2), strict=True))
    history_2W = history_on_device(history, torch.device("cpu"))
    decisions = []
    for step in range(60):
        height = 1.0 if step % 3 else draw.choice((1.0, 1.1, 1.2, 1.3))
        loss, norm = (float(torch.tensor(draw.gauss(3.0, 0.1) * height)) for _ in range(2))
        values_2 = torch.tensor([loss, norm])
        decisions.append(bool(is_spike_on_device(history_2W, values_2, SPIKE)))
        assert decisions[-1] == (spike_of(history, loss, norm) > SPIKE)
        is_counted = step % 10 != 0
        history = with_step(history, loss, norm) if is_counted else history
        history_2W = with_step_on_device(history_2W, values_2, torch.tensor(is_counted))
    assert n_before < MIN_STEPS or 5 < sum(decisions) < 30
