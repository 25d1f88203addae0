"""Copies of given texts: every run of words counts, against sets of runs that are compared one by one."""

import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.provenance.copies import Copy, CopyLimits, find_copies
from pipeline.store.engine import LocalProcesses
from pipeline.store.shards import write_table

WORDS = [f"{a}{b}" for a in ("mill", "grain", "wheel", "stone") for b in ("", "s", "er", "ing", "ed")]
LIMITS = CopyLimits()


def words(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choices(WORDS, k=n_words))


def written(folder: Path, texts: dict[str, str], n_shards: int = 2) -> list[Path]:
    paths = []
    for i in range(n_shards):
        rows = sorted(texts.items())[i::n_shards]
        table = pa.table(
            {"page_id": [name for name, _ in rows], "text": pa.array([t for _, t in rows], pa.large_string())}
        )
        paths.append(folder / f"{i}.parquet")
        write_table(paths[-1], table)
    return paths


def runs(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))}


def one_by_one(texts: dict[str, str], documents: dict[str, str], limits: CopyLimits) -> dict[tuple[str, str], tuple]:
    """(text, document) -> what a Copy says of them."""
    expected = {}
    for of, text in texts.items():
        for page_id, document in documents.items():
            one, other = runs(text), runs(document)
            shared = len(one & other)
            similarity, held, part = shared / len(one | other), shared / len(one), shared / len(other)
            is_copy = similarity >= limits.min_similarity or part >= limits.min_containment
            if of != page_id and (is_copy or held >= limits.min_held):
                expected[of, page_id] = (similarity, held, part, is_copy)
    return expected


def found(texts: dict[str, str], paths: list[Path], scratch: Path, engine) -> dict[tuple[str, str], tuple]:
    copies = find_copies(texts, paths, LIMITS, engine=engine, scratch=scratch)
    assert len({(copy.of, copy.page_id) for copy in copies}) == len(copies)
    return {(copy.of, copy.page_id): (copy.similarity, copy.held, copy.part, copy.is_copy) for copy in copies}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_shards=st.integers(1, 4))
def test_find_copies_agrees_with_sets_compared_one_by_one(tmp_path_factory, seed, n_shards):
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("copies")
    texts = {f"text{i}": words(rng, rng.randint(3, 60)) for i in range(3)}
    documents = dict(texts)
    for i, text in enumerate(texts.values()):
        own = text.split()
        documents[f"nearly{i}"] = " ".join([*own[:-1], "otherwise"])
        documents[f"excerpt{i}"] = " ".join(own[: len(own) // 2])
        documents[f"longer{i}"] = words(rng, 80) + " " + text + " " + words(rng, 80)
        documents[f"foreign{i}"] = words(rng, 40)
    got = found(texts, written(folder, documents, n_shards), folder / "scratch", InThisProcess())
    expected = one_by_one(texts, documents, LIMITS)
    assert set(got) == set(expected)
    for pair, values in expected.items():
        assert got[pair][:3] == pytest.approx(values[:3]) and got[pair][3] == values[3]


class InThisProcess:
    def map(self, function, items, **limits):
        from pipeline.store.engine import Done

        return (Done(function(item)) for item in items)


def test_find_copies_sees_each_of_many_copies(tmp_path):
    """A run that stands in a hundred documents is no boilerplate where the text itself does."""
    text = words(random.Random(1), 50)
    documents = {f"copy{i:03}": text for i in range(100)}
    copies = find_copies(
        {"text": text},
        written(tmp_path, documents),
        LIMITS,
        engine=LocalProcesses(n_workers=2),
        scratch=tmp_path / "s",
    )
    assert {copy.page_id for copy in copies} == set(documents)
    assert {(copy.similarity, copy.held, copy.part, copy.is_copy) for copy in copies} == {(1.0, 1.0, 1.0, True)}


def test_find_copies_of_nothing_or_in_nothing_are_none(tmp_path):
    paths = written(tmp_path, {"a": "some words of a text that is here"})
    engine, scratch = InThisProcess(), tmp_path / "s"
    assert find_copies({}, paths, LIMITS, engine=engine, scratch=scratch) == []
    assert find_copies({"b": "some words"}, [], LIMITS, engine=engine, scratch=scratch) == []
    assert find_copies({"b": "\u2026"}, paths, LIMITS, engine=engine, scratch=scratch) == []


def test_find_copies_result_does_not_depend_on_workers(tmp_path):
    rng = random.Random(2)
    texts = {f"text{i}": words(rng, 40) for i in range(4)}
    documents = texts | {f"more{i}": words(rng, 20) + " " + rng.choice(list(texts.values())) for i in range(30)}
    paths = written(tmp_path, documents, 5)
    answers: list[list[Copy]] = [
        find_copies(texts, paths, LIMITS, engine=LocalProcesses(n_workers=n), scratch=tmp_path / str(n))
        for n in (1, 4)
    ]
    assert answers[0] == answers[1] and answers[0]
    assert all(isinstance(copy.held, float) and not isinstance(copy.held, np.floating) for copy in answers[0])
