"""shingles: against an implementation written for this test, word by word and without arrays."""

import random
import re
import unicodedata

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.dedup.shingles import PIECE_CHARACTERS, Shingler, bands_of, sample_of
from pipeline.corpus.word_hashes import SPACELESS

MASK = 2**64 - 1
TEXT = st.text(
    st.sampled_from("abZ _0.,\n\t-\u00e9\u00c9\u0130\ufb01\u4f60\u3042\u0e01\u00a0\ud800\x00\x1c'"), max_size=60
)


def mixed(value):
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def plain_windows(text, n):
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(f"[{SPACELESS}]|(?:(?![{SPACELESS}])\\w)+", folded) or [" ".join(folded.split())]
    hashes = [xxhash.xxh3_64_intdigest(word.encode(errors="surrogatepass")) for word in words]
    n = min(n, len(words))
    found = []
    for i in range(len(words) - n + 1):
        run = 0
        for value in hashes[i : i + n]:
            run = mixed((run + value) & MASK)
        found.append(run)
    return found


@settings(deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 6))
def test_windows_of_many_texts_equal_those_of_a_plain_loop(texts, n):
    windows = Shingler(n).windows_of(texts)
    assert [own.tolist() for own in windows] == [plain_windows(text, n) for text in texts]


@settings(deadline=None)
@given(st.lists(TEXT, max_size=6))
def test_sets_are_the_sorted_unique_windows_of_each_text(texts):
    flat, n_unique, n_windows = Shingler(3).sets(texts)
    expected = [sorted(set(plain_windows(text, 3))) for text in texts]
    assert flat.tolist() == [value for own in expected for value in own]
    assert n_unique.tolist() == list(map(len, expected))
    assert n_windows.tolist() == [len(plain_windows(text, 3)) for text in texts]
    sample, n_sample = sample_of(flat, n_unique, 4)
    sampled = [[value for value in own if value < 2**62] for own in expected]
    assert sample.tolist() == [value for own in sampled for value in own]
    assert n_sample.tolist() == list(map(len, sampled))


@pytest.mark.parametrize("letter", ["a", "\u00e9"])
def test_windows_of_a_text_longer_than_a_piece_are_the_same(letter):
    """Long texts are cut before they are hashed; no word may be cut in two."""
    rng = random.Random(1)
    text = " ".join(f"{letter}{rng.randrange(1000)}" for _ in range(PIECE_CHARACTERS // 4))
    assert len(text) > PIECE_CHARACTERS
    assert Shingler(1).windows(text).tolist() == plain_windows(text, 1)


def test_bands_agree_as_often_as_minhash_promises():
    """1 - (1 - s^8)^14 of pairs with Jaccard index s share a band."""
    rng = np.random.default_rng(2)
    for similarity in (0.6, 0.8):
        n_shared = 90
        n_own = round(n_shared * (1 / similarity - 1) / 2)
        found = 0
        for seed in range(200):
            values = rng.integers(0, 2**63, n_shared + 2 * n_own).astype(np.uint64)
            pair = [
                np.sort(values[: n_shared + n_own]),
                np.sort(np.delete(values, np.s_[n_shared : n_shared + n_own])),
            ]
            sizes = np.array(list(map(len, pair)))
            one, other = bands_of(np.concatenate(pair), sizes, n_bands=14, n_rows=8, seed=seed)
            found += bool(np.any(one == other))
        real = n_shared / (n_shared + 2 * n_own)
        assert found / 200 == pytest.approx(1 - (1 - real**8) ** 14, abs=0.12)
