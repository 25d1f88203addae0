"""Finds documents that repeat given texts, wholly or partly, from all word n-grams that they share.

In: texts by page id, and document shards. Out: a `Copy` for each document and each text that share enough. Nothing is
sampled: the runs of the given texts, which are few, become a sorted index, and worker processes look up the runs of
all shards in one pass. Frequent runs count too, because a text with many copies is exactly what is searched for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.corpus.dedup.shingles import Shingler
from pipeline.corpus.dedup.signatures import text_batches
from pipeline.corpus.ngram_index import NgramIndex, ngram_index
from pipeline.store.engine import Engine, value_of
from pipeline.store.shards import read_table

INDEX = "texts"


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyLimits:
    """The limits for a copy; the first two as in dedup.DedupConfig."""

    n_words: int = 5  # words per run
    min_similarity: float = 0.8  # Jaccard index from which a document is a copy
    min_containment: float = 0.9  # share of a document that is in the text, from which it is a copy
    min_held: float = 0.2  # share of the text that a longer document contains, from which it is reported


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """A document that repeats one of the texts."""

    of: str  # page id of the text
    page_id: str  # of the document, or another key
    similarity: float  # Jaccard index of their runs, 0 to 1
    held: float  # share of the text that the document contains, 0 to 1
    part: float  # share of the document that is in the text, 0 to 1
    is_copy: bool  # by the limits; otherwise it contains a part of the text besides other content


@dataclass(frozen=True, slots=True)
class _Item:
    path: Path
    index: Path
    texts: tuple[str, ...]  # page ids
    limits: CopyLimits
    key: str


def find_copies(
    texts: Mapping[str, str],
    paths: Sequence[Path],
    limits: CopyLimits,
    *,
    engine: Engine,
    scratch: Path,
    key: str = "page_id",
) -> list[Copy]:
    """Copies in the order of the shards. A text is not a copy of itself; the column `key` identifies it."""
    if not texts:
        return []
    flat, n_runs, _ = Shingler(limits.n_words).sets(list(texts.values()))
    ngram_index(np.split(flat, np.cumsum(n_runs)[:-1])).save(scratch / INDEX)
    items = [_Item(path, scratch / INDEX, tuple(texts), limits, key) for path in paths]
    copies: list[Copy] = []
    for item, answer in zip(items, engine.map(copies_in_shard, items) if items else (), strict=True):
        copies += value_of(answer, item.path, "copies were searched for")
    return copies


def copies_in_shard(item: _Item) -> list[Copy]:
    """Finds the copies in one batch of documents; runs in a worker process."""
    index = NgramIndex.load(item.index)
    table = read_table(item.path, columns=[item.key, "text"])
    page_ids = iter(table[item.key].to_pylist())
    shingler, copies = Shingler(item.limits.n_words), []
    for batch in text_batches(table["text"]):
        flat, n_runs, _ = shingler.sets(batch)
        for runs in np.split(flat, np.cumsum(n_runs)[:-1]):
            copies += _copies_of(next(page_ids), runs, index, item)
    return copies


def _copies_of(page_id: str, runs: np.ndarray, index: NgramIndex, item: _Item) -> Iterator[Copy]:
    places, limits = index.places(runs), item.limits
    n_shared = index.n_shared(places[places >= 0])
    similarities = n_shared / (len(runs) + index.sizes - n_shared)
    held, part = n_shared / index.sizes, n_shared / len(runs)
    is_copy = (similarities >= limits.min_similarity) | (part >= limits.min_containment)
    for i in np.flatnonzero(is_copy | (held >= limits.min_held)).tolist():
        if item.texts[i] != page_id:
            yield Copy(
                of=item.texts[i],
                page_id=page_id,
                similarity=float(similarities[i]),
                held=float(held[i]),
                part=float(part[i]),
                is_copy=bool(is_copy[i]),
            )
