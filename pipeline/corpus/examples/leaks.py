"""Leak checks: near duplicates among short texts, and test examples that a model saw in training.

In: texts. Out: groups of near duplicates (for splitting), and what is on two sides of a split (for the checks).

`duplicate_groups` finds its pairs by prefix filtering (Bayardo, Ma and Srikant 2007): two sets with a Jaccard index
of at least t share one of their rarest len - ceil(t * len) + 1 words, so only texts that share a rare word are
compared. `leaked` compares all pairs by sparse matrix products instead, so that the check does not repeat an error of
the code that it checks. scipy is imported where it is used.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import xxhash

from pipeline.corpus.ngram_index import ngram_hashes, ngram_index
from pipeline.corpus.word_hashes import WordHashes

SIMILARITY = 0.8  # Jaccard index of word sets from which two texts are near duplicates
OVERLAP_WORDS = 8  # as in the 8-grams of arXiv:2112.11446 appendix A.1.1 (13 in GPT-3: too long for a headline)
TRAIN = "train"
KINDS = ("texts", "clusters", "families", "sections")  # groups that a split must keep on one side
SHORTEST_WORDS = 4  # a shorter text occurs anywhere by chance
ROWS_AT_ONCE = 512  # rows per sparse product: bounds its memory
ROUNDING = 1e-9  # 0.7 * 10 is not 7 in floating point
_LETTERS = re.compile(r"[^\W\d_]+")
_WORDS = re.compile(r"\w+")
_DIRECTORY = re.compile(r"([^?#]*)/[^/?#]+/*(?:[?#].*)?", re.DOTALL)  # the part of a URL before the last name


def normalised(text: str) -> str:
    """`text` in a form that is equal for texts that differ only in case, white space or Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def letters(text: str) -> tuple[str, ...]:
    """The words of a text without digits and punctuation; all its words if nothing would remain."""
    plain = normalised(text)
    return tuple(_LETTERS.findall(plain)) or tuple(plain.split())


def duplicate_groups(texts: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    """For each text the index of the first text of its group; near duplicates of near duplicates are one group."""
    root = list(range(len(texts)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first: dict[frozenset[str], int] = {}
    for i, text in enumerate(texts):
        root[i] = first.setdefault(frozenset(letters(text)), i)
    for i, j in _similar_pairs(list(first.items()), similarity):
        low, high = sorted((find(i), find(j)))
        root[high] = low
    return [find(i) for i in range(len(texts))]


def _similar_pairs(sets: list[tuple[frozenset[str], int]], similarity: float) -> Iterable[tuple[int, int]]:
    frequency = Counter(word for words, _ in sets for word in words)
    by_word: dict[str, list[int]] = defaultdict(list)  # indices in `sets` whose prefix contains the word
    for place in sorted(range(len(sets)), key=lambda place: len(sets[place][0])):
        words, index = sets[place]
        rare_first = sorted(words, key=lambda word: (frequency[word], word))
        prefix = rare_first[: len(words) - math.ceil(similarity * len(words) - ROUNDING) + 1]
        candidates = {other for word in prefix for other in by_word[word]}
        for other in sorted(candidates):
            others = sets[other][0]
            if len(others) < similarity * len(words) - ROUNDING:
                continue  # too short to be similar, whatever it contains
            shared = len(words & others)
            if shared >= similarity * (len(words) + len(others) - shared) - ROUNDING:
                yield sets[other][1], index
        for word in prefix:
            by_word[word].append(place)


def leaked(train: Sequence[str], test: Sequence[str], similarity: float = SIMILARITY) -> list[int]:
    """Indices of the test texts that have a near duplicate among the training texts; should be empty."""
    import scipy.sparse

    vocabulary: dict[str, int] = {}
    matrices = []
    for texts in (train, test):
        rows = [sorted({vocabulary.setdefault(word, len(vocabulary)) for word in letters(text)}) for text in texts]
        offsets = np.cumsum([0, *map(len, rows)])
        columns = np.fromiter((column for row in rows for column in row), np.int64, offsets[-1])
        matrices.append((np.ones(len(columns), np.int32), columns, offsets))
    of_train, of_test = (
        scipy.sparse.csr_array(parts, shape=(len(parts[2]) - 1, max(len(vocabulary), 1))) for parts in matrices
    )
    train_size, test_size = (np.diff(parts[2]) for parts in matrices)
    found = []
    for first in range(0, len(test), ROWS_AT_ONCE):
        shared = (of_test[first : first + ROWS_AT_ONCE] @ of_train.T).tocoo()
        union = test_size[first + shared.row] + train_size[shared.col] - shared.data
        found.append(first + shared.row[shared.data >= similarity * union - ROUNDING])
    return np.unique(np.concatenate(found)).tolist() if found else []


def occurring(examples: Sequence[str], documents: Iterable[str]) -> list[int]:
    """Indices of the examples that share a run of 8 words with a document (a shorter one: all its words).

    Examples of fewer than 4 words are never found: such a run occurs by chance.
    """
    hashes = WordHashes(xxhash.xxh3_64_intdigest)
    sets: dict[int, list[np.ndarray]] = defaultdict(lambda: [np.zeros(0, np.uint64)] * len(examples))
    for i, example in enumerate(examples):
        words = _WORDS.findall(normalised(example))
        if (n_words := min(len(words), OVERLAP_WORDS)) >= SHORTEST_WORDS:
            sets[n_words][i] = np.unique(ngram_hashes(hashes.of(words), n_words))
    indexes = {n_words: ngram_index(own) for n_words, own in sets.items()}
    found: set[int] = set()
    for document in documents:
        of_words = hashes.of(_WORDS.findall(normalised(document)))
        for n_words, index in indexes.items():
            places = index.places(ngram_hashes(of_words, n_words))
            found.update(index.owners_of(places[places >= 0])[1].tolist())
    return sorted(found)


def torn_groups(
    documents: Callable[[], Iterable[tuple[str, str, int, str, str, str, str]]], max_section_fraction: float
) -> dict[str, set[str]]:
    """Names of the groups of documents that are on more than one side of a split, by kind; should all be empty.

    Each call of `documents` returns all of them: (source, URL, words, id, cluster id, family id, side). A section is
    the documents of one directory, unless it contains more than `max_section_fraction` of the words of a source.
    """
    held_out: dict[tuple[str, str], set[str]] = defaultdict(
        set
    )  # (kind, name) -> sides; only few, unlike those of train
    words: dict[str, Counter[str]] = defaultdict(Counter)  # source -> directory -> words
    totals: Counter[str] = Counter()
    for source, url, n_words, *ids, side in documents():
        groups = list(_groups(url, *ids))
        totals[source] += n_words
        words[source].update({name: n_words for kind, name in groups if kind == "sections"})
        if side != TRAIN:
            for group in groups:
                held_out[group].add(side)
    for _, url, _, *ids, side in documents():
        for group in _groups(url, *ids):
            if side == TRAIN and group in held_out:
                held_out[group].add(side)
    too_large = {
        name
        for source, of_source in words.items()
        for name, n_words in of_source.items()
        if not max_section_fraction or n_words > max_section_fraction * totals[source]
    }
    torn = {group for group, sides in held_out.items() if len(sides) > 1}
    torn -= {("sections", name) for name in too_large}
    return {kind: {name for of_kind, name in torn if of_kind == kind} for kind in KINDS}


def _groups(url: str, text_id: str, cluster_id: str, family_id: str) -> Iterator[tuple[str, str]]:
    """Kind and name of the groups that a document belongs to."""
    yield from zip(KINDS, (text_id, cluster_id, family_id), strict=False)
    match = _DIRECTORY.fullmatch(url)
    if match and match[1] and not match[1].endswith(":/"):
        yield "sections", match[1]
