"""Schedules as value tables."""

import pytest

from model.config import TrainConfig
from model.schedule import cosine, linear, lr_factor, warmup_stable_decay


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
