"""split: who is held out, and that nothing held out is known from training."""

import random
from collections import Counter, defaultdict

import pytest

from pipeline.stages.dedup import DEDUP, DedupConfig
from pipeline.stages.overlap import find_overlaps
from pipeline.stages.records import SPLIT_CORPUS, Shards
from pipeline.stages.shards import read_table, shard_paths, write_rows
from pipeline.stages.split import SPLIT, Family, SplitConfig, held_out_families, leaked_documents
from pipeline.stages.store import Outcome, Stage, Work

VOCABULARY = [f"w{i}" for i in range(5000)]


def text_of(rng, n):
    return " ".join(rng.choices(VOCABULARY, k=n))


def rows_of(handle):
    return [row for path in shard_paths(handle.directory) for row in read_table(path, SPLIT_CORPUS).to_pylist()]


@pytest.fixture
def build_split(store, written_documents):
    def build(rows, cfg=None, **dedup):
        corpus = store.build(DEDUP, DedupConfig(**dedup), written_documents(rows)).handle
        return store.build(SPLIT, cfg or SplitConfig(), corpus)

    return build


@pytest.fixture
def editions():
    """Ten long works in two editions each (a third of their 5-grams in common), and many short articles."""
    rng = random.Random(1)
    rows = []
    for i in range(14):
        work = text_of(rng, 1000).split()
        for edition in ("old", "new"):
            own = [word if j % 14 else rng.choice(VOCABULARY) for j, word in enumerate(work)]
            rows.append((f"s{i % 3}", "plays", f"{edition}{i:02d}", " ".join(own)))
    rows += [(f"s{i % 3}", "articles", f"a{i:03d}", text_of(rng, rng.randrange(50, 300))) for i in range(150)]
    return rows


def test_split_every_source_is_represented_by_about_its_share(build_split, editions):
    cfg = SplitConfig(validation_fraction=0.05, test_fraction=0.1, max_family_fraction=0.1)
    built = build_split(editions, cfg)
    words = defaultdict(Counter)
    for row in rows_of(built.handle):
        words[row["source"]][row["split"]] += row["n_words"]
    for source, of_source in words.items():
        total = of_source.total()
        largest = 0.1 * total
        assert 0.05 * total <= of_source["validation"] <= 0.05 * total + largest, source
        assert 0.1 * total <= of_source["test"] <= 0.1 * total + largest, source


def test_split_keeps_editions_of_a_work_on_one_side(build_split, editions):
    cfg = SplitConfig(validation_fraction=0.1, test_fraction=0.2, max_family_fraction=0.1)
    built = build_split(editions, cfg)
    sides = {row["page_id"]: row["split"] for row in rows_of(built.handle)}
    assert {sides[name] for name in sides if name.startswith("old")} == {"train", "validation", "test"}
    assert all(sides[f"old{i:02d}"] == sides[f"new{i:02d}"] for i in range(14))
    families = defaultdict(set)
    for row in rows_of(built.handle):
        families[row["family_id"]].add(row["split"])
    assert all(len(of_family) == 1 for of_family in families.values())


def test_split_moves_what_dedup_did_not_see_to_train(build_split, editions):
    """Families that are too strict leave the editions apart: the count of every 5-gram finds them."""
    cfg = SplitConfig(validation_fraction=0.1, test_fraction=0.2, max_family_fraction=0.1)
    built = build_split(editions, cfg, family_overlap=1.0)
    assert built.record["measures"]["leaking_families_moved_to_train"] > 0
    sides = {row["page_id"]: row["split"] for row in rows_of(built.handle)}
    assert all(sides[f"old{i:02d}"] == "train" for i in range(14) if sides[f"new{i:02d}"] == "train")
    assert leaked_documents(built.handle).passed


def plant_leaks(cfg: SplitConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    """Half of each of three held-out documents is copied into a training document."""
    (path,) = shard_paths(inputs[0].directory)
    table = read_table(path).to_pylist()
    held_out = [row for row in table if row["split"] != "train"][:3]
    training = [row for row in table if row["split"] == "train"]
    for leak, row in zip(held_out, training, strict=False):
        row["text"] = " ".join(row["text"].split()[:100] + leak["text"].split()[50:150])
    write_rows(work.directory / path.name, table, SPLIT_CORPUS)
    return Outcome(rows=len(table))


def test_leaked_documents_counts_planted_leaks(build_split, store):
    rng = random.Random(2)
    rows = [("s", "x", f"p{i:03d}", text_of(rng, 200)) for i in range(100)]
    cfg = SplitConfig(validation_fraction=0.05, test_fraction=0.05)
    sound = build_split(rows, cfg).handle
    assert leaked_documents(sound, store.engine).passed
    planting = Stage(name="split", version=2, function=plant_leaks, handle=Shards)
    verdict = leaked_documents(store.build(planting, cfg, sound).handle, store.engine)
    assert not verdict.passed and verdict.observed == 3
    assert "leak_3" in verdict.details and "leak_4" not in verdict.details


def test_overlaps_are_those_of_brute_force(tmp_path, store, written_documents):
    rng = random.Random(3)
    own = text_of(rng, 600).split()
    rows = [
        (f"s{i % 2}", "x", f"p{i}", " ".join(own[(start := rng.randrange(400)) : start + rng.randrange(3, 200)]))
        for i in range(40)
    ]
    paths = shard_paths(written_documents(rows).directory)
    held_out = [f"p{i}" for i in range(10)]
    found = find_overlaps(paths, held_out, min_share=0.3, engine=store.engine, scratch=tmp_path / "scratch")

    def grams(text):
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    sets = {name: grams(text) for *_, name, text in rows}
    expected = {
        (one, other): len(sets[one] & sets[other]) / len(sets[one])
        for one in held_out
        for other in sets
        if one != other and len(sets[one] & sets[other]) >= 0.3 * len(sets[one])
    }
    assert {(one.page_id, one.other_page_id): one.share for one in found} == pytest.approx(expected)
    assert expected


def test_overlaps_do_not_count_what_many_documents_hold(tmp_path, store, written_documents):
    """A licence at the end of every page is no leak."""
    rng = random.Random(4)
    licence = text_of(rng, 60)
    rows = [("s", "x", f"p{i}", f"{text_of(rng, 40)} {licence}") for i in range(60)]
    paths = shard_paths(written_documents(rows).directory)
    assert not find_overlaps(paths, ["p1"], min_share=0.2, engine=store.engine, scratch=tmp_path / "scratch")


def families(*sizes, source="x"):
    return [Family(f"{source}{i}", source, n_words, (f"{source}{i}",)) for i, n_words in enumerate(sizes)]


def test_held_out_families_more_validation_moves_nothing_of_test():
    own = families(*[100] * 200)
    few = held_out_families(SplitConfig(), own, frozenset())
    many = held_out_families(SplitConfig(validation_fraction=0.2), own, frozenset())
    assert {name for name, side in few.items() if side == "test"} == {
        name for name, side in many.items() if side == "test"
    }
    assert Counter(many.values()) == {"test": 2, "validation": 40}


def test_held_out_families_few_huge_documents_give_one_each():
    own = families(*[20_000] * 20)
    assert Counter(held_out_families(SplitConfig(), own, frozenset()).values()) == {"test": 1, "validation": 1}


def test_held_out_families_larger_than_allowed_are_passed_over():
    own = families(100_000, *[1000] * 100)
    assert "x0" not in held_out_families(SplitConfig(test_fraction=0.5), own, frozenset())


def test_held_out_families_of_a_small_corpus_come_from_all_sources_together():
    own = [*families(10, 10), *families(10, 10, source="y")]
    assert sorted(held_out_families(SplitConfig(), own, frozenset()).values()) == ["test", "validation"]
    assert held_out_families(SplitConfig(), own[:2], frozenset()) == {}


def test_held_out_families_other_seed_gives_others():
    own = families(*[100] * 200)
    chosen = {frozenset(held_out_families(SplitConfig(seed=seed), own, frozenset())) for seed in range(5)}
    assert len(chosen) == 5


def test_held_out_families_do_not_depend_on_order():
    own = families(*range(1, 300))
    mixed = random.Random(1).sample(own, len(own))
    cfg = SplitConfig(test_fraction=0.1)
    assert held_out_families(cfg, own, frozenset()) == held_out_families(cfg, mixed, frozenset())


def test_split_conserves_rows_and_leaves_the_rest_alone(build_split, editions):
    built = build_split(editions)
    assert built.counts.rows_in == built.counts.kept == built.handle.rows == len(editions)
    assert {row["page_id"]: row["text"] for row in rows_of(built.handle)} == {row[2]: row[3] for row in editions}


def test_split_nothing_held_out_is_possible(build_split, editions):
    built = build_split(editions, SplitConfig(validation_fraction=0.0, test_fraction=0.0))
    assert {row["split"] for row in rows_of(built.handle)} == {"train"}
    assert leaked_documents(built.handle).passed


def test_split_no_documents_give_none(build_split):
    assert build_split([]).handle.rows == 0


def test_split_of_fixed_documents_has_not_changed(build_split, editions):
    """Raise the version of the stage when this changes on purpose."""
    built = build_split(editions)
    held_out = {row["page_id"]: row["split"] for row in rows_of(built.handle) if row["split"] != "train"}
    expected = {
        **dict.fromkeys(("old00", "new00", "a149"), "validation"),
        **dict.fromkeys(("old01", "new01", "a053", "a098"), "test"),
    }
    assert (held_out, SPLIT.version) == (expected, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_fraction": 1.5}, "test_fraction=1.5"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "nothing to train on"),
        ({"max_family_fraction": 0.0}, "max_family_fraction"),
        ({"min_families": 2}, "min_families=2"),
    ],
)
def test_split_config_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**fields)
