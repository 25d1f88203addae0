"""Tags of words and spans of characters; the best tags against an enumeration of all sequences."""

import itertools

import numpy as np
import pytest

from model.data.spans import (
    Span,
    WordSpan,
    are_valid,
    best_tags,
    is_widened,
    labels_of_tags,
    span_probability,
    spans_of_tags,
    tag_names,
    tags_of_spans,
)
from model.data.words import word_spans

NUMBERS = {"loc": 0, "per": 1}
NAMES = tag_names(["loc", "per"])


def tagged(text: str, *spans: Span) -> str:
    return " ".join(NAMES[tag] for tag in tags_of_spans(word_spans(text), spans, NUMBERS))


def test_names_of_tags_lead_back_to_the_labels():
    assert NAMES == ["O", "B-loc", "I-loc", "B-per", "I-per"]
    assert labels_of_tags(NAMES) == ["loc", "per"]
    with pytest.raises(ValueError, match="expected O, and B-label"):
        labels_of_tags(["O", "I-loc", "B-loc"])


def test_the_first_word_of_a_span_has_b_the_others_i():
    text = "Ann of New York City"
    assert tagged(text, Span(0, 3, "per"), Span(7, 20, "loc")) == "B-per O B-loc I-loc I-loc"
    assert tagged("Paris London", Span(0, 5, "loc"), Span(6, 12, "loc")) == "B-loc B-loc"


def test_a_span_within_words_is_widened_to_them():
    words = word_spans("the Londoners")
    assert tagged("the Londoners", Span(4, 10, "loc")) == "O B-loc"
    assert is_widened(words, Span(4, 10, "loc")) and not is_widened(words, Span(4, 13, "loc"))
    assert is_widened(words, Span(3, 13, "loc")), "the space is no word"
    assert is_widened(words, Span(3, 4, "loc")), "nothing but a space has no word at all"


def test_a_word_belongs_to_the_first_of_two_spans():
    assert tagged("NewYork City", Span(0, 3, "loc"), Span(3, 12, "per")) == "B-loc B-per"
    assert tagged("NewYork", Span(0, 3, "loc"), Span(3, 7, "per")) == "B-loc"


def test_random_spans_of_words_come_back_from_their_tags():
    rng = np.random.default_rng(0)
    text = " ".join("abcdefghij")
    words = word_spans(text)
    for _ in range(200):
        borders = sorted(rng.choice(11, 2 * rng.integers(1, 5), replace=False).tolist())
        spans = [
            Span(int(words[a, 0]), int(words[b - 1, 1]), rng.choice(["loc", "per"]))
            for a, b in zip(borders[::2], borders[1::2], strict=True)
        ]
        found = spans_of_tags(tags_of_spans(words, spans, NUMBERS))
        assert [
            Span(int(words[one.first, 0]), int(words[one.last, 1]), ["loc", "per"][one.label]) for one in found
        ] == spans


def test_the_best_tags_are_the_best_of_all_valid_sequences():
    rng = np.random.default_rng(1)
    n_repaired = 0
    for _ in range(60):
        scores_WC = rng.normal(size=(4, 5)) * 2
        valid = [np.array(tags) for tags in itertools.product(range(5), repeat=4) if are_valid(np.array(tags))]
        best = max(valid, key=lambda tags: scores_WC[np.arange(4), tags].sum())
        np.testing.assert_array_equal(best_tags(scores_WC), best)
        n_repaired += not are_valid(scores_WC.argmax(axis=1))
    assert n_repaired > 20
    assert best_tags(np.array([[0.0, -9, 1, -9, -9]])).tolist() == [0], "a text begins with no I"


def test_the_probability_of_a_span_is_that_of_exactly_its_words():
    probabilities_WC = np.array([[0.1, 0.9, 0, 0, 0], [0.2, 0, 0.8, 0, 0], [0.7, 0, 0.3, 0, 0]]) + 1e-12
    scores_WC = np.log(probabilities_WC)
    assert span_probability(scores_WC, WordSpan(0, 0, 0)) == pytest.approx(0.9 * 0.2)
    assert span_probability(scores_WC, WordSpan(0, 1, 0)) == pytest.approx(0.9 * 0.8 * 0.7)
    assert span_probability(scores_WC, WordSpan(0, 2, 0)) == pytest.approx(0.9 * 0.8 * 0.3)
