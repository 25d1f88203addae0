"""The words of a text as numpy arrays, split as spaCy 3.8's English tokenizer does, which datatrove's filters use.

In: the chunks of a text between white space. Out: `Words`: the number, length and kind of every word, and the chunk
that contains it. The split of a chunk (word_splitting.py) is cached, so that a text costs one look-up per chunk.
Neither the order nor the size of the cache affects the result.

Scripts that are written without spaces give one unit per character. A unit counts as a fraction of a word, so that a
text in such a script has about as many words as a dictionary would find in it (CHARACTERS_PER_WORD).
"""

import functools
import re
import string
import unicodedata
from dataclasses import dataclass

import numpy as np

from pipeline.corpus.word_hashes import EAST_ASIAN, SPACELESS
from pipeline.corpus.word_splitting import split_chunk

MOST_CHUNKS = 400_000  # cached before the cache is emptied


def _expanded(ranges: str) -> frozenset[str]:
    """The characters of "ab c-e": single ones, and ranges with a hyphen."""
    found = set()
    for part in ranges.split():
        first, last = part[0], part[-1]
        is_range = len(part) == 3 and part[1] == "-"
        found |= set(map(chr, range(ord(first), ord(last) + 1))) if is_range else set(part)
    return frozenset(found)


# Sentence_Terminal of the Unicode character database, of scripts in use: what ends a sentence.
SENTENCE_ENDS = _expanded(
    "!.?\u0589 \u061d-\u061f \u06d4 \u0700-\u0702 \u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362"
    "\u1367\u1368\u166e\u1735\u1736 \u17d4-\u17d6 \u17d9\u17da\u1803\u1809\u1944\u1945 \u1aa8-\u1aab "
    "\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d \u2047-\u2049 \u2e2e\u2e3c\u2e53"
    "\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9 \uaa5d-\uaa5f "
    "\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
# Signs that are not a word by themselves.
SIGNS = (
    frozenset(string.punctuation)
    | SENTENCE_ENDS
    | _expanded("\u2013\u2014\u2019\u201c\u201d\u201e\u00ab\u00bb\u2026\u00b4\u2501\u25ba\u2236\uff05\uff11")
    | _expanded("\u3001 \u3008-\u300d \u3010\u3011\uff08\uff09\uff0c\uff1a\uff1b\uff5e")
    | frozenset(chr(code) for code in (*range(32), *range(127, 160)) if code != 9 and code != 10)
)
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})  # of Gopher, arXiv:2112.11446

SIGN, ALPHABETIC, STOP, END, PUNCTUATION, UNSPACED = 1, 2, 4, 8, 16, 32  # bits of the kind of a word
# Mean length of a word in running text: Chinese 1.62 and Japanese 1.70 characters by the word frequencies of wordfreq
# 3.1, Thai 4.1 by those of the Thai National Corpus in pythainlp. The other scripts are assumed to be like Thai.
CHARACTERS_PER_WORD = {"east": 1.6, "south_east": 4.0}
WHOLE = 1000  # weight of an ordinary word
RUNS = re.compile(f"[{SPACELESS}]|[^{SPACELESS}]+")
_UNSPACED = re.compile(f"[{SPACELESS}]")
_EAST_ASIAN = re.compile(f"[{EAST_ASIAN}]")
HANGUL = ("\uac00", "\ud7a3")  # first and last syllable; 28 of them differ only in their last letter


@dataclass(frozen=True, slots=True)
class Words:
    """Arrays over the words of one text."""

    ids: np.ndarray  # equal words have equal numbers within this text
    lengths: np.ndarray  # characters
    kinds: np.ndarray  # bits, see above
    chunks: np.ndarray  # number of the chunk in the text, from 0
    letters: np.ndarray  # characters, but each syllable of Hangul counts as its 2 or 3 letters
    weights: np.ndarray  # thousandths of a word that the unit counts for; WHOLE for an ordinary word

    def n_words(self, chosen: np.ndarray | None = None) -> float:
        """Number of words among the `chosen` units (a mask), or among all; whole if all are ordinary words."""
        weights = self.weights if chosen is None else self.weights[chosen]
        return float(weights.sum()) / WHOLE


class _Memory(dict[str, int]):
    """Chunk -> its number; a new one is split and cached when it is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.firsts = _Column()  # of a chunk, where its words begin in `words`
        self.counts = _Column()  # of a chunk, how many words
        self.words = _Column()  # numbers of words, chunk after chunk
        self.lengths = _Column()  # of a word
        self.kinds = _Column()
        self.letters = _Column()
        self.weights = _Column()
        self.numbers: dict[str, int] = {}  # word -> number

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self.firsts)
        parts = units_of(chunk)
        self.firsts.append(len(self.words))
        self.counts.append(len(parts))
        for part in parts:
            if (word := self.numbers.get(part)) is None:
                word = self.numbers[part] = len(self.lengths)
                self.lengths.append(len(part))
                self.kinds.append(_kind(part))
                self.letters.append(_n_letters(part))
                self.weights.append(_weight(part))
            self.words.append(word)
        return number


class _Column:
    """A growing array of integers."""

    def __init__(self) -> None:
        self._values = np.zeros(1024, dtype=np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, value: int) -> None:
        if self._size == len(self._values):
            self._values = np.concatenate((self._values, np.zeros_like(self._values)))
        self._values[self._size] = value
        self._size += 1

    def take(self, index: np.ndarray) -> np.ndarray:
        return self._values.take(index)


def words_of(chunks: list[str]) -> Words:
    """The words of a text that was cut at white space into `chunks`."""
    memory = _memory()
    if len(memory) > MOST_CHUNKS:
        _memory.cache_clear()
        memory = _memory()
    numbers = np.fromiter(map(memory.__getitem__, chunks), np.int64, len(chunks))
    counts = memory.counts.take(numbers)
    ends = np.cumsum(counts)
    n_words = int(ends[-1]) if len(ends) else 0
    places = np.repeat(memory.firsts.take(numbers) - ends + counts, counts) + np.arange(n_words)
    ids = memory.words.take(places)
    return Words(
        ids=ids,
        lengths=memory.lengths.take(ids),
        kinds=memory.kinds.take(ids),
        chunks=np.repeat(np.arange(len(chunks)), counts),
        letters=memory.letters.take(ids),
        weights=memory.weights.take(ids),
    )


def units_of(chunk: str) -> list[str]:
    """The words of a chunk; the characters of scripts without spaces one by one, and what is between them split as
    usual."""
    if chunk.isascii() or not _UNSPACED.search(chunk):
        return split_chunk(chunk)
    parts: list[str] = []
    for run in RUNS.findall(chunk):
        parts += [run] if _UNSPACED.match(run) else split_chunk(run)
    return parts


@functools.cache
def _memory() -> _Memory:
    return _Memory()


def _weight(word: str) -> int:
    if not _UNSPACED.match(word):
        return WHOLE
    return round(WHOLE / CHARACTERS_PER_WORD["east" if _EAST_ASIAN.match(word) else "south_east"])


def _n_letters(word: str) -> int:
    if word.isascii():
        return len(word)
    first, last = HANGUL
    return len(word) + sum(1 + ((ord(c) - ord(first)) % 28 > 0) for c in word if first <= c <= last)


def _kind(word: str) -> int:
    is_unspaced = _UNSPACED.match(word) is not None
    return (
        SIGN * all(c in SIGNS for c in word)
        # a vowel sign of Thai is part of a word with letters
        | ALPHABETIC * any(c.isalpha() or (is_unspaced and unicodedata.category(c)[0] == "M") for c in word)
        | UNSPACED * is_unspaced
        | STOP * (word in STOP_WORDS)
        | END * (word in SENTENCE_ENDS)
        | PUNCTUATION * all(unicodedata.category(c)[0] == "P" for c in word)
    )
