"""The runs of words that give an evaluation text away, as an index that worker processes map from a file.

In: examples of tasks. Out: `Item`s, and a `RunIndex`: hashes of every run of 13 words of an item (of a shorter item,
of all its words), sorted, each with the items that hold it. `Scanner` finds them in a text, block by block, so that a
long text needs no more memory than a short one, and says where in the text a word lies.

Words are those of shingles.py, save that _ joins nothing (it marks emphasis in plain text), after Unicode's NFKC
case folding without invisible characters. A run counts only when enough of its words differ and hold a letter.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.word_hashes import SPACELESS, WordHashes
from pipeline.store.records import SPLITS, Handle
from pipeline.store.shards import read_table, replacing, shard_paths, text_digest

HELD_OUT = SPLITS[1:]
WORD = re.compile(f"[{SPACELESS}]|[^\\W_{SPACELESS}]+")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's MMIX generator; odd, so that no word is lost
BLOCK = 1 << 20  # characters of a text that are looked at together
BATCH = 100_000  # words of short texts that are looked up together
FEWEST_BITS, MOST_BITS = 16, 27
LINE = 4096  # characters in which the place of a word is looked for
CHUNK = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Item:
    """One text that models are judged on."""

    task: str
    example_id: str
    split: str
    text: str


def evaluation_items(examples: Sequence[Handle], tasks: Sequence[str]) -> list[Item]:
    """Validation and test examples of every task in an order that does not depend on that of the tasks.

    The one place that knows what a task's rows hold.
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
    for line in text.split("\n"):  # of most texts few lines need the longer way
        words += line.translate(ASCII_WORDS).split() if line.isascii() else WORD.findall(_folded(line))
    return words


def _folded(text: str) -> str:
    """NFKC again after casefold: it takes some letters apart that NFKC puts together."""
    plain = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return unicodedata.normalize("NFKC", plain.casefold())


@dataclass(frozen=True, slots=True)
class RunIndex:
    """Sorted distinct runs; those items that hold run r are owners[starts[r]:starts[r + 1]]."""

    anchors: np.ndarray  # uint64, sorted: the first min_words words of the runs
    runs: np.ndarray  # uint64
    lengths: np.ndarray  # int64, words of a run
    starts: np.ndarray
    owners: np.ndarray
    n_runs: np.ndarray  # of an item, different ones that count; 0 = nothing of it can be found

    def digest(self) -> str:
        """Of what decides which runs a text holds."""
        return text_digest(self.anchors.tobytes(), self.runs.tobytes(), self.lengths.tobytes())

    def save(self, folder: Path) -> None:
        for field in fields(self):
            with replacing(folder / f"{field.name}.npy") as part, part.open("wb") as file:
                np.save(file, getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> "RunIndex":
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)))

    def owners_of(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `runs` and items: a pair for every item that holds one of them."""
        n_owners = self.starts[runs + 1] - self.starts[runs]
        first = np.repeat(self.starts[runs] - np.cumsum(n_owners) + n_owners, n_owners)
        return np.repeat(np.arange(len(runs)), n_owners), self.owners[first + np.arange(len(first))]


def run_index(texts: Iterable[str], n_words: int, min_words: int) -> RunIndex:
    """The runs of `n_words` words of all texts; those with fewer than `min_words` different words count nothing."""
    hashes = WordHashes(xxhash.xxh3_64_intdigest)
    runs, anchors, lengths, n_runs = [], [], [], []
    for text in texts:
        words = folded_words(text)
        length = min(n_words, len(words))
        if length < min_words:
            n_runs.append(0)
            continue
        counts = _n_different(words, length) >= min_words
        of_words = hashes.of(words)
        own, first = np.unique(_run_hashes(of_words, length)[counts], return_index=True)
        runs.append(own)
        anchors.append(_run_hashes(of_words, min_words)[: len(counts)][counts][first])
        lengths.append(np.full(len(own), length))
        n_runs.append(len(own))
    owners = np.repeat(np.arange(len(n_runs)), n_runs)
    flat = np.concatenate(runs) if runs else np.zeros(0, np.uint64)
    order = np.argsort(flat, kind="stable")
    distinct, starts = np.unique(flat[order], return_index=True)
    of_all = np.concatenate(lengths)[order] if lengths else np.zeros(0, np.int64)
    return RunIndex(
        np.unique(np.concatenate(anchors)) if anchors else flat,
        distinct,
        of_all[starts],
        np.append(starts, len(flat)),
        owners[order],
        np.array(n_runs, np.int64),
    )


def _n_different(words: Sequence[str], length: int) -> np.ndarray:
    """Of every run, how many different words with a letter it holds."""
    numbers: dict[str, int] = {}
    ids = [
        numbers.setdefault(word, len(numbers)) if any(map(str.isalpha, word)) else -1  # one of no worth
        for word in words
    ]
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(np.array(ids), length), axis=1)
    return np.count_nonzero(np.diff(windows, axis=1), axis=1) + 1 - (windows[:, 0] == -1)


def _run_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    runs = np.zeros(max(0, len(hashes) - length + 1), np.uint64)
    for k in range(length):
        runs = runs * MULTIPLIER + hashes[k : k + len(runs)]
    return runs


class Scanner:
    """Finds the runs of an index in texts; remembers the hashes of words, so that a text costs a look-up a word."""

    def __init__(self, index: RunIndex, n_words: int, min_words: int) -> None:
        self.index, self.n_words, self.min_words = index, n_words, min_words
        self._hashes = WordHashes(xxhash.xxh3_64_intdigest)
        n_bits = min(MOST_BITS, max(FEWEST_BITS, (len(index.anchors) * 16).bit_length()))
        self._shift = np.uint64(64 - n_bits)
        self._possible = np.zeros(1 << n_bits, bool)  # by the first bits of a run: most are told apart by these
        self._possible[index.anchors >> self._shift] = True

    def runs_of_all(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of texts and of runs that they hold, each pair once, in order; short texts are read together."""
        pairs, waiting, n_waiting = [np.zeros(0, np.int64)], [], 0
        n_runs = max(1, len(self.index.runs))
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
        inside = places + self.index.lengths[runs] <= ends[text]  # not begun in one text and ended in the next
        rows = np.array([row for row, _ in texts], np.int64)
        return np.unique(rows[text[inside]] * max(1, len(self.index.runs)) + runs[inside])

    def runs(self, text: str) -> tuple[np.ndarray, np.ndarray, int]:
        """First word and number in the index of every run that stands in `text`, by place; words of `text`."""
        places, runs = [], []
        n_before, tail = 0, np.zeros(0, np.uint64)
        for start, end in blocks(text):
            words = folded_words(text[start:end])
            hashes = np.concatenate((tail, self._hashes.of(words)))
            found, own = self._hits(hashes)
            new = found + self.index.lengths[own] > len(tail)  # the others were found in the block before
            places.append(found[new] + n_before - len(tail))
            runs.append(own[new])
            n_before += len(words)
            tail = hashes[max(0, len(hashes) - self.n_words + 1) :]
        if not places:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
        return np.concatenate(places), np.concatenate(runs), n_before

    def _hits(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        runs = _run_hashes(hashes, self.min_words)
        places = np.flatnonzero(self._possible[runs >> self._shift])
        places = places[_places_in(self.index.anchors, runs[places]) >= 0]
        values, found, numbers = runs[places], [], []
        for length in range(self.min_words, self.n_words + 1):
            if length > self.min_words:
                inside = places + length <= len(hashes)
                places, values = places[inside], values[inside]
                values = values * MULTIPLIER + hashes[places + length - 1]
            own = _places_in(self.index.runs, values)
            hit = (own >= 0) & (self.index.lengths[own] == length) if len(self.index.runs) else own >= 0
            found.append(places[hit])
            numbers.append(own[hit])
        order = np.argsort(np.concatenate(found), kind="stable")
        return np.concatenate(found)[order], np.concatenate(numbers)[order]


def _places_in(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each of `values` stands in `ordered`, -1 where it does not."""
    if not len(ordered):
        return np.full(len(values), -1)
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    return np.where(ordered[places] == values, places, -1)


def blocks(text: str, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Start and end of parts of at most `size` characters, cut at white space where there is some."""
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
            end = space + 1 if space > start else end
        yield start, end
        start = end


def spans_of_words(text: str, first: np.ndarray, last: np.ndarray) -> list[tuple[int, int]]:
    """Where in `text` the words `first` to `last` (numbers, `last` included) lie, in characters.

    Where folding changes the length of a word, its place within the characters up to the next white space is
    estimated.
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
    """Those of `blocks`, cut up further at white space alone, because words are located one by one."""
    for start, end in blocks(text):
        while end - start > LINE and (space := text.rfind(" ", start, start + LINE)) > start:
            yield start, space + 1
            start = space + 1
        yield start, end


def _word_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Of every folded word its place in `text`. NFKC looks at nothing beyond white space."""
    for chunk in CHUNK.finditer(text, start, end):
        folded = _folded(chunk[0])
        scale = len(chunk[0]) / max(1, len(folded))
        for word in WORD.finditer(folded):
            yield chunk.start() + int(word.start() * scale), chunk.start() + int(np.ceil(word.end() * scale))
