"""Near duplicates against comparing everything with everything, and what comparing many texts costs."""

import random
import tracemalloc

import pytest

from pipeline.corpus.examples import near_texts
from pipeline.corpus.examples.near_texts import duplicate_groups, leaked, letters, normalised

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


@pytest.mark.parametrize("pairs_at_once", [40, 1000])
def test_near_texts_blocks_of_any_size_give_the_same(monkeypatch, pairs_at_once):
    texts = random_texts(150)
    expected = duplicate_groups(texts, 0.7), leaked(texts[:100], texts[100:], 0.7)
    monkeypatch.setattr(near_texts, "PAIRS_AT_ONCE", pairs_at_once)
    assert (duplicate_groups(texts, 0.7), leaked(texts[:100], texts[100:], 0.7)) == expected


def test_duplicate_groups_template_with_frequent_words_is_one_group(monkeypatch):
    """Rows of one template share all their words but one or two: all pairs of them would be too many."""
    monkeypatch.setattr(near_texts, "MOST_PAIRS", 1000)
    names = ["".join(random.Random(i).choices("abcdef", k=7)) for i in range(300)]
    texts = [
        f"we thank you for the call of {names[i]} about the old mill and its wheel near the river by {names[i // 3]}"
        for i in range(300)
    ]
    assert set(duplicate_groups(texts)) == {0}


def test_leaked_memory_does_not_grow_with_all_pairs_that_share_a_word():
    """512 held-out rows were multiplied with all training rows: 25 s and 1.3 GB for 100,000 rows."""
    rng = random.Random(0)
    texts = [
        f"the mill of {rng.randrange(10**9)} " + " ".join(rng.choices("abcdefghijklmnop", k=4)) for _ in range(6000)
    ]
    texts = ["".join(chr(97 + int(sign)) if sign.isdigit() else sign for sign in text) for text in texts]
    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(near_texts, "PAIRS_AT_ONCE", 20_000)
            assert leaked(texts[:5000], texts[5000:]) == []
        assert tracemalloc.get_traced_memory()[1] < 30e6  # all pairs of 512 rows take over 60 MB
    finally:
        tracemalloc.stop()


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
    assert leaked([], []) == [] == duplicate_groups([])


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
