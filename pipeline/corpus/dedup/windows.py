"""Stores, in one file, the windows (hashes of all word n-grams in text order) of the texts in a candidate pair.

In: the positions of those texts. Out: `Windows`, which reads the windows of one text at a time, so that memory does
not grow with their number. Worker processes write one file per shard; the files are then joined.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.dedup.shingles import Shingler
from pipeline.corpus.dedup.signatures import checked, read_batches, text_batches
from pipeline.store.engine import Engine
from pipeline.store.shards import replacing

HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """Texts of a shard: `rows` ascending, with the rank and the number of windows of each."""

    path: Path
    rows: np.ndarray
    ranks: np.ndarray
    n_windows: np.ndarray


@dataclass(frozen=True, slots=True)
class WindowsItem:
    path: Path
    rows: np.ndarray
    n_words: int
    target: Path


class Windows(Mapping[int, np.ndarray]):
    """Rank -> uint64 hashes in the order of the text, read from `path` at each look-up."""

    def __init__(self, path: Path, ranks: np.ndarray, lengths: np.ndarray) -> None:
        order = np.argsort(ranks)
        self._ranks, self._lengths = ranks[order], lengths[order]
        self._starts = (np.cumsum(lengths) - lengths)[order]
        self._file = os.open(path, os.O_RDONLY)

    def __getitem__(self, rank: int) -> np.ndarray:
        at = int(np.searchsorted(self._ranks, rank))
        if at == len(self._ranks) or self._ranks[at] != rank:
            raise KeyError(rank)
        size = HASH_BYTES * int(self._lengths[at])
        found = os.pread(self._file, size, HASH_BYTES * int(self._starts[at]))
        while len(found) < size:  # one read returns 2 GB at most
            found += os.pread(self._file, size - len(found), HASH_BYTES * int(self._starts[at]) + len(found))
        return np.frombuffer(found, np.uint64)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ranks.tolist())

    def __len__(self) -> int:
        return len(self._ranks)

    def close(self) -> None:
        os.close(self._file)


def write_windows(
    wanted: Sequence[Wanted], n_words: int, folder: Path, engine: Engine, done: Callable[[int], None]
) -> Windows:
    """`done` is called with the number of finished shards."""
    items = [WindowsItem(one.path, one.rows, n_words, folder / f"{i}.u64") for i, one in enumerate(wanted)]
    path = folder / "windows.u64"
    with path.open("wb") as whole:
        for i, answer in enumerate(engine.map(windows_of_rows, items) if items else ()):
            checked(answer, items[i].path)
            with items[i].target.open("rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)
            items[i].target.unlink()
            done(i + 1)
    ranks = np.concatenate([np.zeros(0, np.int64), *(one.ranks for one in wanted)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(one.n_windows for one in wanted)])
    if path.stat().st_size != HASH_BYTES * lengths.sum():
        raise RuntimeError(f"{path}: {path.stat().st_size} bytes, expected {HASH_BYTES * lengths.sum()}")
    return Windows(path, ranks, lengths)


def windows_of_rows(item: WindowsItem) -> None:
    """Runs in a worker process."""
    shingler = Shingler(item.n_words)
    with replacing(item.target) as part, part.open("wb") as file:
        start = 0
        for table in read_batches(item.path, ("text",)):
            low, high = np.searchsorted(item.rows, [start, start + table.num_rows])
            for texts in text_batches(table["text"].take(item.rows[low:high] - start)):
                for windows in shingler.windows_of(texts):
                    windows.tofile(file)
            start += table.num_rows


def wanted_rows(rows: Any, starts: Sequence[int], paths: Sequence[Path]) -> Iterator[Wanted]:
    """From a table of position, rank and n_windows in the order of positions."""
    position, rank, n_windows = (rows[name].to_numpy() for name in ("position", "rank", "n_windows"))
    places = np.searchsorted(position, [*starts, np.iinfo(np.int64).max]).tolist()
    for path, start, low, high in zip(paths, starts, places, places[1:], strict=False):
        if high > low:
            yield Wanted(path, position[low:high] - start, rank[low:high], n_windows[low:high])
