"""A model beside its baselines: on the same examples, also where one answered only some of them."""

import json
import math

import numpy as np
import pytest

from pipeline.evaluation import laws
from pipeline.evaluation.comparisons import (
    compared_results,
    comparison_table,
    p_text,
    results_table,
    standing,
)
from pipeline.evaluation.intervals import Counted, mcnemar, quotient, rate_of
from pipeline.evaluation.task import MODEL, Judged


def counted(examples, answers):
    """Accuracy; the mean surprise, which only some can answer; and a metric that nobody has a value of."""
    right = [one["label"] == other["label"] for one, other in zip(examples, answers, strict=True)]
    found = {"accuracy": rate_of(right), "nothing": Counted(np.zeros((len(right), 2)), quotient)}
    if "probability" in answers[0]:
        nats = [-math.log(answer["probability"]) for answer in answers]
        found["surprise"] = Counted(np.stack([nats, np.ones(len(nats))], axis=1), quotient)
    return found


@pytest.fixture
def judged() -> Judged:
    examples = [{"text": str(i), "label": "ab"[i % 2]} for i in range(60)]
    model = [{"label": "b" if i == 0 else "ab"[i % 2], "probability": 0.9} for i in range(60)]
    other = [{"label": "ab"[i % 2] if i < 50 else "?", "probability": 0.5 + i / 1000} for i in range(60)]
    prompted = [{"label": "a"} for _ in range(20)]
    rows = {"prompting": np.arange(20) * 3}
    answers = {MODEL: model, "random_init": other, "majority": [{"label": "a"}] * 60, "prompting": prompted}
    return Judged({}, examples, answers, rows=rows)


@pytest.fixture
def results(judged) -> dict:
    return {one["metric"]: one for one in compared_results(judged, counted, 0, lower_is_better=("surprise",))}


def test_results_have_every_baseline_with_its_difference(results):
    accuracy = results["accuracy"]
    assert accuracy["value"] == pytest.approx(59 / 60) and accuracy["higher_is_better"]
    assert accuracy["baselines"]["majority"] == 0.5
    compared = accuracy["comparisons"]["random_init"]
    assert compared["difference"] == pytest.approx(59 / 60 - 50 / 60) and compared["p_value"] == mcnemar(10, 1)
    assert compared["low"] < compared["difference"] < compared["high"]
    assert json.loads(json.dumps(accuracy, allow_nan=False)) == accuracy


def test_results_of_a_metric_that_a_baseline_does_not_answer_leave_it_out(results):
    assert set(results) == {"accuracy", "surprise"}  # a metric without a value is no result
    assert set(results["surprise"]["baselines"]) == set(results["surprise"]["comparisons"]) == {"random_init"}
    assert not results["surprise"]["higher_is_better"]


def test_results_of_a_baseline_on_some_examples_compare_both_on_those(results, judged):
    compared = results["accuracy"]["comparisons"]["prompting"]
    places = judged.rows["prompting"]
    ours = np.mean([judged.model[i]["label"] == judged.examples[i]["label"] for i in places])
    theirs = np.mean([judged.examples[i]["label"] == "a" for i in places])
    assert compared["n_rows"] == 20 and compared["difference"] == pytest.approx(ours - theirs)
    assert results["accuracy"]["baselines"]["prompting"] == pytest.approx(theirs)


def test_tables_have_a_row_per_metric_and_per_comparison(results):
    table = results_table(list(results.values()))
    assert len(table.splitlines()) == 4 and "| 0.5000 |" in table.splitlines()[2]
    assert table.splitlines()[3].endswith("- | - |")  # surprise of those that have no probability
    lines = comparison_table(list(results.values())).splitlines()
    rows = [line for line in lines if line.startswith(("| accuracy", "| surprise"))]
    assert len(rows) == 4 and rows[0].endswith("| better | 60 |") and rows[2].endswith("| 20 |")
    assert comparison_table([results["accuracy"] | {"comparisons": {}}]) == ""


def test_standing_goes_by_the_p_value_and_by_what_is_better(results):
    assert standing(results["accuracy"], "majority") == "better"
    assert standing(results["surprise"], "random_init") == "better"  # less of it
    turned = results["surprise"] | {"higher_is_better": True}
    assert standing(turned, "random_init") == "worse"
    unsure = {"comparisons": {"x": {"difference": 0.1, "p_value": 0.3}}, "higher_is_better": True}
    assert standing(unsure, "x") == "not told apart"
    assert [p_text(p) for p in (0.0004, 0.0312, 1.0)] == ["< 0.001", "0.031", "1.000"]


def test_check_that_a_baseline_is_beaten_has_the_p_value(results):
    verdict = laws.beats_baseline(results["accuracy"], "moods", "random_init")
    assert verdict.passed and verdict.details["p_value"] == mcnemar(10, 1)
    assert verdict.rule == "accuracy > limit (p = 0.012)"
    lucky = results["accuracy"] | {"comparisons": {"random_init": {"difference": 0.1, "p_value": 0.4}}}
    verdict = laws.beats_baseline(lucky, "moods", "random_init")
    assert verdict.passed and "(p = 0.400, which may be luck)" in verdict.sentence()
