"""Exact match and F1 against a second implementation of SQuAD's definition, written from the paper."""

import random

import numpy as np
import pytest

from pipeline.evaluation.answer_metrics import answer_scores, normalised_answer, scores_of

WORDS = ["the", "The", "a", "an", "cat", "Cat,", "dog", "dogs", "another", "U.S.", "U.S", "--", "1,000", "'s", "thé"]


def plain_words(text):
    """Words of a text without case, articles and punctuation, one character at a time."""
    signs = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    words = "".join(sign for sign in text.lower() if sign not in signs).split()
    return [word for word in words if word not in ("a", "an", "the")]


def slow_f1(answered, expected):
    answered, rest, n_same = plain_words(answered), plain_words(expected), 0
    if not answered or not rest:
        return float(answered == rest)
    n_expected = len(rest)
    for word in answered:
        if word in rest:
            rest.remove(word)
            n_same += 1
    if n_same == 0:
        return 0.0
    precision, recall = n_same / len(answered), n_same / n_expected
    return 2 * precision * recall / (precision + recall)


def test_answer_scores_equal_a_second_implementation_on_random_answers():
    rng = random.Random(0)
    for _ in range(2000):
        answered = " ".join(rng.choices(WORDS, k=rng.randint(0, 4)))
        expected = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        right = [one for one in expected if plain_words(one)] or [""]
        exact, f1 = answer_scores(answered, expected)
        assert exact == max(plain_words(answered) == plain_words(one) for one in right)
        assert f1 == pytest.approx(max(slow_f1(answered, one) for one in right))


@pytest.mark.parametrize(
    ("answered", "expected", "exact", "f1"),
    [
        ("The Eiffel Tower", ["eiffel tower."], 1, 1),
        ("in the Eiffel Tower", ["Eiffel Tower", "the tower"], 0, 0.8),
        ("", [], 1, 1),  # rightly no answer
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["Paris"], 0, 0),
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it is in both
    ],
)
def test_answer_scores_known_cases(answered, expected, exact, f1):
    assert answer_scores(answered, expected) == pytest.approx((exact, f1))


def test_normalised_answer_joins_what_punctuation_divided_and_keeps_words_that_hold_an_article():
    assert normalised_answer("  The U.S.-led  theatre,\na  band! ") == "usled theatre band"


def test_scores_of_questions_are_rows():
    scores = scores_of(["Paris", ""], [["Rome", "Paris"], ["Rome"]])
    np.testing.assert_array_equal(scores, [[1, 1], [0, 0]])
    assert scores_of([], []).shape == (0, 2)
