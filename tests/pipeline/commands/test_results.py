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
    lines = result_lines([result | {"higher_is_better": higher, "baselines": {"other": baseline}, "note": ""}])
    assert lines[-1].endswith(f"other {expected}")


def test_results_baseline_within_the_interval_is_neither_better_nor_worse():
    """A baseline that the interval of the model contains was "(better)"."""
    result = {"asset": "moods_evaluation", "metric": "m", "value": 0.85, "low": 0.837, "high": 0.862, "note": ""}
    baselines = {"one": 0.86, "two": 0.84, "three": 0.863, "four": 0.85}
    (line,) = result_lines([result | {"higher_is_better": True, "baselines": baselines}])[2:]
    assert "one 0.860 (not told apart), two 0.840 (not told apart), three 0.863 (better), four 0.850 (equal)" in line


def test_results_note_is_below_the_table():
    """Macro-F1 did not say over which labels it is."""
    result = {"asset": "moods_evaluation", "metric": "macro_f1", "value": 1.0, "low": 0.6, "high": 1.0}
    noted = result | {"higher_is_better": True, "baselines": {}, "note": "over 2 of 3 labels; no example has sad"}
    assert result_lines([noted])[-1] == "moods macro_f1: over 2 of 3 labels; no example has sad"


def test_results_baseline_that_was_compared_is_told_apart_by_the_p_value():
    """Within the interval of the model a baseline was "not told apart", though on the same examples it is worse."""
    result = {"asset": "moods_evaluation", "metric": "m", "value": 0.85, "low": 0.837, "high": 0.862, "n_rows": 900}
    values = {"tfidf": (0.84, 0.01, 0.003), "other": (0.83, 0.02, 0.2), "prompting": (0.9, -0.05, 0.0001)}
    result["baselines"] = {name: value for name, (value, _, _) in values.items()}
    result["comparisons"] = {
        name: {"difference": difference, "p_value": p, "n_rows": 200 if name == "prompting" else 900}
        for name, (_, difference, p) in values.items()
    }
    (line,) = result_lines([result | {"higher_is_better": True, "note": ""}])[2:]
    for part in (
        "tfidf 0.840 (worse, p = 0.003)",
        "other 0.830 (not told apart, p = 0.200)",
        "prompting 0.900 (better, p < 0.001, on 200 examples)",
    ):
        assert part in line


def test_results_show_the_metrics_that_decide_and_name_the_way_to_the_others():
    """Eight metrics of a task beside four baselines hid the two that matter."""
    result = {"asset": "moods_evaluation", "value": 0.85, "low": None, "high": None, "higher_is_better": True}
    result["note"] = ""
    results = [result | {"metric": name, "main": name != "mcc", "baselines": {}} for name in ("macro_f1", "mcc")]
    lines = result_lines(results)
    assert "macro_f1" in lines[2] and not any("mcc" in line for line in lines) and "--json" in lines[-1]
    assert "--json" not in result_lines(results[:1])[-1]
