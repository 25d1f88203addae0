"""Repetition: equal to the definition, written out word by word, on any text."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.signals.repetition import DUPLICATE, TOP, repetition_signals
from pipeline.corpus.words import words_of

# few words, so that every n repeats in many ways
TEXTS = st.lists(st.sampled_from(["a", "mill", "b.", "(x)", "don't", "\n", "\n\n", "a-b"]), max_size=60).map(" ".join)


def words(text: str) -> list[str]:
    """Each word of `text` as a string of its own, by what `words_of` says of ids and chunks."""
    found = words_of(text.split())
    return [f"{number}:{'x' * length}" for number, length in zip(found.ids, found.lengths, strict=True)]


def by_definition(text: str) -> dict[str, float]:
    """The loops of the definition: slow, and plain to see."""
    split, n_characters = words(text), max(1, len(text))
    signals = {}
    for n in TOP:
        grams = Counter(tuple(split[i : i + n]) for i in range(len(split) - n + 1))
        signals[f"top_{n}_gram"] = 0.0
        if grams:
            gram, count = grams.most_common(1)[0]
            signals[f"top_{n}_gram"] = (sum(map(characters, gram)) + n - 1) * count / n_characters
    for n in DUPLICATE:
        met, repeated, i = set(), 0, 0
        while i + n <= len(split):
            gram = tuple(split[i : i + n])
            if gram in met:
                repeated += sum(map(characters, gram))
                i += n
            else:
                met.add(gram)
                i += 1
        signals[f"duplicate_{n}_gram"] = repeated / n_characters
    return signals


def characters(word: str) -> int:
    return len(word.partition(":")[2])


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_repetition_of_n_grams_equals_the_definition(text):
    measured = repetition_signals(text, words_of(text.split()))
    assert {name: measured[name] for name in by_definition(text)} == pytest.approx(by_definition(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, 0, 0)),
        ("one\ntwo", (0, 0, 0, 0)),
        ("one\none\ntwo\none", (0.5, 6 / 15, 0, 0)),
        ("one\n\none\n\n\ntwo", (1 / 3, 3 / 14, 1 / 3, 3 / 14)),
        ("one two\nx\n\none two\nx", (0.5, 8 / 20, 0.5, 9 / 20)),
        ("\none\none\n", (0.5, 3 / 9, 0, 0)),  # the empty ends of a text are lines, and equal
    ],
)
def test_repetition_of_lines_and_paragraphs(text, expected):
    signals = repetition_signals(text, words_of(text.split()))
    names = ("line_fraction", "line_characters", "paragraph_fraction", "paragraph_characters")
    assert tuple(signals[f"duplicate_{name}"] for name in names) == pytest.approx(expected)


def test_repetition_steps_over_a_repeated_n_gram_as_a_whole():
    text = "a b c d e a b c d e f"
    signals = repetition_signals(text, words_of(text.split()))
    assert signals["duplicate_5_gram"] == 5 / 21  # and not `b c d e f`, which lies in it
    assert signals["duplicate_6_gram"] == 0


def test_repetition_of_equally_common_n_grams_takes_the_first():
    text = "of a mill and to a mill"
    assert repetition_signals(text, words_of(text.split()))["top_2_gram"] == len("a mill") * 2 / len(text)
    text = "the mill turns"
    assert repetition_signals(text, words_of(text.split()))["top_2_gram"] == len("the mill") / len(text)
