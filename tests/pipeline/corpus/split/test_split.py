"""split: who is held out, and that nothing held out is known from training."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.examples.leaks import torn_groups
from pipeline.corpus.split.families import Family, directory_of, read_families
from pipeline.corpus.split.overlap import find_overlaps
from pipeline.corpus.split.stage import SPLIT, SplitConfig, held_out_families, leaked_documents
from pipeline.store.records import CORPUS, SPLIT_CORPUS, Shards
from pipeline.store.shards import read_table, shard_paths, write_rows
from pipeline.store.store import Outcome, Stage, Work

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


@pytest.fixture
def divided(store, neutral_document):
    """The split of documents from {url: words}, texts that have nothing in common, with other columns as given."""

    def build(sizes, cfg=None, **columns):
        def written(of_stage, inputs, work):
            rng = random.Random(5)
            for shard in range(2):
                rows = [
                    {name: neutral_document[name] for name in CORPUS.names}
                    | {"id": url, "page_id": f"p{i}", "source": "site", "url": url, "text": text_of(rng, n_words)}
                    | {"n_words": n_words, "cluster_id": url, "family_id": url}
                    | {name: of_url[url] for name, of_url in columns.items() if url in of_url}
                    for i, (url, n_words) in enumerate(sizes.items())
                    if i % 2 == shard
                ]
                write_rows(work.directory / f"{shard}.parquet", rows, CORPUS)
            return Outcome(rows=len(sizes))

        stage = Stage(name="dedup", version=1, function=written, handle=Shards)
        key = [[*sizes.items()], [[name, *of_url.items()] for name, of_url in columns.items()]]
        return store.build(SPLIT, cfg or SplitConfig(), store.build(stage, {"key": key}).handle)

    return build


def sides_by(built, name):
    sides = defaultdict(set)
    for row in rows_of(built.handle):
        sides[name(row)].add(row["split"])
    return sides


def test_split_keeps_sections_of_a_site_on_one_side(divided):
    sizes = {f"https://site.org/s{i:02d}/page-{j}.html?x=/{j}#part/{j}": 50 for i in range(40) for j in range(5)}
    cfg = SplitConfig(validation_fraction=0.1, test_fraction=0.1)
    sections = sides_by(divided(sizes, cfg), lambda row: row["url"].split("/")[3])
    assert Counter(side for (side,) in sections.values()) == {"train": 32, "validation": 4, "test": 4}
    apart = divided(sizes, SplitConfig(validation_fraction=0.1, test_fraction=0.1, max_section_fraction=0.0))
    assert max(len(of_section) for of_section in sides_by(apart, lambda row: row["url"].split("/")[3]).values()) > 1


@pytest.mark.parametrize("folder", ["wiki/", "", "dump.bz2#"])
def test_split_one_directory_of_all_is_no_section(divided, folder):
    sizes = {f"https://site.org/{folder}Title_{i}": 50 for i in range(200)}
    built = divided(sizes)
    assert sides_by(built, lambda row: 0)[0] == {"train", "validation", "test"}
    assert built.record["measures"]["families"] == 200


def test_split_a_few_large_sections_leave_the_share_as_wanted(divided):
    """Each of the four directories is a quarter of the site: none of them could be held out."""
    sizes = {f"https://site.org/{i % 4}/{i}": 50 for i in range(400)}
    measures = divided(sizes).record["measures"]
    assert (measures["test_documents"], measures["validation_documents"]) == (4, 4)


def test_split_larger_sections_can_be_asked_for(divided):
    sizes = {f"https://site.org/{i % 10}/{i}": 50 for i in range(400)}
    cfg = SplitConfig(max_section_fraction=0.1, max_family_fraction=0.1)
    sides = sides_by(divided(sizes, cfg), lambda row: row["url"].split("/")[3])
    assert Counter(side for (side,) in sides.values()) == {"train": 8, "validation": 1, "test": 1}


def test_families_are_linked_through_each_other_in_any_order(divided):
    """1 and 2 overlap, 2 and 3 are of one section, 3 and 4 have one text, 4 and 5 are of one cluster."""
    urls = ["x://s/a/1", "x://s/b/2", "x://s/b/3", "x://s/c/4", "x://s/d/5"]
    sizes = dict.fromkeys(urls, 10) | {f"x://s/other/{i}": 10 for i in range(200)}
    built = divided(
        sizes,
        family_id={urls[0]: "F", urls[1]: "F"},
        id={urls[2]: "T", urls[3]: "T"},
        cluster_id={urls[3]: "C", urls[4]: "C"},
    )
    paths = shard_paths(built.handle.directory)
    for order in (paths, paths[::-1]):
        families = read_families(order, 0.2)
        (linked,) = [family for family in families if len(family.page_ids) > 1]
        assert linked == Family("F", "site", 50, ("p0", "p1", "p2", "p3", "p4"))
        assert len(families) == 201


def test_families_none_where_there_are_no_documents(divided):
    assert read_families([], 0.1) == []
    assert divided({}).handle.rows == 0


URLS = st.text(st.sampled_from("ab/:?#.-"), max_size=14).map(lambda rest: f"http://{rest}") | st.text(max_size=20)


@settings(max_examples=300, deadline=None)
@given(url=URLS)
def test_directory_of_a_url_is_the_one_that_the_check_sees(url):
    rows = [("s", url, 1, f"{i}", f"{i}", f"{i}", side) for i, side in enumerate(("train", "test"))]
    sections = torn_groups(lambda: rows, 1.0)["sections"]
    assert sections == ({directory_of(url)} if directory_of(url) else set())


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(
        st.tuples(*(st.sampled_from("abc") for _ in range(4)), st.sampled_from(["train", "test"])), max_size=12
    )
)
def test_torn_groups_are_those_of_plain_comparison(documents):
    rows = [("s", f"x://{section}/1", 1, *ids, side) for section, *ids, side in documents]
    torn = torn_groups(lambda: rows, 0.6)
    for kind, place in (("texts", 3), ("clusters", 4), ("families", 5), ("sections", 1)):
        names = {row[place] for row in rows}
        expected = {name for name in names if len({row[6] for row in rows if row[place] == name}) > 1}
        if kind == "sections":
            expected = {
                str(name).rpartition("/")[0]
                for name in expected
                if sum(row[1] == name for row in rows) <= 0.6 * len(rows)
            }
        assert torn[kind] == expected


LINKED = st.tuples(
    st.sampled_from(["one", "two"]),  # source
    st.sampled_from([f"x://s/{directory}" for directory in "abcdefgh"]),
    *(st.integers(0, 40) for _ in range(4)),  # text, cluster, family, words
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(LINKED, max_size=40),
    section=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 3),
)
def test_held_out_families_never_tear_a_group(documents, section, seed, neutral_document, tmp_path):
    """Whatever links documents, in shards of any order, every group lies on one side."""
    neutral = {name: neutral_document[name] for name in CORPUS.names}
    rows: list[dict[str, Any]] = [
        neutral
        | {"source": source, "url": f"{directory}/{i}", "page_id": f"p{i}", "n_words": n_words}
        | {"id": f"t{text}", "cluster_id": f"c{cluster}", "family_id": f"f{family}"}
        for i, (source, directory, text, cluster, family, n_words) in enumerate(documents)
    ]
    for shard in range(2):
        write_rows(tmp_path / f"{shard}.parquet", rows[shard::2], CORPUS)
    paths = shard_paths(tmp_path)
    families_ = read_families(paths, section)
    assert families_ == [
        replace(family, page_ids=tuple(sorted(family.page_ids))) for family in read_families(paths[::-1], section)
    ]
    cfg = SplitConfig(validation_fraction=0.2, test_fraction=0.2, min_families=3, seed=seed)
    chosen = held_out_families(cfg, families_, frozenset())
    sides = {page_id: chosen.get(family.id, "train") for family in families_ for page_id in family.page_ids}
    assert sorted(sides) == sorted(row["page_id"] for row in rows)
    names = ("source", "url", "n_words", "id", "cluster_id", "family_id")
    judged: Any = [(*(row[name] for name in names), sides[row["page_id"]]) for row in rows]
    assert not any(torn_groups(lambda: judged, section).values())


def test_leaked_documents_counts_groups_on_two_sides(divided, store):
    sizes = {f"x://s/{i // 4}/{i}": 50 for i in range(200)}
    cfg = SplitConfig(validation_fraction=0.1, test_fraction=0.1)
    sound = divided(sizes, cfg).handle
    verdict = leaked_documents(sound, store.engine)
    assert verdict.passed and verdict.details["torn_sections"] == 0

    def tear(of_stage, inputs, work):
        for path in shard_paths(sound.directory):
            table = read_table(path).to_pylist()
            held_out = next(row for row in table if row["split"] == "test")
            held_out["split"] = "train"
            write_rows(work.directory / path.name, table, SPLIT_CORPUS)
        return Outcome(rows=len(sizes))

    torn = store.build(Stage(name="split", version=9, function=tear, handle=Shards), cfg, sound).handle
    verdict = leaked_documents(torn, store.engine)
    assert not verdict.passed
    assert verdict.observed == verdict.details["torn_sections"] > 0
    assert verdict.details["first_torn_sections"].startswith("x://s/")


def test_split_of_fixed_documents_has_not_changed(build_split, editions):
    """Raise the version of the stage when this changes on purpose."""
    built = build_split(editions)
    held_out = {row["page_id"]: row["split"] for row in rows_of(built.handle) if row["split"] != "train"}
    expected = {
        **dict.fromkeys(("old00", "new00", "a149"), "validation"),
        **dict.fromkeys(("old01", "new01", "a053", "a098"), "test"),
    }
    assert (held_out, SPLIT.version) == (expected, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_fraction": 1.5}, "test_fraction is 1.5"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "nothing to train on"),
        ({"max_family_fraction": 0.0}, "max_family_fraction"),
        ({"min_families": 2}, "min_families is 2"),
        ({"max_section_fraction": 1.5}, "max_section_fraction"),
    ],
)
def test_split_config_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**fields)
