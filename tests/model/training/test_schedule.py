"""Schedules beside those of transformers, as tables of values, and their ranges."""

import dataclasses
import math

import pytest
import torch
from transformers import (
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from model.training.config import TrainConfig
from model.training.schedule import (
    cosine,
    is_extension,
    linear,
    lr_factor,
    n_training_rows,
    stable_end,
    warmup_rows,
    warmup_stable_decay,
    with_warmup_of,
)

N_STEPS, N_WARMUP, N_DECAY = 40, 6, 16


def factors_of(make_schedule) -> list[float]:
    """What a scheduler of transformers multiplies the rate by, before each of N_STEPS updates."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make_schedule(optimizer)
    factors = []
    for _ in range(N_STEPS):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_the_one_of_transformers(final):
    theirs = factors_of(
        lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, N_WARMUP, N_STEPS, min_lr_rate=final)
    )
    ours = [cosine(step, N_STEPS, N_WARMUP, final) for step in range(N_STEPS)]
    assert ours[N_WARMUP:] == pytest.approx(theirs[N_WARMUP:])


def test_linear_equals_the_one_of_transformers():
    theirs = factors_of(lambda o: get_linear_schedule_with_warmup(o, N_WARMUP, N_STEPS))
    ours = [linear(step, N_STEPS, N_WARMUP, 0.0) for step in range(N_STEPS)]
    assert ours[N_WARMUP:] == pytest.approx(theirs[N_WARMUP:])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_warmup_stable_decay_equals_the_one_of_transformers(final):
    theirs = factors_of(
        lambda o: get_wsd_schedule(o, N_WARMUP, N_DECAY, N_STEPS, decay_type="linear", min_lr_ratio=final)
    )
    ours = [warmup_stable_decay(step, N_STEPS, N_WARMUP, N_DECAY, final) for step in range(N_STEPS)]
    assert ours[N_WARMUP:] == pytest.approx(theirs[N_WARMUP:])


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_warmup_is_one_step_ahead_of_transformers_so_that_no_update_has_rate_zero(schedule):
    theirs = factors_of(lambda o: get_linear_schedule_with_warmup(o, N_WARMUP, N_STEPS))
    assert theirs[0] == 0.0
    assert [schedule(step, N_STEPS, N_WARMUP, 0.0) for step in range(N_WARMUP)] == pytest.approx(
        theirs[1 : N_WARMUP + 1]
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (5, 1.0), (6, 1.0), (7, 0.775), (8, 0.55), (9, 0.325)],
)
def test_warmup_stable_decay_values(step, expected):
    assert warmup_stable_decay(step, n_steps=10, n_warmup=4, n_decay=4, final=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.5), (1, 1.0), (2, 1.0), (4, 0.7), (6, 0.4), (8, 0.1)])
def test_linear_values(step, expected):
    assert linear(step, n_steps=8, n_warmup=2, final=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.5), (2, 1.0), (6, 0.6), (10, 0.2), (4, 0.8828427), (8, 0.3171573)]
)
def test_cosine_values(step, expected):
    assert cosine(step, n_steps=10, n_warmup=2, final=0.2) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["warmup_stable_decay", "cosine", "linear"])
def test_lr_factor_rises_to_one_then_falls_and_never_leaves_its_range(schedule):
    cfg = TrainConfig(
        n_steps=100, rows=1, seq_len=1, micro_batch=1, schedule=schedule, warmup_fraction=0.1, final_lr_fraction=0.05
    )
    factors = [lr_factor(step, cfg) for step in range(100)]
    assert factors[:10] == sorted(factors[:10]) and factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0.05 < factors[-1] < 0.08


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_lr_factor_of_a_tiny_run_is_never_zero(n_steps):
    cfg = TrainConfig(n_steps=n_steps, rows=1, seq_len=1, micro_batch=1)
    assert all(lr_factor(step, cfg) > 0 for step in range(n_steps))


def test_warmup_rows_double_until_the_batch_is_whole():
    cfg = TrainConfig(n_steps=60, rows=16, seq_len=4, batch_warmup_fraction=0.1)
    assert warmup_rows(cfg) == (2, 2, 4, 4, 8, 8)
    assert n_training_rows(cfg) == 28 + 54 * 16


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0])
def test_warmup_rows_of_small_batches_are_at_least_one_and_never_fall(fraction):
    cfg = TrainConfig(n_steps=30, rows=3, seq_len=4, batch_warmup_fraction=fraction)
    rows = warmup_rows(cfg)
    assert len(rows) == math.ceil(30 * fraction) and all(n >= 1 for n in rows) and list(rows) == sorted(rows)


SHORT = TrainConfig(
    n_steps=40, rows=16, seq_len=4, warmup_fraction=0.1, decay_fraction=0.25, batch_warmup_fraction=0.1
)


def test_extended_run_has_the_rates_and_rows_of_the_short_one_until_that_decays():
    longer = with_warmup_of(SHORT, dataclasses.replace(SHORT, n_steps=80, decay_fraction=0.5))
    end = stable_end(SHORT)
    assert end == 30 and stable_end(longer) == 40
    assert [lr_factor(step, longer) for step in range(end)] == [lr_factor(step, SHORT) for step in range(end)]
    assert warmup_rows(longer) == warmup_rows(SHORT) == (2, 2, 4, 8)
    again = with_warmup_of(longer, dataclasses.replace(longer, n_steps=500))  # an extended run is extended
    assert lr_factor(0, again) == lr_factor(0, SHORT) == 0.25
    assert lr_factor(79, longer) == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        ({"n_steps": 80}, 30, True),
        ({"n_steps": 80}, 31, False),  # the short run decays already
        ({"n_steps": 80, "decay_fraction": 0.7}, 24, True),
        ({"n_steps": 80, "decay_fraction": 0.7}, 25, False),  # the long run would
        ({"n_steps": 80, "warmup_horizon": 40}, 30, True),
        ({"n_steps": 80, "warmup_horizon": 80}, 30, False),
        ({}, 30, False),
        ({"n_steps": 39}, 10, False),
        ({"n_steps": 80, "schedule": "linear"}, 30, False),
    ],
)
def test_is_extension_of_a_checkpoint_in_the_stable_phase_only(change, step, expected):
    assert is_extension(SHORT, dataclasses.replace(SHORT, **change), step) is expected


@pytest.mark.parametrize("change", [{"schedule": "cosine"}, {"warmup_fraction": 0.0, "decay_fraction": 1.0}])
def test_stable_end_of_a_run_without_a_stable_phase_is_none(change):
    assert stable_end(dataclasses.replace(SHORT, **change)) is None
