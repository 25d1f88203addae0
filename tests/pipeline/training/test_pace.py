"""A training that takes years is told at its start, and one that takes hours is not."""

import logging

import pytest

from pipeline.training.pace import paced, warn_of_passes


@pytest.mark.parametrize(
    ("total", "expected"),
    [(999_999_999_999, "the 999,999,999,995 steps that are left take about 63,376 years"), (10_000, "")],
)
def test_pace_of_an_absurd_training_is_told_once(caplog, total, expected):
    """n_steps=999999999999 was accepted by plan and train: no warning, no time left."""
    told, clock = [], iter(range(0, 100, 2))
    with caplog.at_level(logging.WARNING):
        progress = paced(lambda done, total: told.append((done, total)), clock=lambda: float(next(clock)))
        for done in range(1, 11):
            progress(done, total)
    assert told == [(done, total) for done in range(1, 11)]
    assert [expected in message for message in caplog.messages] == [True] * bool(expected)


def test_passes_over_the_data_are_told_when_they_are_absurd(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_passes(12.0, 10**6)
        assert not caplog.messages
        warn_of_passes(8e9, 10**15)
    assert "reads 1,000,000,000,000,000 tokens, its data 8,000,000,000 times over" in caplog.text
