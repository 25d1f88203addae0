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
from collections import Counter, defaultdict
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
    sizes = Counter(group_ids)
    split_of = dict.fromkeys(sizes, TRAIN)
    for n_groups, own in _by_stratum(group_ids, strata, sizes, seed):
        shares = {split: fraction * n_groups for split, fraction in wanted.items()}
        largest = max(1.0, min(wanted.values(), default=0) * sum(sizes[group] for group in own))
        places = {group: place_of(group, seed) for group in own}
        # a group that alone exceeds the share of a split is trained on, unless all are that large
        order = sorted(own, key=lambda group: (sizes[group] > largest, places[group]))
        start, border = 0, 0.0
        for split, share in shares.items():
            border += wanted[split]
            at_border = sum(place < border for place in places.values())
            end = min(start + _number(at_border - start, share), len(own))
            split_of |= dict.fromkeys(order[start:end], split)
            start = end
    return split_of


def _number(by_hash: int, share: float) -> int:
    """The number of groups in a split: that of the hash, within a fifth of the share."""
    rounded = math.floor(share + 0.5)
    low = min(rounded, math.ceil((1 - TOLERANCE) * share - ROUNDING))
    high = max(rounded, math.floor((1 + TOLERANCE) * share + ROUNDING))
    return min(max(by_hash, low), high)


def _by_stratum(
    group_ids: Sequence[str], strata: Sequence[Sequence[str]], sizes: Mapping[str, int], seed: int
) -> Iterator[tuple[int, list[str]]]:
    """The groups of each stratum that can be held out, and how many it has in all: one of each stays in train.

    Strata of few groups are divided together.
    """
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for group, labels in zip(group_ids, strata, strict=True):
        labels_of[group].update(labels or ("",))
    n_groups = Counter(label for labels in labels_of.values() for label in labels)
    by_label: defaultdict[str, list[str]] = defaultdict(list)
    for group in sizes:
        by_label[min(labels_of[group], key=lambda label: (n_groups[label], label))].append(group)
    few: list[str] = []
    n_few = 0
    for _, groups in sorted(by_label.items()):
        kept = max(groups, key=lambda group: (place_of(group, seed), group))
        rest = [group for group in groups if group != kept]
        if len(groups) < FEWEST_GROUPS:
            few += rest
            n_few += len(groups)
        else:
            yield len(groups), rest
    if few:
        yield n_few, few
