"""leak injection: sound on a sound stage, and it sees a stage that is blind or sees what is not there."""

import random
from typing import Any

import pytest

from bench.leaks import FORMS, N_PLANTED, injected_into, leak_injection, sampled_documents
from pipeline.corpus.decontaminate import evaluation_runs
from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.store.engine import Done
from pipeline.store.records import CORPUS, Counts, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Outcome, Stage

VOCABULARY = [
    f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rt", "lk", "st", "mble", "\u00e9")
]


def prose(rng, n):
    return " ".join(rng.choices(VOCABULARY, k=n))


@pytest.fixture
def documents(neutral_document):
    rng = random.Random(1)
    row = {name: neutral_document[name] for name in CORPUS.names}
    return [row | {"id": str(i), "page_id": f"d{i}", "text": prose(rng, 300)} for i in range(20)]


@pytest.fixture
def task(store):
    """Examples of a task: from texts, all for testing."""

    def write(texts):
        def written(cfg, inputs, work):
            rows = [
                {"id": text_digest(text), "text": text, "label": "x", "split": "test", "group_id": "g"}
                for text in texts
            ]
            write_rows(work.directory / "examples.parquet", rows, EXAMPLE)
            return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

        stage = Stage(name="examples", version=1, function=written, handle=Shards)
        return store.build(stage, {"key": list(texts)}).handle

    return write


@pytest.fixture
def headlines(task):
    rng = random.Random(2)
    return task([prose(rng, rng.randrange(6, 30)) for _ in range(40)])


RECIPE = DecontaminateRecipe(tasks=("moods",))


def test_leak_injection_every_form_is_found_and_nothing_else(documents, headlines, store):
    recall, precision = leak_injection(documents, [headlines], RECIPE, n_planted=80, engine=store.engine)
    assert recall.passed and recall.observed == 1.0 and recall.details["planted"] == 80
    assert {name.removeprefix("recall_") for name in recall.details if name.startswith("recall_")} == set(FORMS)
    assert precision.passed and precision.observed == 1.0 and precision.details["found"] == 80
    assert precision.details["texts"] == 20 + 2 * 80


def test_leak_injection_same_seed_same_verdict(documents, headlines, store):
    one, other = (
        leak_injection(documents, [headlines], RECIPE, n_planted=16, seed=5, engine=store.engine) for _ in range(2)
    )
    assert one == other


def test_leak_injection_one_example_is_planted_in_every_form(documents, task, store):
    only = task([prose(random.Random(3), 20)])
    recall, precision = leak_injection(documents, [only], RECIPE, engine=store.engine)
    assert recall.passed and recall.details["planted"] == len(FORMS)
    assert precision.passed


def test_leak_injection_nothing_to_plant_passes(documents, task, store):
    for examples, recipe in (([task(["too short"])], RECIPE), ([], DecontaminateRecipe())):
        recall, precision = leak_injection(documents, examples, recipe, engine=store.engine)
        assert recall.passed and precision.passed and recall.details["planted"] == 0
    recall, _ = leak_injection([], [task([prose(random.Random(4), 20)])], RECIPE, engine=store.engine)
    assert recall.passed and recall.details["planted"] == 0


class Blind:
    """Says of every shard that nothing of an example stands in it."""

    def __init__(self, engine):
        self.engine = engine

    def map(self, function, items, **limits):
        for answer in self.engine.map(function, items, **limits):
            value = answer.value
            yield Done((value[0], value[1].slice(0, 0))) if isinstance(value, tuple) else answer


def test_leak_injection_sees_a_stage_that_finds_nothing(documents, headlines, store):
    blind: Any = Blind(store.engine)
    recall, precision = leak_injection(documents, [headlines], RECIPE, n_planted=16, engine=blind)
    assert not recall.passed and recall.observed == 0.0 and recall.details["missed"] == 16
    assert precision.passed


def test_leak_injection_sees_a_stage_that_takes_one_word_for_another(documents, headlines, store, monkeypatch):
    """All words of the same length are one to it."""
    monkeypatch.setattr(
        evaluation_runs.WordHashes, "__missing__", lambda self, word: 0x9E3779B97F4A7C15 ** len(word) % 2**64
    )
    cfg = DecontaminateConfig(max_documents=1000)
    recipe = DecontaminateRecipe(config=cfg, tasks=RECIPE.tasks)
    _, precision = leak_injection(documents, [headlines], recipe, n_planted=16, engine=store.engine)
    assert not precision.passed and precision.observed < 1.0
    assert "first_wrong" in precision.details


def test_leak_injection_of_a_finished_corpus_uses_its_settings_and_examples(documents, headlines, store):
    def written(cfg, inputs, work):
        write_rows(work.directory / "a.parquet", documents, CORPUS)
        return Outcome(rows=len(documents), counts=Counts(rows_in=len(documents), kept=len(documents)))

    corpus = store.build(Stage(name="dedup", version=1, function=written, handle=Shards), {}).handle
    clean = store.build(DECONTAMINATE, RECIPE, corpus, headlines).handle
    recall, precision = injected_into(clean, store.engine)
    assert recall.details["planted"] == N_PLANTED
    assert precision.passed
    with pytest.raises(ValueError, match="not made by way of"):
        injected_into(corpus, store.engine)


def test_sampled_documents_are_the_same_ones_again_and_as_many_as_there_are(documents, store):
    def written(cfg, inputs, work):
        for k in range(3):
            write_rows(work.directory / f"{k}.parquet", documents[k::3], CORPUS)
        write_rows(work.directory / "empty.parquet", [], CORPUS)
        return Outcome(rows=len(documents))

    corpus = store.build(Stage(name="split", version=1, function=written, handle=Shards), {}).handle
    assert len({row["page_id"] for row in sampled_documents(corpus, 100)}) == 20
    few = sampled_documents(corpus, 8)
    assert 6 <= len(few) <= 8 and few == sampled_documents(corpus, 8)
