"""Near duplicates against comparing everything with everything, and runs of words against plain search."""

import random

import pytest

from pipeline.corpus.examples.leaks import duplicate_groups, leaked, letters, normalised, occurring

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]


def random_texts(n_texts: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(n_texts)]


def jaccard(a: str, b: str) -> float:
    one, two = set(letters(a)), set(letters(b))
    return len(one & two) / len(one | two)


def slow_groups(texts: list[str], similarity: float) -> list[int]:
    groups = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if jaccard(texts[i], texts[j]) >= similarity and groups[i] != groups[j]:
                old, new = max(groups[i], groups[j]), min(groups[i], groups[j])
                groups = [new if group == old else group for group in groups]
    return groups


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.8, 1.0])
def test_duplicate_groups_random_texts_equal_slow_comparison(similarity):
    texts = random_texts(150)
    assert duplicate_groups(texts, similarity) == slow_groups(texts, similarity)


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.8])
def test_leaked_random_texts_equal_slow_comparison(similarity):
    train, test = random_texts(120), random_texts(40, seed=1)
    slow = [i for i, text in enumerate(test) if any(jaccard(text, other) >= similarity for other in train)]
    assert leaked(train, test, similarity) == slow
    assert slow  # the texts are such that there is something to find


def test_leaked_nothing_to_compare_finds_nothing():
    assert leaked([], ["a text"]) == []
    assert leaked(["a text"], []) == []
    assert leaked(["one two"], ["three four"]) == []


@pytest.mark.parametrize(
    "other",
    [
        "9 Delicious recipes!",
        "10 delicious, recipes",
        "recipes: delicious",
        "  DELICIOUS recipes\n",
        "delicious recipes 9",
    ],
)
def test_duplicate_groups_case_punctuation_digits_and_order_do_not_count(other):
    assert duplicate_groups(["unlike", "9 delicious recipes", other]) == [0, 1, 1]


def test_duplicate_groups_numbers_alone_stay_apart():
    assert duplicate_groups(["12", "13", "12"]) == [0, 1, 0]


def test_normalised_unicode_forms_are_equal():
    assert normalised("Cafe\u0301  \ufb01ne") == normalised("CAF\u00c9 fine")


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
