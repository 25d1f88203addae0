"""The best span of a row against a search over all spans, and over several windows of a question."""

import math

import numpy as np
import pytest
import torch

from model.generation.answer_spans import FoundAnswers, best_spans, best_threshold


def by_hand(logits_T2, allowed_T, null, most):
    """(start, end, score), score of no answer, log of the sum over all allowed pairs of start and end."""
    places = [place for place in range(len(allowed_T)) if allowed_T[place]]
    spans = [
        (float(logits_T2[start, 0] + logits_T2[end, 1]), -start, -end)
        for start in places
        for end in places
        if start != null and end != null and start <= end < start + most
    ]
    score, start, end = max(spans, default=(-math.inf, 0, 0))
    total = sum(math.exp(logits_T2[start, 0] + logits_T2[end, 1]) for start in places for end in places)
    return (-start, -end, score), float(logits_T2[null].sum()), math.log(total)


@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("null_is_last", [False, True])
def test_best_spans_equal_a_search_over_all_spans(most, null_is_last):
    rng = np.random.default_rng(most)
    logits_BT2 = torch.from_numpy(rng.normal(size=(20, 9, 2)))
    allowed_BT, nulls_B = torch.zeros(20, 9, dtype=torch.bool), []
    for row in range(20):
        first, n_text = rng.integers(1, 4), rng.integers(1, 5)
        allowed_BT[row, first : first + n_text] = True
        nulls_B.append(int(first + n_text) if null_is_last else 0)
        allowed_BT[row, nulls_B[-1]] = True
    start_B, end_B, score_B, null_B, total_B = best_spans(logits_BT2, allowed_BT, torch.tensor(nulls_B), most)
    for row in range(20):
        best, null, total = by_hand(logits_BT2[row].numpy(), allowed_BT[row], nulls_B[row], most)
        assert (int(start_B[row]), int(end_B[row])) == best[:2]
        assert (float(score_B[row]), float(null_B[row]), float(total_B[row])) == pytest.approx((best[2], null, total))


def test_best_spans_of_equal_scores_take_the_first_and_shortest():
    allowed_BT = torch.ones(1, 5, dtype=torch.bool)
    start_B, end_B, *_ = best_spans(torch.zeros(1, 5, 2), allowed_BT, torch.tensor([0]), 3)
    assert (int(start_B), int(end_B)) == (1, 1)


def test_best_spans_row_without_text_has_none():
    allowed_BT = torch.tensor([[True, False, False]])
    *_, score_B, null_B, _ = best_spans(torch.ones(1, 3, 2), allowed_BT, torch.tensor([0]), 3)
    assert float(score_B) == -math.inf and float(null_B) == 2


@pytest.mark.parametrize("seed", range(10))
def test_best_threshold_gives_the_largest_sum_of_scores(seed):
    rng = np.random.default_rng(seed)
    margins = rng.integers(-3, 4, 12).astype(float)  # equal ones among them
    margins[:seed % 3] = np.inf  # questions on a text of nothing
    answered, unanswered = rng.random(12), rng.integers(0, 2, 12).astype(float)

    def total(threshold):
        return np.where(margins <= threshold, answered, unanswered).sum()

    best = max(total(threshold) for threshold in np.arange(-4.5, 5))
    found = best_threshold(margins, answered, unanswered)
    assert math.isfinite(found) and total(found) == pytest.approx(best)


def test_best_threshold_lies_midway_between_margins():
    assert best_threshold(np.array([-1.0, 3.0]), np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_found_answers_threshold_decides_and_without_one_every_text_is_answered():
    found = FoundAnswers(
        starts_Q=np.array([0, 0, 3]),
        ends_Q=np.array([2, 0, 5]),
        margins_Q=np.array([-1.0, math.inf, 2.0]),
        probabilities_Q=np.zeros(3),
        null_probabilities_Q=np.zeros(3),
        loss=0.0,
    )
    assert found.has_answer(None).tolist() == [True, False, True]
    assert found.has_answer(0.0).tolist() == [True, False, False]
    assert found.has_answer(2.0).tolist() == [True, False, True]
