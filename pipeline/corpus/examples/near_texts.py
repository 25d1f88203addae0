"""Near duplicates among many short texts: groups of them, and those on two sides of a split.

In: texts. Out: groups of texts whose sets of words are alike, and texts that have a near duplicate in other texts.

Two sets with a Jaccard index of at least t share one of their rarest len - ceil(t * len) + 1 words (Bayardo, Ma and
Srikant 2007), so only texts that share a rare word are compared. `duplicate_groups` looks for such words among the
rarest of both texts, `leaked`, which checks its result, among all words of the other texts. The comparisons are
sparse matrix products in blocks, so that a million texts need neither a comparison of all pairs nor much memory.
scipy is imported where it is used.
"""

import logging
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

SIMILARITY = 0.8  # Jaccard index of word sets from which two texts are near duplicates
PAIRS_AT_ONCE = 200_000  # that are compared together: bounds memory
MOST_PAIRS = 1_000_000_000  # that share a rare word: beyond, the words of the most texts are looked up in part
MOST_WAITING = 5_000_000  # similar pairs until groups are joined
WINDOW = 40  # neighbours that a text is compared with among the texts of such a word
ROUNDING = 1e-9  # 0.7 * 10 is not 7 in floating point
_LETTERS = re.compile(r"[^\W\d_]+")
log = logging.getLogger(__name__)
Pairs = tuple[np.ndarray, np.ndarray]


def normalised(text: str) -> str:
    """`text` in a form that is equal for texts that differ only in case, white space or Unicode form."""
    if text.isascii():  # for which the rest is the same, only slower
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def letters(text: str) -> tuple[str, ...]:
    """The words of a text without digits and punctuation; all its words if nothing would remain."""
    plain = normalised(text)
    return tuple(_LETTERS.findall(plain)) or tuple(plain.split())


@dataclass(frozen=True, slots=True)
class WordSets:
    """The distinct words of texts as numbers, a smaller number for a rarer word; words of text i are
    words[starts[i]:starts[i + 1]], the rarest first."""

    words: np.ndarray  # int32
    starts: np.ndarray  # int64
    n_words: int

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)

    def part(self, first: int, last: int) -> "WordSets":
        words = self.words[self.starts[first] : self.starts[last]]
        return WordSets(words, self.starts[first : last + 1] - self.starts[first], self.n_words)

    def take(self, places: np.ndarray) -> "WordSets":
        sizes = self.sizes[places]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return WordSets(self.words[np.repeat(self.starts[places], sizes) + within], starts, self.n_words)

    def rarest(self, similarity: float) -> "WordSets":
        """The rarest words of each text, one of which a similar text must share."""
        kept = np.minimum(self.sizes - np.ceil(similarity * self.sizes - ROUNDING).astype(np.int64) + 1, self.sizes)
        within = np.arange(len(self.words)) - np.repeat(self.starts[:-1], self.sizes)
        starts = np.concatenate([[0], np.cumsum(kept)])
        return WordSets(self.words[within < np.repeat(kept, self.sizes)], starts, self.n_words)

    def without(self, words: np.ndarray) -> "WordSets":
        """The sets without those words for which `words` is True."""
        is_kept = ~words[self.words]
        return WordSets(self.words[is_kept], np.concatenate([[0], np.cumsum(is_kept)])[self.starts], self.n_words)

    def matrix(self) -> Any:
        """A row per text and a column per word, 1 where the text has the word."""
        from scipy.sparse import csr_array

        shape = (len(self.starts) - 1, max(self.n_words, 1))
        return csr_array((np.ones(len(self.words), np.int32), self.words, self.starts), shape=shape)


def word_sets(texts: Iterable[str]) -> WordSets:
    number: dict[str, int] = {}
    words, sizes = array("i"), array("q", [0])
    for text in texts:
        own = {number.setdefault(word, len(number)) for word in letters(text)}
        words.extend(own)
        sizes.append(len(own))
    flat, starts = np.frombuffer(words, np.int32), np.cumsum(np.frombuffer(sizes, np.int64))
    # ties by number, which is the order in which words first occur
    rank = np.argsort(np.argsort(np.bincount(flat, minlength=len(number)), kind="stable")).astype(np.int32)
    keys = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * max(len(number), 1) + rank[flat]
    keys.sort()
    return WordSets((keys % max(len(number), 1)).astype(np.int32), starts, len(number))


def duplicate_groups(texts: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    """For each text the index of the first text of its group; near duplicates of near duplicates are one group."""
    sets = word_sets(texts)
    first: dict[bytes, int] = {}
    same = [first.setdefault(sets.words[a:b].tobytes(), i) for i, (a, b) in enumerate(_borders(sets.starts))]
    distinct = np.fromiter(first.values(), np.int64, len(first))
    group = distinct[_components(len(distinct), _similar_pairs(sets.take(distinct), similarity))]
    of_first = np.zeros(len(texts), np.int64)
    of_first[distinct] = group
    return of_first[same].tolist()


def leaked(train: Sequence[str], test: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    """Indices of the test texts that have a near duplicate among the training texts; should be empty."""
    sets = word_sets(chain(train, test))
    known, asked = sets.part(0, len(train)), sets.part(len(train), len(train) + len(test))
    index = known.matrix().T.tocsr()  # word -> training texts that have it
    rare = asked.rarest(similarity)
    n_pairs = np.bincount(rare.words, minlength=max(sets.n_words, 1)) * np.diff(index.indptr)
    frequent = _beyond(n_pairs)
    if frequent.any():
        n_in_part = len(np.unique(np.repeat(np.arange(len(test)), rare.sizes)[frequent[rare.words]]))
        log.warning(
            "%d of %d texts have frequent words only: not all of their near duplicates are found",
            n_in_part,
            len(test),
        )
    candidates = _sharing(rare.without(frequent), index)
    found = [i for i, _ in _alike(candidates, asked, known, similarity)]
    return np.unique(np.concatenate(found)).tolist() if found else []


def _borders(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    return zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)


def _similar_pairs(sets: WordSets, similarity: float) -> Iterator[Pairs]:
    rare = sets.rarest(similarity)
    n_texts = np.bincount(rare.words, minlength=max(sets.n_words, 1))
    frequent = _beyond(n_texts.astype(np.float64) ** 2)
    usual = rare.without(frequent)
    candidates = chain(
        _sharing(usual, usual.matrix().T.tocsr()),
        (pairs for word in np.flatnonzero(frequent).tolist() for pairs in _neighbours(sets, rare, word)),
    )
    yield from _alike(candidates, sets, sets, similarity)


def _beyond(n_pairs: np.ndarray) -> np.ndarray:
    """For each word whether the pairs of texts that share it and those of all words with fewer exceed MOST_PAIRS."""
    order = np.argsort(n_pairs, kind="stable")
    frequent = np.zeros(len(n_pairs), bool)
    frequent[order] = np.cumsum(n_pairs[order].astype(np.float64)) > MOST_PAIRS
    return frequent


def _sharing(rare: WordSets, index: Any) -> Iterator[Pairs]:
    """Pairs of a text in `rare` and one in `index` that share a word."""
    n_pairs = np.concatenate([[0], np.cumsum(np.diff(index.indptr)[rare.words])])[rare.starts]  # before each text
    first, n_texts = 0, len(rare.starts) - 1
    while first < n_texts:
        last = int(np.searchsorted(n_pairs, n_pairs[first] + PAIRS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), n_texts)
        found = (rare.part(first, last).matrix() @ index).tocoo()
        yield first + found.row.astype(np.int64), found.col.astype(np.int64)
        first = last


def _neighbours(sets: WordSets, rare: WordSets, word: int) -> Iterator[Pairs]:
    """Pairs of the texts that have a frequent word among their rarest, each with its neighbours in two orders: of the
    words from the rarest on, and from the most frequent on."""
    texts = np.repeat(np.arange(len(rare.starts) - 1), rare.sizes)[rare.words == word]
    rows = [sets.words[a:b].tolist() for a, b in zip(sets.starts[texts], sets.starts[texts + 1], strict=True)]
    for rows_in_order in (rows, [row[::-1] for row in rows]):
        order = texts[sorted(range(len(rows)), key=rows_in_order.__getitem__)]
        for distance in range(1, min(WINDOW, len(order) - 1) + 1):
            for start in range(0, len(order) - distance, PAIRS_AT_ONCE):
                left = order[start : min(start + PAIRS_AT_ONCE, len(order) - distance)]
                yield left, order[start + distance : start + distance + len(left)]


def _alike(candidates: Iterable[Pairs], one: WordSets, other: WordSets, similarity: float) -> Iterator[Pairs]:
    """Those pairs of a text in `one` and a text in `other` that are similar."""
    one_sizes, other_sizes, one_matrix = one.sizes, other.sizes, one.matrix()
    other_matrix = one_matrix if other is one else other.matrix()
    for left, right in candidates:
        sizes = np.sort([one_sizes[left], other_sizes[right]], axis=0)
        is_possible = sizes[0] >= similarity * sizes[1] - ROUNDING
        if one is other:
            is_possible &= left < right
        for at_once in np.array_split(np.flatnonzero(is_possible), 1 + len(left) // PAIRS_AT_ONCE):
            i, j = left[at_once], right[at_once]
            shared = np.asarray(one_matrix[i].multiply(other_matrix[j]).sum(axis=1)).ravel()
            is_similar = shared >= similarity * (one_sizes[i] + other_sizes[j] - shared) - ROUNDING
            yield i[is_similar], j[is_similar]


def _components(n_nodes: int, pairs: Iterable[Pairs]) -> np.ndarray:
    """For each node the smallest node that it is connected with, int64."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    root = np.arange(n_nodes)
    waiting: list[Pairs] = []

    def join() -> None:
        nonlocal root
        left = np.concatenate([np.arange(n_nodes), *(pair[0] for pair in waiting)])
        right = np.concatenate([root, *(pair[1] for pair in waiting)])
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(n_nodes, n_nodes))
        _, label = connected_components(graph, directed=False)
        _, smallest = np.unique(label, return_index=True)
        root = smallest[label]
        waiting.clear()

    for pair in pairs:
        waiting.append(pair)
        if sum(len(left) for left, _ in waiting) > MOST_WAITING:
            join()
    if n_nodes:
        join()
    return root
