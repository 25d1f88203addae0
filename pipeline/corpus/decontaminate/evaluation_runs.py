"""An index of the word n-grams (runs) of evaluation texts, which worker processes memory-map.

In: examples of tasks. Out: `Item`s, and a `RunIndex`: hashes of every run of 13 words of an item (of all words of a
shorter item), sorted, each with the items that contain it. `Scanner` finds runs in a text block by block, so that a
long text needs no more memory than a short one, and locates words in the text.

Words are those of word_hashes.py, except that `_` separates words (it marks emphasis in plain text), after NFKC case
folding without invisible characters. A run counts only if enough of its words are different and contain a letter.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import xxhash

from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.ngram_index import MULTIPLIER, NgramIndex, ngram_hashes, ngram_index, places_in
from pipeline.corpus.word_hashes import SPACELESS, WordHashes
from pipeline.store.records import SPLITS, Handle
from pipeline.store.shards import read_table, shard_paths, text_digest

HELD_OUT = SPLITS[1:]
WORD = re.compile(f"[{SPACELESS}]|[^\\W_{SPACELESS}]+")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
BLOCK = 1 << 20  # characters of a text that are processed together
BATCH = 100_000  # words of short texts that are processed together
FEWEST_BITS, MOST_BITS = 16, 27
LINE = 4096  # characters in which a word is located
CHUNK = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Item:
    """One text that models are judged on."""

    task: str
    example_id: str
    split: str
    text: str


def evaluation_items(examples: Sequence[Handle], tasks: Sequence[str]) -> list[Item]:
    """Validation and test examples of every task, in an order that does not depend on that of the tasks.

    This is the only place that knows the columns of examples here.
    """
    items = set()
    for name, handle in zip(tasks, examples, strict=True):
        for path in shard_paths(handle.directory):
            table = read_table(path, EXAMPLE)
            rows = zip(*(table[column].to_pylist() for column in ("id", "split", "text")), strict=True)
            items |= {Item(name, *row) for row in rows if row[1] in HELD_OUT and row[2]}
    return sorted(items, key=lambda item: (item.task, item.example_id, item.split, item.text))


def folded_words(text: str) -> list[str]:
    if text.isascii():
        return text.translate(ASCII_WORDS).split()
    words = []
    for line in text.split("\n"):  # in most texts few lines need the slower path
        words += line.translate(ASCII_WORDS).split() if line.isascii() else WORD.findall(_folded(line))
    return words


def _folded(text: str) -> str:
    """NFKC is applied again after casefold, which decomposes some letters that NFKC composes."""
    plain = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFKC", plain.casefold())


@dataclass(frozen=True, slots=True)
class RunIndex(NgramIndex):
    """An item whose size is 0 has no run that counts and cannot be found."""

    anchors: np.ndarray  # uint64, sorted: the first min_words words of the runs
    lengths: np.ndarray  # int64, words of a run

    def digest(self) -> str:
        """The digest of what decides which runs a text contains."""
        return text_digest(self.anchors.tobytes(), self.ngrams.tobytes(), self.lengths.tobytes())


def run_index(texts: Iterable[str], n_words: int, min_words: int) -> RunIndex:
    """The runs of `n_words` words of all texts; those with fewer than `min_words` different words do not count."""
    hashes = WordHashes(xxhash.xxh3_64_intdigest)
    nothing = np.zeros(0, np.uint64)
    runs, anchors, lengths = [nothing], [nothing], [np.zeros(0, np.int64)]
    for text in texts:
        words = folded_words(text)
        length = min(n_words, len(words))
        if length < min_words:
            runs.append(nothing)
            continue
        counts = _n_different(words, length) >= min_words
        of_words = hashes.of(words)
        own, first = np.unique(ngram_hashes(of_words, length)[counts], return_index=True)
        runs.append(own)
        anchors.append(ngram_hashes(of_words, min_words)[: len(counts)][counts][first])
        lengths.append(np.full(len(own), length))
    index = ngram_index(runs[1:])
    _, first = np.unique(np.concatenate(runs), return_index=True)
    return RunIndex(
        index.ngrams,
        index.starts,
        index.owners,
        index.sizes,
        np.unique(np.concatenate(anchors)),
        np.concatenate(lengths)[first],
    )


def _n_different(words: Sequence[str], length: int) -> np.ndarray:
    """The number of different words with a letter in every run."""
    numbers: dict[str, int] = {}
    ids = [
        numbers.setdefault(word, len(numbers)) if any(map(str.isalpha, word)) else -1  # does not count
        for word in words
    ]
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(np.array(ids), length), axis=1)
    return np.count_nonzero(np.diff(windows, axis=1), axis=1) + 1 - (windows[:, 0] == -1)


class Scanner:
    """Finds the runs of an index in texts; hashes of words are cached, so that a text costs one look-up per word."""

    def __init__(self, index: RunIndex, n_words: int, min_words: int) -> None:
        self.index, self.n_words, self.min_words = index, n_words, min_words
        self._hashes = WordHashes(xxhash.xxh3_64_intdigest)
        n_bits = min(MOST_BITS, max(FEWEST_BITS, (len(index.anchors) * 16).bit_length()))
        self._shift = np.uint64(64 - n_bits)
        self._possible = np.zeros(1 << n_bits, bool)  # by the first bits of a run, which exclude most runs
        self._possible[index.anchors >> self._shift] = True

    def runs_of_all(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a text and a run that it contains, each once, in order; short texts are processed together."""
        pairs, waiting, n_waiting = [np.zeros(0, np.int64)], [], 0
        n_runs = max(1, len(self.index.ngrams))
        for row, text in enumerate(texts):
            if len(text) > BLOCK:
                pairs.append(np.unique(self.runs(text)[1]) + row * n_runs)
                continue
            waiting.append((row, folded_words(text)))
            n_waiting += len(waiting[-1][1])
            if n_waiting >= BATCH:
                pairs.append(self._pairs(waiting))
                waiting, n_waiting = [], 0
        pairs.append(self._pairs(waiting))
        rows, runs = np.divmod(np.unique(np.concatenate(pairs)), n_runs)
        return rows, runs

    def _pairs(self, texts: Sequence[tuple[int, list[str]]]) -> np.ndarray:
        ends = np.cumsum([len(words) for _, words in texts], dtype=np.int64)
        places, runs = self._hits(self._hashes.of(list(chain.from_iterable(words for _, words in texts))))
        text = np.searchsorted(ends, places, side="right")
        inside = places + self.index.lengths[runs] <= ends[text]  # not across the border of two texts
        rows = np.array([row for row, _ in texts], np.int64)
        return np.unique(rows[text[inside]] * max(1, len(self.index.ngrams)) + runs[inside])

    def runs(self, text: str) -> tuple[np.ndarray, np.ndarray, int]:
        """First word and index number of every run in `text`, in order, and the number of words of `text`."""
        places, runs = [], []
        n_before, tail = 0, np.zeros(0, np.uint64)
        for start, end in blocks(text):
            words = folded_words(text[start:end])
            hashes = np.concatenate((tail, self._hashes.of(words)))
            found, own = self._hits(hashes)
            new = found + self.index.lengths[own] > len(tail)  # the others were found in the previous block
            places.append(found[new] + n_before - len(tail))
            runs.append(own[new])
            n_before += len(words)
            tail = hashes[max(0, len(hashes) - self.n_words + 1) :]
        if not places:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
        return np.concatenate(places), np.concatenate(runs), n_before

    def _hits(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        runs = ngram_hashes(hashes, self.min_words)
        places = np.flatnonzero(self._possible[runs >> self._shift])
        places = places[places_in(self.index.anchors, runs[places]) >= 0]
        values, found, numbers = runs[places], [], []
        for length in range(self.min_words, self.n_words + 1):
            if length > self.min_words:
                inside = places + length <= len(hashes)
                places, values = places[inside], values[inside]
                values = values * MULTIPLIER + hashes[places + length - 1]
            own = places_in(self.index.ngrams, values)
            hit = (own >= 0) & (self.index.lengths[own] == length) if len(self.index.ngrams) else own >= 0
            found.append(places[hit])
            numbers.append(own[hit])
        order = np.argsort(np.concatenate(found), kind="stable")
        return np.concatenate(found)[order], np.concatenate(numbers)[order]


def blocks(text: str, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Start and end of parts of at most `size` characters, cut at white space if possible."""
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space + 1 if space > start else end
        yield start, end
        start = end


def spans_of_words(text: str, first: np.ndarray, last: np.ndarray) -> list[tuple[int, int]]:
    """The positions in `text`, in characters, of the words `first` to `last` (numbers, inclusive).

    If folding changes the length of a word, its position up to the next white space is estimated.
    """
    wanted = np.unique(np.concatenate((first, last)))
    bounds: dict[int, tuple[int, int]] = {}
    n_before = 0
    for start, end in _small_blocks(text):
        n_words = len(folded_words(text[start:end]))
        low, high = np.searchsorted(wanted, [n_before, n_before + n_words])
        if high > low:
            places = set(wanted[low:high].tolist())
            bounds |= {n: span for n, span in enumerate(_word_spans(text, start, end), n_before) if n in places}
        n_before += n_words
    return [(bounds[one][0], bounds[other][1]) for one, other in zip(first.tolist(), last.tolist(), strict=True)]


def _small_blocks(text: str) -> Iterator[tuple[int, int]]:
    """The parts of `blocks`, cut further at white space only, because words are located one by one."""
    for start, end in blocks(text):
        while end - start > LINE and (space := text.rfind(" ", start, start + LINE)) > start:
            yield start, space + 1
            start = space + 1
        yield start, end


def _word_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The position in `text` of every folded word. NFKC does not act across white space."""
    for chunk in CHUNK.finditer(text, start, end):
        folded = _folded(chunk[0])
        scale = len(chunk[0]) / max(1, len(folded))
        for word in WORD.finditer(folded):
            yield chunk.start() + int(word.start() * scale), chunk.start() + int(np.ceil(word.end() * scale))
