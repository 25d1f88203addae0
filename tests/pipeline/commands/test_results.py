"""`gristmill results`: a baseline is better than the model, worse, or equal to it."""

import pytest

from pipeline.commands.results import result_lines


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "expected"),
    [
        (0.875, 0.875, True, "0.875 (equal)"),
        (0.87502, 0.87498, True, "0.875 (equal)"),  # printed alike
        (0.875, 0.9, True, "0.900 (better)"),
        (0.875, 0.8, True, "0.800 (worse)"),
        (3.2, 2.9, False, "2.900 (better)"),
        (3.2, 3.5, False, "3.500 (worse)"),
    ],
)
def test_results_standing_of_a_baseline(value, baseline, higher, expected):
    result = {"asset": "moods_evaluation", "metric": "m", "value": value, "low": None, "high": None}
    lines = result_lines([result | {"higher_is_better": higher, "baselines": {"other": baseline}}])
    assert lines[-1].endswith(f"other {expected}")
