"""When to answer: numbers of what was found, weights fitted on questions with and without their document."""

import json

import numpy as np
import pytest

from model.retrieval.answerability import (
    NUMBERS,
    Answerability,
    answerability_in,
    examples_of,
    fitted,
    numbers_of,
    threshold_of,
)
from tests.model.retrieval.collections_of_texts import MILL, made

QUESTIONS = {
    "What do the stones weigh?": "stones",
    "When is a belt replaced?": "belts",
    "How many tons of corn does it grind?": "corn",
    "Is the museum closed on Mondays?": "opening",
    "What wheel does the river turn?": "river",
}


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return made(tmp_path_factory.mktemp("mill"), MILL)


def test_numbers_of_a_question_fall_without_its_document(retriever):
    numbers_NF, is_answerable_N = examples_of(retriever, list(QUESTIONS), list(QUESTIONS.values()))
    assert numbers_NF.shape == (10, len(NUMBERS)) and is_answerable_N.tolist() == [True] * 5 + [False] * 5
    named = dict(zip(NUMBERS, numbers_NF.T, strict=True))
    for name in ("cosine", "words", "bm25"):
        assert (named[name][:5] > named[name][5:]).all()
        assert (named[name] >= 0).all() and (named[name] <= 1).all()


def test_examples_without_a_document_are_what_a_search_without_it_finds(retriever):
    numbers_NF, _ = examples_of(retriever, list(QUESTIONS), list(QUESTIONS.values()))
    for row, (question, document) in zip(numbers_NF[5:], QUESTIONS.items(), strict=True):
        left = retriever.without([document])
        np.testing.assert_allclose(row, numbers_of(left, question, left.search([question], 50)[0]), rtol=1e-5)


def test_nothing_found_gives_zeros(retriever):
    assert not numbers_of(retriever, "mill", []).any()


def test_fitted_weights_refuse_questions_whose_document_is_missing(retriever):
    numbers_NF, is_answerable_N = examples_of(retriever, list(QUESTIONS), list(QUESTIONS.values()))
    judge = fitted(numbers_NF, is_answerable_N)
    answers = np.array([judge.score(row) >= judge.threshold for row in numbers_NF])
    np.testing.assert_array_equal(answers, is_answerable_N)


def test_fitted_weights_are_those_of_the_least_loss():
    """Against plain gradient descent on the same penalised loss."""
    draw = np.random.default_rng(0)
    numbers_NF = draw.normal(size=(80, len(NUMBERS))) * [1, 2, 3, 1, 1, 0] + 5
    is_answerable_N = numbers_NF[:, 0] - numbers_NF[:, 1] + draw.normal(size=80) > 0
    judge = fitted(numbers_NF, is_answerable_N)
    scale_F = np.where(numbers_NF.std(axis=0) > 0, numbers_NF.std(axis=0), 1)
    inputs_NF = np.column_stack([(numbers_NF - numbers_NF.mean(axis=0)) / scale_F, np.ones(80)])
    weights_F, penalty_F = np.zeros(len(NUMBERS) + 1), np.array([0.1] * len(NUMBERS) + [1e-6])
    for _ in range(5000):
        wrong_N = 1 / (1 + np.exp(-inputs_NF @ weights_F)) - is_answerable_N
        weights_F -= 0.02 * (inputs_NF.T @ wrong_N + penalty_F * weights_F)
    expected = 1 / (1 + np.exp(-inputs_NF @ weights_F))
    np.testing.assert_allclose([judge.score(row) for row in numbers_NF], expected, atol=1e-4)


def test_thresholds_refuse_at_most_the_share_that_is_allowed():
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.5, 0.1, 0.1])
    is_answerable = np.array([True] * 4 + [False] * 4)
    assert threshold_of(scores, is_answerable, 0.0) == pytest.approx(0.15)
    assert threshold_of(scores, is_answerable, 0.25) == pytest.approx(0.65)


def test_questions_of_one_kind_are_refused():
    with pytest.raises(ValueError, match="answerable and unanswerable questions are needed"):
        fitted(np.ones((3, len(NUMBERS))), np.array([True] * 3))


def test_descriptions_come_back_as_they_were_written():
    judge = Answerability((1.0, 2.0, -3.0, 0.5, 0.0, 1e-3), -1.5, 0.25)
    assert answerability_in(json.loads(json.dumps(judge.described()))) == judge


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 2},
        {"bias": "1"},
        {"weights": {}},
        {"weights": None},
        {"bias": float("nan")},
        {"threshold": True},
    ],
)
def test_descriptions_that_are_none_are_refused(change):
    described = Answerability((0.0,) * len(NUMBERS), 0.0, 0.5).described()
    with pytest.raises(ValueError, match="does not say when to answer"):
        answerability_in(described | change)
    with pytest.raises(ValueError, match="does not say when to answer"):
        answerability_in([])
