"""Laws of windows in which words are tagged: every word once, supervised as it was tagged."""

import numpy as np
import pytest

from model.data.batch_layout import IGNORE_INDEX
from model.data.tagged_texts import LABELS, supervised, supervised_windows, text_windows
from model.data.words import word_spans
from model.hf.tokenizer_import import import_tokenizer
from tests.model.hf.tokenizers_of_others import OTHERS, mixed_texts, save


@pytest.fixture(scope="module", params=OTHERS)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return import_tokenizer(save(request.param, folder / "source"), folder / "out", vocab_size=1200)


def texts_of(n: int) -> list[str]:
    return [text for text in mixed_texts(n, seed=1) if text.strip()]


def test_every_word_is_read_once_whatever_the_length_of_a_window(tokenizer):
    texts = texts_of(20)
    (whole, *_), words = zip(*[(one, one.words_W2) for one in text_windows(tokenizer, texts, 10**6)], strict=True)
    assert len(whole.windows) == 1
    for most in (12, 40):
        for text, found, words_W2 in zip(texts, text_windows(tokenizer, texts, most), words, strict=True):
            np.testing.assert_array_equal(found.words_W2, words_W2)
            assert all(len(window.tokens) <= most for window in found.windows)
            (pieces,) = tokenizer.encode_offsets([text])
            known = {tuple(pair) for pair in word_spans(text).tolist()}
            assert {tuple(pair) for pair in words_W2.tolist()} <= known
            ids = [int(window.tokens[place]) for window in found.windows for place in window.places]
            assert len(ids) == len(words_W2)
            for token, (start, end) in zip(ids, words_W2, strict=True):
                touching = (pieces.starts < end) & (pieces.ends > start)
                assert token in pieces.ids[touching]


def test_targets_of_windows_are_the_tags_of_the_words(tokenizer):
    rng, texts = np.random.default_rng(0), texts_of(12)
    found = list(text_windows(tokenizer, texts, 14))
    tags = [rng.integers(0, 7, len(one.words_W2)) for one in found]
    encoded = supervised([str(i) for i in range(len(texts))], found, tags)
    assert len(encoded.ids) > len(texts), "some text has several windows"
    assert sum(int((labels != IGNORE_INDEX).sum()) for labels in encoded.token_targets[LABELS]) == sum(map(len, tags))
    again = list(supervised_windows(encoded))
    with_words = [i for i, one in enumerate(found) if len(one.words_W2)]
    for i, (windows, tags_W) in zip(with_words, again, strict=True):
        np.testing.assert_array_equal(tags_W, tags[i])
        for window, expected in zip(windows, found[i].windows, strict=True):
            np.testing.assert_array_equal(window.tokens, expected.tokens)
            np.testing.assert_array_equal(window.places, expected.places)


def test_a_context_without_room_for_a_text_is_refused(tokenizer):
    n_around = len(tokenizer.opening) + len(tokenizer.closing)
    with pytest.raises(ValueError, match=f"leaves room for 3 tokens of a text beside the {n_around} tokens"):
        list(text_windows(tokenizer, ["a"], n_around + 3))


def test_texts_without_words_have_no_windows(tokenizer):
    assert [len(one.windows) for one in text_windows(tokenizer, ["", " \n", "a"], 20)] == [0, 0, 1]
