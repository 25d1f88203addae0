"""The best of several validations, and when they end a run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.selection import Selection

VALUES = st.lists(st.floats(allow_infinity=False, width=16), max_size=12)
HIGHER = Selection(metric="f1", higher_is_better=True, keeps_best=True, patience=2)


def numbered(values) -> list[tuple[int, float]]:
    return [(5 * (i + 1), value) for i, value in enumerate(values)]


@given(values=VALUES, higher=st.booleans())
def test_best_is_the_first_of_the_best_finite_values(values, higher):
    best = Selection(metric="x", higher_is_better=higher).best(numbered(values))
    finite = [value for value in values if not math.isnan(value)]
    if not finite:
        assert best is None
        return
    extreme = max(finite) if higher else min(finite)
    assert best == (5 * (values.index(extreme) + 1), extreme)


@pytest.mark.parametrize(
    ("values", "is_over"),
    [
        ([], False),
        ([0.1], False),
        ([0.3, 0.2], False),
        ([0.3, 0.2, 0.3], True),  # as good is no improvement
        ([0.3, 0.2, 0.31], False),
        ([0.3, 0.2, 0.31, 0.31, 0.3], True),
        ([math.nan, math.nan], True),
        ([math.nan, 0.1, math.nan], False),
    ],
)
def test_a_run_ends_after_patience_validations_without_improvement(values, is_over):
    assert HIGHER.is_over(numbered(values)) is is_over
    assert not Selection(metric="f1").is_over(numbered(values))


@given(values=VALUES, patience=st.integers(1, 4))
def test_a_run_that_is_over_ended_patience_validations_after_its_best(values, patience):
    selection = Selection(metric="x", patience=patience)
    ends = [n for n in range(len(values) + 1) if selection.is_over(numbered(values[:n]))]
    if ends:
        best = selection.best(numbered(values[: ends[0]]))
        assert ends[0] == patience + (0 if best is None else best[0] // 5)
