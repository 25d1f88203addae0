"""Measures which fraction of the word 5-grams of each held-out document occurs in another document.

In: document shards, and the page ids of the held-out documents. Out: an Overlap for each held-out document and each
other document that contains at least a given share of its 5-grams. It shares no sampling, no hash and no database
with dedup, so that it finds what dedup misses: the 5-grams of the few held-out documents become an index, and one
pass over all documents looks theirs up. 5-grams that many documents contain are boilerplate and do not count.
"""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pipeline.corpus.ngram_index import NgramIndex, ngram_hashes, ngram_index
from pipeline.corpus.word_hashes import WORD, WordHashes
from pipeline.store.engine import Engine, value_of
from pipeline.store.shards import read_table

N_WORDS = 5
COMMON = 50  # a 5-gram in more documents than this is boilerplate
INDEX = "index"


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    page_id: str  # of the held-out document
    other_page_id: str
    share: float  # of the held-out document's 5-grams, 0 to 1


@dataclass(frozen=True, slots=True)
class _Item:
    """A shard whose hits on the index are written to `target`."""

    path: Path
    index: Path
    target: Path


def find_overlaps(
    paths: Sequence[Path], held_out: Collection[str], *, min_share: float, engine: Engine, scratch: Path
) -> list[Overlap]:
    """All documents of `held_out` (page ids) that share `min_share` of their 5-grams with one other document."""
    page_ids, index = _held_out(paths, frozenset(held_out))
    index.save(scratch / INDEX)
    items = [_Item(path, scratch / INDEX, scratch / f"{i}.npz") for i, path in enumerate(paths)]
    for item, answer in zip(items, engine.map(_write_hits, items) if items else (), strict=True):
        value_of(answer, item.path, "overlaps were counted")
    n_documents = np.zeros(len(index.ngrams), np.int64)
    for item in items:
        hits, _ = _read_hits(item)
        n_documents += np.bincount(hits, minlength=len(index.ngrams))
    return list(_overlaps(items, page_ids, index, n_documents <= COMMON, min_share))


def _overlaps(
    items: Iterable[_Item], page_ids: Sequence[str], index: NgramIndex, rare: np.ndarray, min_share: float
) -> Iterator[Overlap]:
    for item in items:
        hits, ends = _read_hits(item)
        others = read_table(item.path, columns=["page_id"])["page_id"].to_pylist()
        for row, other in enumerate(others):
            own = hits[ends[row] : ends[row + 1]]
            shared = index.n_shared(own[rare[own]])
            for document in np.flatnonzero(shared >= np.maximum(min_share * index.sizes, 1)).tolist():
                if page_ids[document] != other:
                    share = float(shared[document] / index.sizes[document])
                    yield Overlap(page_id=page_ids[document], other_page_id=other, share=share)


def _held_out(paths: Iterable[Path], held_out: frozenset[str]) -> tuple[list[str], NgramIndex]:
    """Page ids of the held-out documents, and the index of their 5-grams."""
    page_ids, sets = [], []
    hashes = WordHashes(xxhash.xxh64_intdigest)
    for path in paths:
        own = read_table(path, columns=["page_id"])["page_id"].to_pylist()
        rows = [row for row, page_id in enumerate(own) if page_id in held_out]
        if rows:
            texts = read_table(path, columns=["text"])["text"]
            page_ids += [own[row] for row in rows]
            sets += [np.unique(_ngrams(texts[row].as_py(), hashes)) for row in rows]
    return page_ids, ngram_index(sets)


def _write_hits(item: _Item) -> None:
    """Runs in a worker process: for each document, the positions in the index of the 5-grams that it contains."""
    index = NgramIndex.load(item.index)
    hashes = WordHashes(xxhash.xxh64_intdigest)
    hits = []
    for text in read_table(item.path, columns=["text"])["text"]:
        places = np.unique(index.places(_ngrams(text.as_py(), hashes)))
        hits.append(places[places >= 0])
    flat = np.concatenate(hits) if hits else np.zeros(0, np.int64)
    ends = np.cumsum([0, *map(len, hits)], dtype=np.int64)  # row i has hits[ends[i]:ends[i + 1]]
    np.savez(item.target, hits=flat.astype(np.int64), ends=ends)


def _read_hits(item: _Item) -> tuple[np.ndarray, np.ndarray]:
    with np.load(item.target) as file:
        return file["hits"], file["ends"]


def _ngrams(text: str, hashes: WordHashes) -> np.ndarray:
    """Hashes of the 5-grams of a text in their order; of a shorter text, of all its words."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    words = WORD.findall(folded) or [text.strip()]
    return ngram_hashes(hashes.of(words), min(N_WORDS, len(words)))
