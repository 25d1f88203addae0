"""How much of each held-out document also stands in another document, counted on every 5-gram of words.

In: document shards, and the side of each held-out document. Out: an Overlap for each held-out document and each other
one that holds at least a given share of its 5-grams. It shares no sampling, no hash and no database with dedup, so
that it sees what dedup misses: the 5-grams of the held-out documents, which are few, become a sorted index, and one
pass over all documents looks theirs up. 5-grams that many documents hold are boilerplate and tell nothing.
"""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pipeline.corpus.word_hashes import WORD, WordHashes
from pipeline.store.engine import Engine, value_of
from pipeline.store.shards import read_table

N_WORDS = 5
COMMON = 50  # a 5-gram in more documents than this is boilerplate
INDEX = "index.npy"
MULTIPLIER = np.uint64(6364136223846793005)  # Knuth's MMIX generator; odd, so that no word is lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    page_id: str  # of the held-out document
    other_page_id: str
    share: float  # of the held-out document's 5-grams, 0 to 1


@dataclass(frozen=True, slots=True)
class _Item:
    """A shard whose hits on the index go to `target`."""

    path: Path
    index: Path
    target: Path


@dataclass(frozen=True, slots=True)
class _Index:
    """Sorted distinct 5-grams of the held-out documents; those of gram g are owners[starts[g]:starts[g + 1]]."""

    page_ids: list[str]
    n_grams: np.ndarray  # a held-out document
    grams: np.ndarray
    starts: np.ndarray
    owners: np.ndarray


def find_overlaps(
    paths: Sequence[Path], held_out: Collection[str], *, min_share: float, engine: Engine, scratch: Path
) -> list[Overlap]:
    """Of `held_out` (page ids) all that share `min_share` of their 5-grams with one other document of `paths`."""
    index = _index(paths, frozenset(held_out))
    scratch.mkdir(parents=True, exist_ok=True)
    np.save(scratch / INDEX, index.grams)
    items = [_Item(path, scratch / INDEX, scratch / f"{i}.npz") for i, path in enumerate(paths)]
    for item, answer in zip(items, engine.map(_write_hits, items) if items else (), strict=True):
        value_of(answer, item.path, "overlaps were counted")
    n_documents = np.zeros(len(index.grams), np.int64)
    for item in items:
        hits, _ = _read_hits(item)
        n_documents += np.bincount(hits, minlength=len(index.grams))
    return list(_overlaps(items, index, n_documents <= COMMON, min_share))


def _overlaps(items: Iterable[_Item], index: _Index, rare: np.ndarray, min_share: float) -> Iterator[Overlap]:
    for item in items:
        hits, ends = _read_hits(item)
        others = read_table(item.path, columns=["page_id"])["page_id"].to_pylist()
        for row, other in enumerate(others):
            own = hits[ends[row] : ends[row + 1]]
            shared = _shared(index, own[rare[own]])
            for document in np.flatnonzero(shared >= np.maximum(min_share * index.n_grams, 1)).tolist():
                if index.page_ids[document] != other:
                    share = float(shared[document] / index.n_grams[document])
                    yield Overlap(page_id=index.page_ids[document], other_page_id=other, share=share)


def _shared(index: _Index, grams: np.ndarray) -> np.ndarray:
    """How many of `grams` each held-out document holds."""
    n_owners = index.starts[grams + 1] - index.starts[grams]
    first = np.repeat(index.starts[grams] - np.cumsum(n_owners) + n_owners, n_owners)
    return np.bincount(index.owners[first + np.arange(len(first))], minlength=len(index.page_ids))


def _index(paths: Iterable[Path], held_out: frozenset[str]) -> _Index:
    page_ids, sets = [], []
    hashes = WordHashes(xxhash.xxh64_intdigest)
    for path in paths:
        own = read_table(path, columns=["page_id"])["page_id"].to_pylist()
        rows = [row for row, page_id in enumerate(own) if page_id in held_out]
        if rows:
            texts = read_table(path, columns=["text"])["text"]
            page_ids += [own[row] for row in rows]
            sets += [np.unique(_runs(texts[row].as_py(), hashes)) for row in rows]
    n_grams = np.array([len(grams) for grams in sets], np.int64)
    flat = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    order = np.argsort(flat, kind="stable")
    grams, starts = np.unique(flat[order], return_index=True)
    owners = np.repeat(np.arange(len(sets)), n_grams)[order]
    return _Index(page_ids, n_grams, grams, np.append(starts, len(flat)), owners)


def _write_hits(item: _Item) -> None:
    """Runs in a worker process: of each document the places in the index of the 5-grams that it holds."""
    index = np.load(item.index, mmap_mode="r")
    hashes = WordHashes(xxhash.xxh64_intdigest)
    hits = []
    for text in read_table(item.path, columns=["text"])["text"]:
        runs = _runs(text.as_py(), hashes)
        places = np.searchsorted(index, runs)
        places[places == len(index)] = 0
        hits.append(np.unique(places[index[places] == runs] if len(index) else places[:0]))
    flat = np.concatenate(hits) if hits else np.zeros(0, np.int64)
    ends = np.cumsum([0, *map(len, hits)], dtype=np.int64)  # row i has hits[ends[i]:ends[i + 1]]
    np.savez(item.target, hits=flat.astype(np.int64), ends=ends)


def _read_hits(item: _Item) -> tuple[np.ndarray, np.ndarray]:
    with np.load(item.target) as file:
        return file["hits"], file["ends"]


def _runs(text: str, hashes: WordHashes) -> np.ndarray:
    """Hashes of the runs of 5 words in their order; of a shorter text, of all its words."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = WORD.findall(folded) or [text.strip()]
    of_words = hashes.of(words)
    runs = np.zeros(max(1, len(words) - N_WORDS + 1), np.uint64)
    for k in range(min(N_WORDS, len(words))):
        runs = runs * MULTIPLIER + of_words[k : k + len(runs)]
    return runs
