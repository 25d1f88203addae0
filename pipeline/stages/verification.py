"""Which candidate pairs are repetitions, judged on the shingles of their texts, and which text of each goes.

In: the tables `candidates` and `relatives` (near_duplicates.py), ranks best first, and the shingles of
every text that has a candidate. Out: `Verified`. In the order of rank a text is dropped only when it is verified
against one that is kept, never by a chain of others. Kept texts that still overlap become one family, which a split
must not cut.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

FETCH_ROWS = 10_000

VERDICT = pa.schema(
    [
        ("rank", pa.int64()),
        ("kept", pa.int64()),
        ("similarity", pa.float64()),
        ("containment", pa.float64()),
        ("bands_shared", pa.int32()),
    ]
)
FAMILY = pa.schema([("rank", pa.int64()), ("family", pa.int64())])


class Limits(Protocol):
    """The fields of dedup.DedupConfig that decide what counts as a repetition."""

    @property
    def min_similarity(self) -> float: ...
    @property
    def min_containment(self) -> float: ...
    @property
    def family_overlap(self) -> float: ...
    @property
    def source_priority(self) -> tuple[str, ...]: ...


@dataclass(slots=True)
class Verified:
    """What the verification found: rows of VERDICT and FAMILY, and how many pairs were compared."""

    verdicts: dict[int, dict[str, Any]] = field(default_factory=dict)  # by the rank of the text that goes
    parents: dict[int, int] = field(default_factory=dict)  # of kept ranks that overlap; a root is its own parent
    n_compared: int = 0

    def root(self, rank: int) -> int:
        while (parent := self.parents.setdefault(rank, rank)) != rank:
            self.parents[rank] = self.parents[parent]
            rank = parent
        return rank

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.parents[high] = low

    def families(self) -> list[dict[str, int]]:
        return [{"rank": rank, "family": self.root(rank)} for rank in sorted(self.parents)]


def verify(
    database: Any, shingles: Mapping[int, np.ndarray], limits: Limits, done: Callable[[int], None]
) -> Verified:
    """Judge every text that has candidates, best rank first, by its shingles and those of texts that are kept."""
    found = Verified()
    for rank, pairs in groupby(_rows(database, "rank, kept, bands_shared", "candidates"), key=lambda pair: pair[0]):
        best, related = None, []
        for _, kept, bands_shared in pairs:
            if kept in found.verdicts:
                continue
            similarity, containment, repeats = compare(shingles[kept], shingles[rank], limits)
            found.n_compared += 1
            if repeats and (best is None or (similarity, containment) > best[:2]):
                best = (similarity, containment, kept, bands_shared)
            if containment >= limits.family_overlap:
                related.append(kept)
        if best is None:
            for kept in related:
                found.join(rank, kept)
        else:
            verdict = (rank, best[2], best[0], best[1], best[3])
            found.verdicts[rank] = dict(zip(VERDICT.names, verdict, strict=True))
        done(rank)
    for rank, kept in _rows(database, "rank, kept", "relatives"):
        if rank not in found.verdicts and kept not in found.verdicts:
            found.join(rank, kept)
    return found


def compare(kept: np.ndarray, other: np.ndarray, limits: Limits) -> tuple[float, float, bool]:
    """Jaccard index, containment of the smaller set in the larger, and whether `other` may go for `kept`."""
    shared = len(np.intersect1d(kept, other, assume_unique=True))
    similarity = shared / (len(kept) + len(other) - shared)
    containment = shared / min(len(kept), len(other))
    # a larger set is never dropped as contained: what it says beside would be lost
    contained = len(other) <= len(kept) and containment >= limits.min_containment
    return similarity, containment, similarity >= limits.min_similarity or contained


def _rows(database: Any, columns: str, table: str) -> Iterator[tuple[int, ...]]:
    reader = database.cursor().execute(f"SELECT {columns} FROM {table} ORDER BY rank, kept")
    while rows := reader.fetchmany(FETCH_ROWS):
        yield from rows
