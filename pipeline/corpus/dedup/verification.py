"""Verifies candidate pairs on their texts' shingles in text order, and decides which text of a pair is dropped.

In: the tables `documents`, `candidates`, `relatives` and `repeated` (near_duplicates.py), ranks best first, and the
windows of every text that has a candidate. Out: `Verified`: which text is dropped for which kept text, and families
of kept texts that still overlap, which a split must keep together.

A text is dropped only for a kept one that it was compared with, never through a chain of others. A text is a
repetition when the Jaccard index reaches min_similarity, or when a longer text contains min_containment of it, and no
content of its own would be lost. Edits of a copy are scattered; the own content of a page in a template is in one
piece:
- a passage of at least min_own_words consecutive words, and of max_own_share of the text, that the other text lacks
  keeps a text, unless many texts contain the passage (a frame), or the two texts differ both at their beginning and
  at their end (one article in two frames);
- two filled-in copies of a form are two texts: a third text contains what they share, and no other text contains what
  they do not share, on both sides.
If either text could be dropped for the other, the one with the worse rank is. A text that is only contained is
dropped whatever its rank; the texts that had been dropped for it are then judged again. A longer text that has more
than scattered words of its own is dropped only if its quality shows that these words spoil it (survivors.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.corpus.dedup.survivors import STEP

FETCH_ROWS = 10_000
CACHED_BYTES = 64_000_000  # of texts that were read last
FRAME_TEXTS = 5  # a passage that this many texts contain is a frame, not content
FRAME_SHARE = 0.8  # of the sampled shingles of such a passage
FORM_TEXTS = 3  # this many texts contain what two filled-in copies of a form share
FORM_SHARE = 0.95  # of the sampled shingles that two filled-in copies share, and of those that they do not
FORM_FEWEST = 3  # sampled shingles on each side that the other lacks; with fewer nothing is decided
EXCERPT = 10  # a text that has this many times as much of its own contains the other one as an excerpt
SPOILED = 0.75  # share of what a text has beyond another one that its lower quality must explain
LEAST_ADVANTAGE = 1.5 * STEP  # one step may be the rounding
ROUNDS = 4  # of judging again; none is dropped in the last one, because preferences among three texts can be cyclic
SIMILARITY, CONTAINMENT = "similarity", "containment"

VERDICT = pa.schema(
    [
        ("rank", pa.int64()),
        ("kept", pa.int64()),
        ("similarity", pa.float64()),
        ("containment", pa.float64()),
        ("bands_shared", pa.int32()),
        ("rule", pa.string()),
    ]
)
FAMILY = pa.schema([("rank", pa.int64()), ("family", pa.int64())])


class PairLimits(Protocol):
    """The fields of DedupConfig that decide what counts as a repetition."""

    @property
    def shingle_words(self) -> int: ...
    @property
    def sample_one_in(self) -> int: ...
    @property
    def min_similarity(self) -> float: ...
    @property
    def min_containment(self) -> float: ...
    @property
    def min_own_words(self) -> int: ...
    @property
    def max_own_share(self) -> float: ...
    @property
    def family_overlap(self) -> float: ...
    @property
    def source_priority(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Text:
    windows: np.ndarray  # hashes of the shingles in text order, with repeats
    shingles: np.ndarray  # sorted and unique


@dataclass(frozen=True, slots=True)
class Compared:
    """The comparison of two texts: similarity, whether either may be dropped for the other, and by which rule."""

    similarity: float
    containment: float  # of the smaller set in the larger
    one_goes: bool = False
    other_goes: bool = False
    rule: str = SIMILARITY


class Texts:
    """Rank -> Text; the texts read last are cached in memory."""

    def __init__(self, windows: Mapping[int, np.ndarray]) -> None:
        self.windows = windows
        self.cached: OrderedDict[int, Text] = OrderedDict()
        self.n_bytes = 0

    def __getitem__(self, rank: int) -> Text:
        if rank in self.cached:
            self.cached.move_to_end(rank)
            return self.cached[rank]
        own = np.asarray(self.windows[rank])
        text = self.cached[rank] = Text(own, np.unique(own))
        self.n_bytes += own.nbytes + text.shingles.nbytes
        while self.n_bytes > CACHED_BYTES and len(self.cached) > 2:
            _, old = self.cached.popitem(last=False)
            self.n_bytes -= old.windows.nbytes + old.shingles.nbytes
        return text


class Repeated:
    """How many texts contain a sampled shingle; 1 for those in one text only."""

    def __init__(self, database: Any, one_in: int) -> None:
        table = database.execute("SELECT key, n_texts FROM repeated ORDER BY key").fetchnumpy()
        self.keys, self.counts = np.asarray(table["key"], np.uint64), np.asarray(table["n_texts"])
        self.largest = np.uint64(2**64 // one_in - 1)

    def counts_of(self, shingles: np.ndarray) -> np.ndarray:
        """One number for each of `shingles` that is in the sample."""
        sampled = shingles[shingles <= self.largest]
        if not len(self.keys):
            return np.ones(len(sampled), np.int64)
        places = np.minimum(np.searchsorted(self.keys, sampled), len(self.keys) - 1)
        return np.where(self.keys[places] == sampled, self.counts[places], 1)


def is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """A mask of the `values` that the sorted, non-empty `ordered` contains."""
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values


@dataclass(slots=True)
class PairJudge:
    """Compares two texts by `limits`; ranks up to `borders[i]` have the quality `qualities[i]`."""

    texts: Texts
    repeated: Repeated
    limits: PairLimits
    borders: np.ndarray
    qualities: np.ndarray

    def compare(self, one: int, other: int) -> Compared:
        small, large = sorted((one, other), key=lambda rank: (len(self.texts[rank].shingles), -rank))
        few, many = self.texts[small], self.texts[large]
        is_shared = is_in(few.shingles, many.shingles)
        n_shared = int(np.count_nonzero(is_shared))
        similarity = n_shared / (len(few.shingles) + len(many.shingles) - n_shared)
        containment = n_shared / len(few.shingles)
        is_similar = similarity >= self.limits.min_similarity
        rule = SIMILARITY if is_similar else CONTAINMENT
        small_goes = large_goes = False
        if is_similar or containment >= self.limits.min_containment:
            small_goes, large_goes = self._losses(few, many, is_shared, is_similar, self._advantage(small, large))
        goes = (small_goes, large_goes) if small == one else (large_goes, small_goes)
        return Compared(similarity, containment, *goes, rule)

    def _losses(
        self, few: Text, many: Text, is_shared: np.ndarray, is_similar: bool, advantage: float
    ) -> tuple[bool, bool]:
        """Whether each text, the smaller first, may be dropped; `advantage`: its quality minus that of the larger."""
        missing_few, missing_many = ~is_in(few.windows, many.shingles), ~is_in(many.windows, few.shingles)
        passages_few = self._passages(few.windows, missing_few)
        passages_many = self._passages(many.windows, missing_many)
        is_framed = is_similar and _is_framed(passages_few, few) and _is_framed(passages_many, many)
        if self._has_own(passages_few, few, is_framed):
            return False, False
        if not is_similar:
            return True, False
        if self._is_form(few, many, is_shared):
            return False, False
        n_few, n_many = np.count_nonzero(missing_few), np.count_nonzero(missing_many)
        loses_content = EXCERPT * n_few <= n_many or self._has_own(passages_many, many, is_framed)
        loses_what_spoils = advantage >= max(LEAST_ADVANTAGE, SPOILED * n_many / len(many.windows))
        return True, not loses_content or loses_what_spoils

    def _passages(self, windows: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Rows (first window, end, words) of runs that the other text lacks, of min_own_words or more."""
        steps = np.diff(np.concatenate(([False], missing, [False])).astype(np.int8))
        starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
        spread = self.limits.shingle_words - 1  # a missing word affects this many windows before its own
        words = ends - starts - spread + spread * ((starts == 0).astype(int) + (ends == len(windows)))
        return np.stack((starts, ends, words), axis=1)[words >= self.limits.min_own_words]

    def _has_own(self, passages: np.ndarray, text: Text, is_framed: bool) -> bool:
        least = self.limits.max_own_share * len(text.windows)
        for start, end, words in passages.tolist():
            if is_framed and (start == 0 or end == len(text.windows)):
                continue
            if words >= least and not self._is_frame(text.windows[self._within(start, end, len(text.windows))]):
                return True
        return False

    def _within(self, start: int, end: int, n_windows: int) -> slice:
        """The windows of a passage that contain no word from outside it."""
        spread = self.limits.shingle_words - 1
        return slice(start + spread * (start > 0), end - spread * (end < n_windows))

    def _is_frame(self, windows: np.ndarray) -> bool:
        counts = self.repeated.counts_of(windows)
        return len(counts) > 0 and bool(np.mean(counts >= FRAME_TEXTS) >= FRAME_SHARE)

    def _is_form(self, few: Text, many: Text, is_shared: np.ndarray) -> bool:
        own = [
            self.repeated.counts_of(few.shingles[~is_shared]),
            self.repeated.counts_of(many.shingles[~is_in(many.shingles, few.shingles)]),
        ]
        if any(len(counts) < FORM_FEWEST or np.mean(counts == 1) < FORM_SHARE for counts in own):
            return False
        counts = self.repeated.counts_of(few.shingles[is_shared])
        return len(counts) > 0 and bool(np.mean(counts >= FORM_TEXTS) >= FORM_SHARE)

    def _advantage(self, one: int, other: int) -> float:
        """How much higher the quality of `one` is, -1 if it is not; the quality of an accepted corpus is unknown."""
        if min(one, other) <= 0:
            return -1.0
        qualities = self.qualities[np.searchsorted(self.borders, (one, other))]
        return float(qualities[0] - qualities[1]) if qualities[0] > qualities[1] else -1.0


def _is_framed(passages: np.ndarray, text: Text) -> bool:
    return bool(len(passages) and passages[0][0] == 0 and passages[-1][1] == len(text.windows) and len(passages) > 1)


class Verified:
    """Which text was dropped for which; ranks up to 0 belong to an accepted corpus and are never dropped."""

    def __init__(self, first: int, last: int) -> None:
        n = max(0, last - first + 1)
        self.first = first
        self.kept = np.arange(first, first + n)  # for each rank the one it was dropped for; itself if it is kept
        self.parents = np.arange(first, first + n)  # of families
        self.measured = np.zeros((n, 2))
        self.bands = np.zeros(n, np.int32)
        self.contained = np.zeros(n, bool)
        self.n_compared = 0

    def kept_for(self, rank: int) -> int:
        while (kept := int(self.kept[rank - self.first])) != rank:
            rank = kept
        return rank

    def drop(self, rank: int, kept: int, pair: Compared, bands_shared: int) -> None:
        row = rank - self.first
        self.kept[row] = kept
        self.measured[row] = pair.similarity, pair.containment
        self.bands[row] = bands_shared
        self.contained[row] = pair.rule == CONTAINMENT

    def keep(self, rank: int) -> None:
        self.kept[rank - self.first] = rank

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self.parents[high - self.first] = low

    def _root(self, rank: int) -> int:
        while (parent := int(self.parents[rank - self.first])) != rank:
            self.parents[rank - self.first] = self.parents[parent - self.first]
            rank = parent
        return rank

    def gone(self) -> np.ndarray:
        """Ranks, ascending."""
        return np.flatnonzero(self.kept != np.arange(len(self.kept)) + self.first) + self.first

    def stale(self) -> np.ndarray:
        """Ranks of texts that were dropped for one that has been dropped since."""
        gone = self.gone()
        kept = self.kept[gone - self.first]
        return gone[self.kept[kept - self.first] != kept]

    @property
    def verdicts(self) -> pa.Table:
        rows = self.gone() - self.first
        rules = np.where(self.contained[rows], CONTAINMENT, SIMILARITY).tolist()
        columns = [rows + self.first, self.kept[rows], *self.measured[rows].T.copy(), self.bands[rows], rules]
        return pa.table([pa.array(c) for c in columns], names=VERDICT.names).cast(VERDICT)

    def families(self) -> pa.Table:
        """One row per kept text that overlaps another; the family is the best rank among them."""
        rows = np.flatnonzero(self.parents != np.arange(len(self.parents)) + self.first)
        members = np.union1d(rows, self.parents[rows] - self.first)
        members = members[self.kept[members] == members + self.first]
        roots = np.array([self._root(rank) for rank in (members + self.first).tolist()], np.int64)
        order, places = np.unique(roots, return_inverse=True)
        best = np.full(len(order), np.iinfo(np.int64).max)
        np.minimum.at(best, places, members + self.first)
        return pa.table([members + self.first, best[places]], schema=FAMILY)


def verify(
    database: Any, windows: Mapping[int, np.ndarray], limits: PairLimits, done: Callable[[int], None]
) -> Verified:
    """Judge every text that has candidates, best rank first."""
    ((first, last),) = database.execute("SELECT coalesce(min(rank), 1), coalesce(max(rank), 0) FROM sides").fetchall()
    steps = database.execute(
        "SELECT max(rank) AS border, quality FROM documents GROUP BY quality ORDER BY border"
    ).fetchnumpy()
    repeated = Repeated(database, limits.sample_one_in)
    judge = PairJudge(Texts(windows), repeated, limits, np.asarray(steps["border"]), np.asarray(steps["quality"]))
    found = Verified(first, last)
    for rank, pairs in groupby(_rows(database, "rank, kept, bands_shared", "candidates"), key=lambda pair: pair[0]):
        _place(found, judge, rank, ((kept, bands) for _, kept, bands in pairs))
        done(rank)
    n_rounds = 0
    while len(stale := found.stale()):
        n_rounds += 1
        _place_again(found, judge, database, stale, may_beat=n_rounds < ROUNDS)
    for rank, kept in _rows(database, "rank, kept", "relatives"):
        if found.kept_for(rank) == rank and found.kept_for(kept) == kept:
            found.join(rank, kept)
    return found


def _place(
    found: Verified, judge: PairJudge, rank: int, partners: Iterable[tuple[int, int]], *, may_beat: bool = True
) -> None:
    """Drop `rank` for the most similar kept text, or keep it and drop those that are repetitions of it alone."""
    best: tuple[tuple[float, float, int], Compared, int, int] | None = None
    beaten, related, seen = [], [], {rank}
    for partner, bands in partners:
        kept = found.kept_for(partner)
        if kept in seen:
            continue
        seen.add(kept)
        pair = judge.compare(rank, kept)
        found.n_compared += 1
        shared = bands if kept == partner else 0
        if pair.one_goes and (kept < rank or not pair.other_goes or not may_beat):
            key = (pair.similarity, pair.containment, -kept)
            if best is None or key > best[0]:
                best = (key, pair, kept, shared)
        elif pair.other_goes and kept > 0 and may_beat:
            beaten.append((kept, pair, shared))
        elif pair.containment >= judge.limits.family_overlap:
            related.append(kept)
    if best is not None:
        found.drop(rank, best[2], best[1], best[3])
        return
    for kept, pair, shared in beaten:
        found.drop(kept, rank, pair, shared)
    for kept in related:
        found.join(rank, kept)


def _place_again(found: Verified, judge: PairJudge, database: Any, stale: np.ndarray, *, may_beat: bool) -> None:
    """Compare texts whose kept text was dropped with its replacement and with all their candidates."""
    partners = {int(rank): [(found.kept_for(int(rank)), 0)] for rank in stale}
    database.register("stale", pa.table({"rank": stale}))
    query = """
        SELECT rank AS mine, kept AS partner, bands_shared FROM candidates SEMI JOIN stale USING (rank)
        UNION ALL
        SELECT kept, c.rank, bands_shared FROM candidates AS c JOIN stale ON stale.rank = c.kept
        ORDER BY 1, 2
    """
    for rank, partner, bands in database.execute(query).fetchall():
        partners[rank].append((partner, bands))
    database.unregister("stale")
    for rank, own in partners.items():
        found.keep(rank)
        _place(found, judge, rank, own, may_beat=may_beat)


def _rows(database: Any, columns: str, table: str) -> Iterator[tuple[int, ...]]:
    reader = database.cursor().execute(f"SELECT {columns} FROM {table} ORDER BY rank, kept")
    while rows := reader.fetchmany(FETCH_ROWS):
        yield from rows
