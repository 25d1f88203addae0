"""Metrics of preferences by hand, and the warnings when chosen answers became less likely."""

import numpy as np
import pytest

from pipeline.evaluation.comparisons import MODEL
from pipeline.evaluation.laws import keeps_chosen
from pipeline.evaluation.preference_metrics import METRICS, REFERENCE, answers_by_length, answers_of
from pipeline.evaluation.preference_results import preference_report, results_of
from pipeline.evaluation.task import Judged

BEFORE = np.array([[-10.0, -8.0], [-10.0, -12.0], [-20.0, -20.0], [-8.0, -6.0]])
AFTER = np.array([[-9.0, -12.0], [-14.0, -20.0], [-22.0, -21.0], [-9.0, -8.0]])
TOKENS = np.array([[5, 4], [5, 6], [10, 10], [4, 3]])


def judged(after: np.ndarray = AFTER) -> Judged:
    answers = {MODEL: answers_of(after, TOKENS, BEFORE), REFERENCE: answers_of(BEFORE, TOKENS, None)}
    return Judged({}, [{}] * len(TOKENS), answers | answers_by_length(TOKENS))


def test_metrics_are_those_computed_by_hand():
    found = {one["metric"]: one for one in results_of(judged(), seed=0)}
    gains = [(1, -4), (-4, -8), (-2, -1), (-1, -2)]  # of chosen and rejected answer
    assert found["preference_accuracy"]["value"] == np.mean([chosen > rejected for chosen, rejected in gains]) == 0.75
    # the base prefers what it gives more probability; of equal values it prefers none, and so do lengths
    assert found["preference_accuracy"]["baselines"] == {"base": 0.25, "longer_answer": 0.5, "shorter_answer": 0.25}
    assert found["likelihood_accuracy"]["value"] == 0.5
    assert found["margin"]["value"] == pytest.approx(np.mean([c - r for c, r in gains]))
    assert found["chosen_log_probability"]["value"] == pytest.approx(-54 / 4)
    assert found["chosen_log_probability_per_token"]["value"] == pytest.approx(-54 / 24)
    assert found["rejected_log_probability_per_token"]["baselines"] == {"base": -46 / 23}
    assert found["chosen_change"]["value"] == pytest.approx(54 / 48 - 1)
    assert not found["chosen_change"]["higher_is_better"]
    assert set(found) < set(METRICS)


def test_less_likely_chosen_answers_are_a_warning_in_results_report_and_check():
    worse, better = judged(), judged(BEFORE + 1.0)
    for one, is_warned in ((worse, True), (better, False)):
        results = {result["metric"]: result for result in results_of(one, seed=0)}
        assert ("became less likely" in results["chosen_change"]["note"]) is is_warned
        assert ("became less likely" in preference_report(one)) is is_warned
        assert keeps_chosen(results, limit=0.1).passed is not is_warned
    verdict = keeps_chosen({"chosen_change": {"value": 0.125}}, limit=0.1)
    assert "fell by 12.5% (limit 10%)" in verdict.failure
    assert keeps_chosen({"chosen_change": {"value": 0.05}}, limit=0.1).passed
