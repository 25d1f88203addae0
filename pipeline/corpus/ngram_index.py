"""The inverted index of word n-grams that every comparison of texts uses: n-gram hash -> texts that contain it.

In: the n-gram hashes of a few texts. Out: an NgramIndex, which worker processes map from its folder and ask for the
n-grams of all other texts. How words are found and hashed is the caller's choice: `split` deliberately uses another
hash than `dedup`, so that it can find what that one missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.store.shards import replacing

MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's MMIX generator; odd, so that no word is lost


@dataclass(frozen=True, slots=True)
class NgramIndex:
    """The texts that contain n-gram i are owners[starts[i]:starts[i + 1]], as numbers in the order of the texts."""

    ngrams: np.ndarray  # uint64, sorted, distinct
    starts: np.ndarray  # int64, one more than n-grams
    owners: np.ndarray  # int64
    sizes: np.ndarray  # int64, distinct n-grams of each text

    def places(self, ngrams: np.ndarray) -> np.ndarray:
        """The number of each of `ngrams` in the index, -1 for those that it does not contain."""
        return places_in(self.ngrams, ngrams)

    def owners_of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a position in `places` and a text, one for every text that contains that n-gram."""
        n_owners = self.starts[places + 1] - self.starts[places]
        first = np.repeat(self.starts[places] - np.cumsum(n_owners) + n_owners, n_owners)
        return np.repeat(np.arange(len(places)), n_owners), self.owners[first + np.arange(len(first))]

    def n_shared(self, places: np.ndarray) -> np.ndarray:
        """How many of the n-grams at `places` each text contains."""
        return np.bincount(self.owners_of(places)[1], minlength=len(self.sizes))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            with replacing(folder / f"{field.name}.npy") as part, part.open("wb") as file:
                np.save(file, getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(*(np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)))


def ngram_index(sets: Sequence[np.ndarray]) -> NgramIndex:
    """The index of texts that are given as their distinct n-gram hashes (uint64)."""
    sizes = np.array([len(one) for one in sets], np.int64)
    flat = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    order = np.argsort(flat, kind="stable")
    ngrams, starts = np.unique(flat[order], return_index=True)
    return NgramIndex(ngrams, np.append(starts, len(flat)), np.repeat(np.arange(len(sets)), sizes)[order], sizes)


def ngram_hashes(hashes: np.ndarray, n_words: int) -> np.ndarray:
    """A hash (uint64) of every `n_words` consecutive words in their order, from the hashes of the words."""
    ngrams = np.zeros(max(0, len(hashes) - n_words + 1), np.uint64)
    for k in range(n_words):
        ngrams = ngrams * MULTIPLIER + hashes[k : k + len(ngrams)]
    return ngrams


def places_in(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The position of each of `values` in `ordered`, -1 for those that are not in it."""
    if not len(ordered):
        return np.full(len(values), -1)
    places = np.searchsorted(ordered, values)
    places[places == len(ordered)] = 0
    return np.where(ordered[places] == values, places, -1)
