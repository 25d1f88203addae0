"""source_loss: a source that loses too much of itself is named, with what it lost where, and pairs to look at."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.laws import source_loss
from pipeline.corpus.source_loss import lost_sources
from pipeline.store.records import CORPUS, DROPPED, Counts, Shards
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, write_rows
from pipeline.store.store import Outcome, Stage


def record(stage, **removed):
    return {"stage": stage, "measures": {f"removed_fraction_{source}": share for source, share in removed.items()}}


LIMITS = {"removed_fraction": 0.5}


def test_source_loss_adds_up_what_every_stage_left():
    records = [record("dedup", web=0.4, books=0.1), record("dedup_lines", web=0.25, books=0.0)]
    verdict = source_loss(records, LIMITS)
    assert not verdict.passed
    assert (verdict.observed, verdict.limit) == (pytest.approx(0.55), 0.5)
    assert verdict.details == {"web": "lost 55.0% in total (dedup 40.0%, dedup_lines 25.0%), limit 50.0%"}
    assert verdict.sentence() == (
        "the source `web` lost 55.0% in total (dedup 40.0%, dedup_lines 25.0%), limit 50.0%; if that is right, set"
        " removed_fraction_web in [checks.corpus]."
    )


@pytest.mark.parametrize(("share", "passed"), [(0.3, True), (0.300001, False), (0.0, True), (1.0, False)])
def test_source_loss_at_its_limit_is_allowed(share, passed):
    verdict = source_loss([record("dedup", web=share)], {"removed_fraction": 0.3})
    assert (verdict.passed, verdict.observed) == (passed, pytest.approx(share))


def test_source_loss_of_one_source_may_be_higher_or_lower():
    records = [record("dedup", editions=0.8, web=0.2, letters=0.15)]
    own = {"removed_fraction_editions": 0.9, "removed_fraction_letters": 0.1}
    verdict = source_loss(records, LIMITS | own, lambda source: [f"example of {source}"])
    assert list(verdict.details) == ["letters"] and verdict.details["letters"].endswith("; example of letters")
    assert (verdict.observed, verdict.limit) == (pytest.approx(0.15), 0.1)


def test_source_loss_of_a_corpus_without_sources_is_none():
    verdict = source_loss([], LIMITS)
    assert verdict.passed and (verdict.observed, verdict.limit) == (0, 0.5)


def test_source_loss_other_measures_are_no_sources():
    records = [{"stage": "dedup", "measures": {"candidate_pairs": 9.0, "removed_fraction_a": 0.1}}]
    assert source_loss(records, LIMITS).observed == pytest.approx(0.1)


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1)), max_size=4),
    st.floats(0, 1),
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 1)),
)
def test_source_loss_passes_when_and_only_when_no_source_is_above_its_limit(shares, limit, own):
    limits = {"removed_fraction": limit} | {f"removed_fraction_{source}": value for source, value in own.items()}
    verdict = source_loss([record(f"s{i}", **one) for i, one in enumerate(shares)], limits)
    above = set()
    for source in "abc":
        left = 1.0
        for one in shares:
            left *= 1 - one.get(source, 0.0)
        if round(1 - left, 9) > own.get(source, limit) and any(source in one for one in shares):
            above.add(source)
    assert set(verdict.details) == above and verdict.passed == (not above)
    assert verdict.passed == (verdict.observed <= verdict.limit)


@pytest.fixture
def corpus(store, written_documents):
    """`copies` loses three of its four documents to `web`, nothing else loses anything."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices([f"w{i}" for i in range(2000)], k=200)) for _ in range(8)]
    rows = [("a", "web", f"w{i}", text + " and a few more words") for i, text in enumerate(texts[:5])]
    rows += [("b", "copies", f"c{i}", text) for i, text in enumerate([*texts[:3], texts[7]])]
    deduped = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    return store.build(DEDUP_LINES, DedupLinesConfig(), deduped).handle


def test_lost_sources_names_pairs_of_the_source_that_lost_too_much(corpus):
    verdict = lost_sources(corpus, {})
    assert (verdict.passed, verdict.observed, verdict.limit) == (False, pytest.approx(0.75), 0.5)
    (text,) = verdict.details.values()
    assert verdict.details.keys() == {"copies"}
    for i in range(3):
        assert f"file:///copies/c{i}.txt -> file:///web/w{i}.txt" in text


def test_lost_sources_counts_the_documents_of_a_stage_that_measures_nothing_by_source(store, corpus):
    """decontaminate drops two of the six documents that are left."""

    def drop_two(cfg, inputs, work):
        counts = Counts(rows_in=6, kept=4)
        counts.drop("contaminated", 2)
        for path in shard_paths(corpus.directory):
            rows = read_table(path, CORPUS).to_pylist()
            gone = [row for row in rows if row["page_id"] in ("w3", "c3")]
            write_rows(work.directory / path.name, [row for row in rows if row not in gone], CORPUS)
            columns = {"stage": "decontaminate", "reason": "contaminated", "score": 1.0, "preview": ""}
            dropped = [
                {**{name: row[name] for name in ("id", "page_id", "source", "url")}, **columns} for row in gone
            ]
            write_rows(work.directory / DROPPED_FOLDER / path.name, dropped, DROPPED)
        return Outcome(rows=4, counts=counts)

    stage = Stage(name="decontaminate", version=1, function=drop_two, handle=Shards)
    verdict = lost_sources(store.build(stage, {}, corpus).handle, {"removed_fraction": 0.1})
    assert "decontaminate 20.0%" in verdict.details["web"]
    assert "decontaminate 100.0%" in verdict.details["copies"] and verdict.observed == 1


def test_lost_sources_limits_of_the_user_count(corpus):
    assert lost_sources(corpus, {"removed_fraction_copies": 0.75}).passed
    assert not lost_sources(corpus, {"removed_fraction": 0.7}).passed
    assert lost_sources(corpus, {"removed_fraction": 0.8}).passed


def test_lost_sources_of_a_removed_stage_are_not_guessed(corpus):
    (directory,) = [path.parent for path in corpus.directory.parents[1].glob("dedup/*/record.json")]
    (directory / "record.json").unlink()
    with pytest.raises(ValueError, match="was removed, so the losses of the sources are not known"):
        lost_sources(corpus, {})
