"""Splits: laws on random data, given splits that hold, and what leaks into them."""

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.examples.near_texts import leaked
from pipeline.corpus.examples.splits import group_splits, leaking, place_of, row_groups
from pipeline.store.records import SPLITS

WANTED = {"test": 0.1, "validation": 0.1}
LABELS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abcdefgh")), min_size=1, max_size=200)


def of_labels(**sizes: int) -> tuple[list[str], list[tuple[str]]]:
    """Groups of one row, so many of each label."""
    rows = [(f"{label}-{i}", (label,)) for label, n in sizes.items() for i in range(n)]
    return [group for group, _ in rows], [labels for _, labels in rows]


def shares(split_of: dict[str, str], label: str) -> Counter[str]:
    return Counter(split for group, split in split_of.items() if group.startswith(f"{label}-"))


@settings(max_examples=100, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_group_splits_every_group_is_in_one_split_and_every_label_is_trained_on(rows, seed):
    """Also where groups have rows of several labels, and labels have a row or two."""
    groups, labels = [f"g{group}" for group, _ in rows], [(label,) for _, label in rows]
    split_of = group_splits(groups, labels, WANTED, seed)
    assert set(split_of) == set(groups) and set(split_of.values()) <= set(SPLITS)
    rare_first = Counter()  # a label with a group of its own
    of_group = defaultdict(set)
    for group, (label,) in zip(groups, labels, strict=True):
        of_group[group].add(label)
    for label in {label for (label,) in labels}:
        own = [group for group, found in of_group.items() if found == {label}]
        rare_first[label] = sum(split_of[group] == "train" for group in own)
        if own and len(own) == sum(label in found for found in of_group.values()):
            assert rare_first[label] > 0


@pytest.mark.parametrize("seed", range(20))
def test_group_splits_every_label_with_ten_groups_is_in_all_splits(seed):
    sizes = {"a": 10, "b": 13, "c": 29, "d": 100, "e": 1000}
    split_of = group_splits(*of_labels(**sizes), WANTED, seed)
    for label, n in sizes.items():
        found = shares(split_of, label)
        for split, fraction in WANTED.items():
            assert found[split] >= 1
            assert abs(found[split] - fraction * n) <= max(0.2 * fraction * n, 0.5)


def test_group_splits_labels_of_few_groups_are_held_out_together():
    """100 labels of 3 texts: each is trained on, and a tenth of the texts is in test."""
    split_of = group_splits(*of_labels(**{f"l{i}": 3 for i in range(100)}), WANTED, 0)
    assert all(shares(split_of, f"l{i}")["train"] >= 1 for i in range(100))
    sizes = Counter(split_of.values())
    assert abs(sizes["test"] - 30) <= 6 and abs(sizes["validation"] - 30) <= 6


def test_group_splits_added_rows_move_few_others():
    """A label that is large enough is divided by hash alone; of a rare one a row moves where its share changes."""
    sizes = {"common": 20_000, "usual": 400, "rare": 20}
    before = group_splits(*of_labels(**sizes), WANTED, 0)
    after = group_splits(*of_labels(**{label: n + n // 10 for label, n in sizes.items()}), WANTED, 0)
    moved = Counter(group.partition("-")[0] for group, split in before.items() if after[group] != split)
    assert moved["common"] == 0
    assert moved["usual"] <= 8 and moved["rare"] <= 2
    hashed = {group: place_of(group, 0) for group in before if group.startswith("common")}
    assert all((place < 0.1) == (before[group] == "test") for group, place in hashed.items())


def test_group_splits_another_seed_divides_anew():
    one, other = (group_splits(*of_labels(a=100), WANTED, seed) for seed in (0, -1))
    assert one != other and one == group_splits(*of_labels(a=100), WANTED, 0)


def test_group_splits_a_group_as_large_as_a_split_is_trained_on():
    groups = ["one"] * 300 + [f"g{i}" for i in range(100)]
    for seed in range(20):
        split_of = group_splits(groups, [()] * 400, WANTED, seed)
        assert split_of["one"] == "train"
        assert 8 <= Counter(split_of.values())["test"] <= 12


def test_group_splits_a_split_that_nobody_wants_is_not_made():
    split_of = group_splits(*of_labels(a=200), {"validation": 0.1}, 0)
    assert set(split_of.values()) == {"train", "validation"}


def sentences(n_rows: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices("adeilmnorst", k=5)) for _ in range(8)) for _ in range(n_rows)]


def test_leaking_rows_of_train_go_and_what_is_held_out_stays():
    texts = sentences(60)
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    texts[3] = f"{texts[45]}!"
    texts[4] = f"{texts[55]} 1"
    texts[46] = texts[56].upper()
    reasons = leaking(texts, splits, 0.8)
    assert reasons == {3: "near_duplicate_of_validation", 4: "near_duplicate_of_test", 46: "near_duplicate_of_test"}
    left = {split: [t for i, t in enumerate(texts) if splits[i] == split and i not in reasons] for split in SPLITS}
    assert leaked(left["train"], left["validation"] + left["test"]) == []


def test_leaking_nothing_given_drops_nothing():
    texts = sentences(5)
    assert leaking([*texts, *texts], ["train"] * 10, 0.8) == {}


def test_row_groups_join_near_duplicates_and_values_of_group():
    texts = sentences(8)
    texts[1] = f"{texts[0]}."
    groups = [None, "x", "x", "y", None, "y", None, None]
    assert row_groups(texts, groups, ["train"] * 8, 0.8) == [0, 0, 0, 3, 4, 3, 6, 7]
    given_elsewhere = ["train", "train", "test", "train", *["test"] * 4]
    assert row_groups(texts, groups, given_elsewhere, 0.8) == [0, 0, 2, 3, 4, 5, 6, 7]
    assert row_groups([], [], [], 0.8) == []
