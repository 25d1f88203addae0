"""Divides examples into train, validation and test, so that nothing leaks and every label has its share.

In: texts, groups, given splits and labels of the kept rows. Out: a split and a group id per row. Rows of one group,
which near duplicates and rows with the same value of the setting `group` form, stay in one split.

A hash of its group id gives every group a place from 0 to 1; test has the groups of the lowest places, validation the
next ones, so that an added row moves no other. That alone would leave a label of few examples out of a split, or give
it twice its share. So the groups are divided label by label, and where the number that the hash gives differs by more
than a fifth from the share, it is that share. A group with several labels counts for its rarest one, as in iterative
stratification (Sechidis, Tsoumakas and Vlahavas 2011).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xxhash

from pipeline.corpus.examples.near_texts import duplicate_groups, leaked
from pipeline.corpus.examples.protocol import ExamplesConfig
from pipeline.store.records import SPLITS

TRAIN, VALIDATION, TEST = SPLITS
TOLERANCE = 0.2  # by which the number of groups in a split may differ from its share
FEWEST_GROUPS = 5  # of a label that is divided by itself
ROUNDING = 1e-9


def leaking(texts: Sequence[str], splits: Sequence[str], similarity: float) -> dict[int, str]:
    """Places of rows that have a near duplicate in a given split, with the drop reason: what is in test stays there,
    then what is in validation."""
    found: dict[int, str] = {}
    for split, others in ((TEST, (VALIDATION, TRAIN)), (VALIDATION, (TRAIN,))):
        held = [place for place, one in enumerate(splits) if one == split]
        rest = [place for place, one in enumerate(splits) if one in others and place not in found]
        if held and rest:
            near = leaked([texts[place] for place in held], [texts[place] for place in rest], similarity)
            found |= {rest[i]: f"near_duplicate_of_{split}" for i in near}
    return dict(sorted(found.items()))


def row_groups(
    texts: Sequence[str], groups: Sequence[str | None], splits: Sequence[str], similarity: float
) -> list[int]:
    """For each row the first row of its group."""
    near = duplicate_groups(texts, similarity)
    if not any(groups):
        return near
    first: dict[tuple[str, str], int] = {}
    same = [i if group is None else first.setdefault((splits[i], group), i) for i, group in enumerate(groups)]
    return _joined(near, same)


def _joined(one: Sequence[int], other: Sequence[int]) -> list[int]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_rows = len(one)
    rows = np.tile(np.arange(n_rows), 2)
    graph = coo_array((np.ones(2 * n_rows, np.int8), (rows, np.concatenate([one, other]))), shape=(n_rows, n_rows))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    return first[label].tolist()


def place_of(group_id: str, seed: int) -> float:
    """From 0 to 1, by the hash of the group alone."""
    return xxhash.xxh3_64_intdigest(group_id.encode(), seed=seed % 2**64) / 2**64


def divided(
    group_ids: Sequence[str], strata: Sequence[Sequence[str]], given: Sequence[str], cfg: ExamplesConfig
) -> list[str]:
    """The split of each row: the given one, or for rows of train, of which a split that nobody gave takes a part."""
    fractions = {TEST: cfg.test_fraction, VALIDATION: cfg.validation_fraction}
    wanted = {split: fraction for split, fraction in fractions.items() if split not in given}
    own = [place for place, split in enumerate(given) if split == TRAIN]
    split_of = group_splits([group_ids[i] for i in own], [strata[i] for i in own], wanted, cfg.seed)
    return [split_of[group_ids[i]] if split == TRAIN else split for i, split in enumerate(given)]


def group_splits(
    group_ids: Sequence[str], strata: Sequence[Sequence[str]], wanted: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Group id -> split, for the group and the labels of each row and the fraction of each split beside train."""
    index: dict[str, int] = {}
    groups = np.array([index.setdefault(group, len(index)) for group in group_ids], np.int64)
    sizes = np.bincount(groups, minlength=len(index))
    places = np.array([place_of(group, seed) for group in index])
    splits = np.zeros(len(index), np.int64)  # numbers of [train, *wanted]
    for n_groups, own in _by_stratum(_rarest(groups, strata, len(index)), places):
        # a group that alone exceeds the share of a split is trained on, unless all are that large
        largest = max(1.0, min(wanted.values(), default=0) * sizes[own].sum())
        order = own[np.lexsort((places[own], sizes[own] > largest))]
        start, border = 0, 0.0
        for number, fraction in enumerate(wanted.values(), 1):
            border += fraction
            by_hash = int((places[own] < border).sum()) - start
            end = min(start + _number(by_hash, fraction * n_groups), len(own))
            splits[order[start:end]] = number
            start = end
    names = [TRAIN, *wanted]
    return {group: names[number] for group, number in zip(index, splits.tolist(), strict=True)}


def _number(by_hash: int, share: float) -> int:
    """The number of groups in a split: that of the hash, within a fifth of the share."""
    rounded = math.floor(share + 0.5)
    low = min(rounded, math.ceil((1 - TOLERANCE) * share - ROUNDING))
    high = max(rounded, math.floor((1 + TOLERANCE) * share + ROUNDING))
    return min(max(by_hash, low), high)


def _rarest(groups: np.ndarray, strata: Sequence[Sequence[str]], n_groups: int) -> np.ndarray:
    """For each group the rank of its rarest label among all labels, counted in groups; int64."""
    number: dict[str, int] = {}
    labels = [[number.setdefault(label, len(number)) for label in own or ("",)] for own in strata]
    flat = np.fromiter((label for own in labels for label in own), np.int64)
    pairs = np.unique(np.repeat(groups, [len(own) for own in labels]) * max(len(number), 1) + flat)
    of_group, label = np.divmod(pairs, max(len(number), 1))
    counts = np.bincount(label, minlength=len(number))
    names = list(number)
    rank = np.zeros(len(names), np.int64)
    rank[sorted(range(len(names)), key=lambda i: (counts[i], names[i]))] = np.arange(len(names))
    rarest = np.full(n_groups, len(names), np.int64)
    np.minimum.at(rarest, of_group, rank[label])
    return rarest


def _by_stratum(stratum: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The groups of each stratum that can be held out, and how many it has in all: one of each stays in train.

    Strata of few groups are divided together.
    """
    order = np.lexsort((places, stratum))  # the group of the highest place of a stratum is its last
    few: list[np.ndarray] = []
    n_few = 0
    for own in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
        if len(own) < FEWEST_GROUPS:
            few.append(own[:-1])
            n_few += len(own)
        else:
            yield len(own), own[:-1]
    if few:
        yield n_few, np.concatenate(few)
