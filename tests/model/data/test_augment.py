"""Augmentation: what may change in a text, where its spans are afterwards, and what it is drawn from."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.augment import Augmentation, augmented_text, augmented_texts, epoch_seed, generator

WORDS = st.lists(st.text("abcxyzABCqQ19-.'\u00e9\u00df\u0130", min_size=1, max_size=9), min_size=1, max_size=12)
SETTINGS = st.builds(Augmentation, typos=st.floats(0, 1), case=st.floats(0, 1), word_dropout=st.floats(0, 1))
TEXT = "The quick brown fox jumps over the lazy dog near London Bridge"
SPANS = [(TEXT.index("London Bridge"), len(TEXT)), (4, 9)]


def drawn(settings: Augmentation, n: int = 400, text: str = TEXT, spans=()) -> list:
    return [augmented_text(text, spans, np.random.default_rng(i), settings) for i in range(n)]


@given(words=WORDS, settings=SETTINGS, seed=st.integers(0, 9), data=st.data())
def test_spans_stay_within_the_text_in_their_order_and_keep_a_word(words, settings, seed, data):
    text = "  ".join(words)
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4)))
    spans = [span for span in (tuple(borders[:2]), tuple(borders[2:])) if text[slice(*span)].strip()]
    changed, moved = augmented_text(text, spans, np.random.default_rng(seed), settings)
    assert changed.split() and len(moved) == len(spans)
    for start, end in moved:
        assert 0 <= start < end <= len(changed)
        assert changed[start:end] == changed[start:end].strip()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(moved))


@given(words=WORDS)
def test_without_probabilities_nothing_changes(words):
    text = " \t".join(words)
    spans = [(0, len(words[0]))]
    assert augmented_text(text, spans, np.random.default_rng(0), Augmentation()) == (text, spans)


def test_word_dropout_leaves_out_words_at_its_rate_and_changes_no_other():
    lengths = []
    for changed, spans in drawn(Augmentation(word_dropout=0.2), spans=SPANS):
        kept = changed.split()
        rest = iter(TEXT.split())
        assert all(word in rest for word in kept)  # in order
        assert {changed[slice(*span)] for span in spans} <= {"London Bridge", "London", "Bridge", "quick"}
        assert "  " not in changed and changed == changed.strip()
        lengths.append(len(kept))
    free = 12 - 3  # "quick" always stays, and one word of two rarely stays where both would go
    assert np.mean(lengths) == pytest.approx(0.8 * free + 1 + 2 * 0.8 + 0.04, abs=0.15)
    assert all(augmented == TEXT.split()[-1] or len(augmented.split()) == 1
               for augmented, _ in drawn(Augmentation(word_dropout=1.0), n=20))  # fmt: skip


def test_a_typo_is_one_edit_of_a_word_by_a_letter_that_is_near():
    from model.data.augment import NEIGHBOURS

    kinds = set()
    for changed, _ in drawn(Augmentation(typos=1.0), text="drink"):
        if sorted(changed) == sorted("drink"):
            kinds.add("swap" if changed != "drink" else "same")
        elif len(changed) == 4:
            kinds.add("omit")
        elif len(changed) == 6:
            kinds.add("double")
            assert any(changed == "drink"[: i + 1] + "drink"[i:] for i in range(5))
        else:
            ((old, new),) = [pair for pair in zip("drink", changed, strict=True) if len(set(pair)) == 2]
            assert new in NEIGHBOURS[old]
            kinds.add("near")
    assert kinds == {"swap", "omit", "double", "near"}
    share = np.mean([a != b for changed, _ in drawn(Augmentation(typos=0.3))
                     for a, b in zip(TEXT.split(), changed.split(), strict=True)])  # fmt: skip
    assert share == pytest.approx(0.3, abs=0.03)


def test_case_is_lower_upper_or_initials_and_keeps_the_letters():
    found = {changed for changed, _ in drawn(Augmentation(case=0.5))}
    assert found == {TEXT, TEXT.lower(), TEXT.upper(), TEXT.title()}
    (changed, ((start, end),)) = augmented_text(
        "stra\u00dfe x", [(7, 8)], np.random.default_rng(5), Augmentation(case=1.0)
    )
    assert changed[start:end].lower() == "x"


def test_a_span_of_one_letter_within_a_word_never_vanishes():
    for changed, ((start, end),) in drawn(Augmentation(typos=1.0), text="xay", spans=[(1, 2)]):
        assert end - start in (1, 2) and changed[start:end]


def test_texts_are_drawn_from_seed_epoch_and_id_and_from_nothing_else():
    settings = Augmentation(typos=0.5, case=0.5, word_dropout=0.3)
    ids, texts = [f"id{i}" for i in range(20)], [TEXT] * 20
    first = augmented_texts(ids, texts, settings, epoch_seed(0, 1))
    assert augmented_texts(ids[::-1], texts, settings, epoch_seed(0, 1)) == first[::-1]
    assert len(set(first)) == 20
    assert augmented_texts(ids, texts, settings, epoch_seed(0, 2)) != first
    assert augmented_texts(ids, texts, settings, epoch_seed(1, 1)) != first
    assert generator(3, "a").random() == generator(3, "a").random() != generator(3, "b").random()


@pytest.mark.parametrize("settings", [{"typos": -0.1}, {"case": 1.5}, {"word_dropout": float("nan")}])
def test_a_probability_outside_0_to_1_is_named(settings):
    with pytest.raises(ValueError, match=rf"augment_{next(iter(settings))}=.* must be from 0 to 1"):
        Augmentation(**settings)


def test_a_span_without_a_word_is_refused():
    with pytest.raises(ValueError, match="the span from 1 to 2 holds no word"):
        augmented_text("a b", [(1, 2)], np.random.default_rng(0), Augmentation(case=1.0))
