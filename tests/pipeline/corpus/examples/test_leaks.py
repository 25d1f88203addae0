"""Runs of words that examples share with documents, against plain search."""

from pipeline.corpus.examples.leaks import occurring
from tests.pipeline.corpus.examples.test_near_texts import random_texts


def test_occurring_a_run_of_eight_words_anywhere_is_found():
    headline = "one two three four five six seven eight nine ten"
    document = "before it: Two, three four FIVE\nsix seven eight nine - after it"
    assert occurring(["nothing of the kind is here", headline], ["unlike", document]) == [1]


def test_occurring_seven_words_of_a_longer_example_are_not_enough():
    assert occurring(["a b c d e f g h i"], ["a b c d e f g x h i", "x b c d e f g h x"]) == []


def test_occurring_short_example_must_occur_whole():
    assert occurring(["b c d e", "b c d e f", "b c"], ["a b c d e"]) == [0]


def test_occurring_random_runs_equal_plain_search():
    documents = random_texts(30, seed=3)
    examples = [" ".join(text.split()[:5]) for text in random_texts(200, seed=4) if len(text.split()) >= 5]
    slow = [i for i, text in enumerate(examples) if any(f" {text} " in f" {document} " for document in documents)]
    planted = [*examples, " ".join(documents[0].split()[-6:])]
    assert occurring(planted, documents) == [*slow, len(examples)]
