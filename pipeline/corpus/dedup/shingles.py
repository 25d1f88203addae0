"""Word 5-grams of texts as 64-bit hashes, and the two signatures that find texts which share them.

In: texts. Out: the hashes of the word n-grams of one text in their order (`Shingler.windows`), and the sorted unique
hashes of many texts as one array (`Shingler.sets`), from which come
- bands: MinHash by rensa, cut into bands; two texts with Jaccard index s share at least one band with probability
  1 - (1 - s^rows)^bands.
- sample: every hash below 2^64 / one_in. The same hashes are chosen in every text, so that a short text inside a
  long one is found too, which MinHash cannot do (FracMinHash, doi:10.1101/2022.01.11.475838).
Words are runs of letters and digits; in scripts that are written without spaces each character is a word. A text of
fewer words than a shingle is one shingle; a text without words is one shingle of its characters.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.corpus.word_hashes import WORD

Text = TypeVar("Text", str, bytes)
WORD_BYTES = bytes(ord(chr(i).lower()) if WORD.match(chr(i)) else 0x20 for i in range(128)) + b" " * 128
RUNS = 32_768  # hashes that are mixed together: they fit a core's cache
PIECE_CHARACTERS = 1_000_000  # a long text is processed in pieces of this size, to bound the memory for its words
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # constants of splitmix64, doi:10.1145/2714064.2660195
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


class Shingler:
    """Hashes of the runs of `n_words` words of texts."""

    def __init__(self, n_words: int) -> None:
        self.n_words = n_words

    def windows(self, text: str) -> np.ndarray:
        """Hash of each run of words, in the order of the text, uint64, never empty."""
        return self.windows_of([text])[0]

    def shingles(self, text: str) -> np.ndarray:
        """Sorted unique hashes, uint64, never empty."""
        return np.unique(self.windows(text))

    def windows_of(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The windows of each of `texts`, which are processed together: pass a few MB at most."""
        pieces, n_pieces = [], []
        for text in texts:
            before = len(pieces)
            pieces += _pieces(text)
            n_pieces.append(len(pieces) - before)
        hashes, n_hashes = _word_hashes(pieces)
        del pieces
        ends = np.concatenate([[0], np.cumsum(n_hashes)])[np.cumsum([0, *n_pieces])].tolist()
        runs = _run_hashes(hashes, self.n_words)
        windows = []
        for text, start, end in zip(texts, ends, ends[1:], strict=False):
            if end - start >= self.n_words:
                windows.append(runs[start : end - self.n_words + 1])
            else:
                own = hashes[start:end] if end > start else _hash_of_signs(text)
                windows.append(_run_hashes(own, len(own)))
        return windows

    def sets(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted unique hashes of the texts, concatenated, and per text the number of hashes and of windows."""
        windows = self.windows_of(texts)
        n_windows = np.fromiter(map(len, windows), np.int64, len(windows))
        if len(texts) == 1:  # a single text may be long: avoid a second copy
            (flat,) = windows
        else:
            flat = np.concatenate(windows) if windows else np.zeros(0, np.uint64)
        del windows
        starts = np.cumsum(n_windows) - n_windows
        for start, n in zip(starts.tolist(), n_windows.tolist(), strict=True):
            flat[start : start + n].sort()
        is_new = np.empty(len(flat), bool)
        np.not_equal(flat[1:], flat[:-1], out=is_new[1:])
        is_new[starts] = True
        n_unique = np.add.reduceat(is_new, starts, dtype=np.int64) if len(texts) else n_windows
        return flat[is_new], n_unique, n_windows


def _pieces(text: str) -> Iterator[bytes]:
    """The folded words of a text, separated by spaces, in UTF-8."""
    if text.isascii():
        whole = text.encode().translate(WORD_BYTES)
        yield from _cut(whole) if len(whole) > PIECE_CHARACTERS else (whole,)
        return
    folded = _folded(text)
    if len(folded) <= PIECE_CHARACTERS:
        yield " ".join(WORD.findall(folded)).encode(errors="surrogatepass")
        return
    words: list[str] = []
    for match in WORD.finditer(folded):
        words.append(match.group())
        if len(words) >= PIECE_CHARACTERS // 5:
            yield " ".join(words).encode(errors="surrogatepass")
            words = []
    yield " ".join(words).encode(errors="surrogatepass")


def _cut(whole: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(whole):
        end = whole.find(b" ", start + PIECE_CHARACTERS)
        end = len(whole) if end < 0 else end
        yield whole[start:end]
        start = end


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def _hash_of_signs(text: str) -> np.ndarray:
    signs = " ".join(_folded(text).split())
    return np.array([xxhash.xxh3_64_intdigest(signs.encode(errors="surrogatepass"))], np.uint64)


def _word_hashes(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words of all pieces one after the other, and how many each piece has."""
    hashes, n_hashes = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in batches_of(pieces, PIECE_CHARACTERS):
        # Arrow splits and numbers words without a Python object for each; it also accepts invalid UTF-8
        words = pc.call_function("ascii_split_whitespace", [pa.array(batch, pa.binary()).view(pa.string())])
        numbered = pc.call_function("dictionary_encode", [words.flatten()])
        known = numbered.dictionary.view(pa.binary()).to_pylist()
        places = numbered.indices.to_numpy()
        is_word = np.array([word != b"" for word in known], bool)[places]  # spaces at an end leave an empty one
        hashes.append(np.array([xxhash.xxh3_64_intdigest(word) for word in known], np.uint64)[places[is_word]])
        n_before = np.concatenate([[0], np.cumsum(is_word)])
        n_hashes.append(np.diff(n_before[words.offsets.to_numpy()]))
    return np.concatenate(hashes), np.concatenate(n_hashes)


def batches_of(texts: Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Batches of `texts` whose lengths (as len counts them) reach `size` together."""
    batch: list[Text] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _run_hashes(hashes: np.ndarray, n_words: int) -> np.ndarray:
    """Hash of each run of `n_words`. For 17 million words this is 136 MB, and twice that while it is computed."""
    n_runs = max(0, len(hashes) - n_words + 1)
    runs = np.zeros(n_runs, np.uint64)
    for start in range(0, n_runs, RUNS):
        part = runs[start : start + RUNS]
        for k in range(n_words):
            part += hashes[start + k : start + k + len(part)]
            mix(part)
    return runs


def mix(values: np.ndarray) -> None:
    """splitmix64 in place: a bijection of 64 bits whose output is evenly spread. Overflow wraps, as it should."""
    values += GOLDEN
    values ^= values >> np.uint64(30)
    values *= MIX_1
    values ^= values >> np.uint64(27)
    values *= MIX_2
    values ^= values >> np.uint64(31)


def sample_of(flat: np.ndarray, n_unique: np.ndarray, one_in: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest of the sorted hashes of each text, one in `one_in`, and how many of them each text has."""
    is_sampled = flat <= np.uint64(2**64 // one_in - 1)
    starts = np.cumsum(n_unique) - n_unique
    n_sampled = np.add.reduceat(is_sampled, starts, dtype=np.int64) if len(n_unique) else n_unique
    return flat[is_sampled], n_sampled


def bands_of(flat: np.ndarray, n_unique: np.ndarray, *, n_bands: int, n_rows: int, seed: int) -> np.ndarray:
    """uint64 (texts, bands): the minima of a band and its number, hashed."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    offsets = np.concatenate([[0], np.cumsum(n_unique)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_bands * n_rows, seed)
    minima = np.array(matrix.to_rows(), np.uint64).reshape(len(n_unique), n_bands, n_rows)
    bands = np.tile(np.arange(n_bands, dtype=np.uint64), (len(n_unique), 1))
    for row in range(n_rows):
        bands ^= minima[:, :, row]
        mix(bands)
    return bands
