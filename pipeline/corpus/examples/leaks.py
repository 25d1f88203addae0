"""Leak checks: test examples that a model saw in training, and groups of documents on two sides of a split.

In: texts, or rows of documents. Out: what is on two sides, for the checks. near_texts.py finds near duplicates among
short texts.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import xxhash

from pipeline.corpus.examples.near_texts import normalised
from pipeline.corpus.ngram_index import ngram_hashes, ngram_index
from pipeline.corpus.word_hashes import WordHashes

OVERLAP_WORDS = 8  # as in the 8-grams of arXiv:2112.11446 appendix A.1.1 (13 in GPT-3: too long for a headline)
TRAIN = "train"
KINDS = ("texts", "clusters", "families", "sections")  # groups that a split must keep on one side
SHORTEST_WORDS = 4  # a shorter text occurs anywhere by chance
_WORDS = re.compile(r"\w+")
_DIRECTORY = re.compile(r"([^?#]*)/[^/?#]+/*(?:[?#].*)?", re.DOTALL)  # the part of a URL before the last name


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
