"""Word 5-grams of a text as a set of 64-bit hashes, and the two signatures that find texts which share them.

In: texts. Out: sorted unique hashes (`Shingler.shingles`), and a table of SIGNATURES, a row a text:
- bands: MinHash by rensa, cut into bands; two texts with Jaccard index s agree in one with 1 - (1 - s^rows)^bands.
- sample: every hash below 2^64 / one_in. The same hashes are chosen in every text, so that a short text inside a
  long one is found too, which MinHash cannot do (FracMinHash, doi:10.1101/2022.01.11.475838).
Words are runs of letters and digits; in scripts that are written without spaces each character is a word. A text of
fewer words than a shingle is one shingle; a text without words is one shingle of its characters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import xxhash

SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese characters
)
WORD = re.compile(f"[{SPACELESS}]|[^\\W{SPACELESS}]+")
MAX_REMEMBERED_WORDS = 1_000_000  # then the dictionary of word hashes is emptied, to bound its memory
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # constants of splitmix64, doi:10.1145/2714064.2660195
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)

SIGNATURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("n_words", pa.int64(), nullable=False),
        pa.field("n_bytes", pa.int64(), nullable=False),
        pa.field("n_shingles", pa.int64(), nullable=False),
        pa.field("bands", pa.list_(pa.uint64()), nullable=False),
        pa.field("sample", pa.list_(pa.uint64()), nullable=False),
    ]
)


class WordHashes(dict[str, int]):
    """Word -> hash, computed once a word."""

    def __init__(self, function: Callable[[bytes], int]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_REMEMBERED_WORDS:
            self.clear()
        self[word] = value = self.function(word.encode(errors="surrogatepass"))
        return value

    def of(self, words: list[str]) -> np.ndarray:
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


class Shingler:
    """Remembers the hashes of words, so that a text costs a look-up a word."""

    def __init__(self, n_words: int) -> None:
        self.n_words = n_words
        self._hashes = WordHashes(xxhash.xxh3_64_intdigest)

    def shingles(self, text: str) -> np.ndarray:
        """Sorted unique hashes, uint64, never empty."""
        folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
        words = WORD.findall(folded) or [" ".join(folded.split())]
        return np.unique(_run_hashes(self._hashes.of(words), min(self.n_words, len(words))))


def _run_hashes(hashes: np.ndarray, n_words: int) -> np.ndarray:
    n_runs = len(hashes) - n_words + 1
    runs = np.zeros(n_runs, np.uint64)
    for k in range(n_words):
        runs = _mixed(runs + hashes[k : k + n_runs])
    return runs


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64: a bijection of 64 bits whose output is evenly spread. Overflow wraps, as it should."""
    values = values + GOLDEN
    values = (values ^ (values >> np.uint64(30))) * MIX_1
    values = (values ^ (values >> np.uint64(27))) * MIX_2
    return values ^ (values >> np.uint64(31))


def signature_columns(
    texts: Iterable[str], *, n_words: int, n_bands: int, n_rows: int, one_in: int, seed: int
) -> dict[str, pa.Array]:
    """Columns n_shingles, bands and sample of SIGNATURES."""
    shingler = Shingler(n_words)
    sets = [shingler.shingles(text) for text in texts]
    largest = np.uint64(2**64 // one_in - 1)
    samples = [hashes[: np.searchsorted(hashes, largest, side="right")] for hashes in sets]
    return {
        "n_shingles": pa.array([len(hashes) for hashes in sets], pa.int64()),
        "bands": _lists(list(_bands(sets, n_bands, n_rows, seed))),
        "sample": _lists(samples),
    }


def _bands(sets: list[np.ndarray], n_bands: int, n_rows: int, seed: int) -> np.ndarray:
    """uint64 (texts, bands): the minima of a band and its number, hashed."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    offsets = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    flat = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, n_bands * n_rows, seed)
    minima = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), n_bands, n_rows)
    bands = np.tile(np.arange(n_bands, dtype=np.uint64), (len(sets), 1))
    for row in range(n_rows):
        bands = _mixed(bands ^ minima[:, :, row])
    return bands


def _lists(rows: list[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.uint64()))
