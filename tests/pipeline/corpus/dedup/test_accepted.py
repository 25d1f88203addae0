"""accepted: an earlier output of dedup is what new documents must not repeat."""

import json
import random

import pytest

from pipeline.corpus.dedup.accepted import INDEX_FOLDER, RECIPE
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.errors import CorruptShard
from pipeline.store.records import CORPUS, DROPPED, EVIDENCE
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths

VOCABULARY = [f"w{i}" for i in range(5000)]


def text_of(rng, n):
    return " ".join(rng.choices(VOCABULARY, k=n))


def rows_in(handle, schema, folder="."):
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path, schema).to_pylist()]


def kept_ids(handle):
    return sorted(row["page_id"] for row in rows_in(handle, CORPUS))


@pytest.fixture
def old(store, written_documents):
    """Rows of an accepted corpus, of which `twin` went, and its handle."""
    rng = random.Random(1)
    rows = [(f"s{i % 3}", "x", f"old{i:02d}", text_of(rng, 300)) for i in range(20)]
    rows.append(("s1", "x", "twin", rows[0][3].upper()))
    handle = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    assert handle.rows == 20
    return {name: text for *_, name, text in rows}, handle


def test_accepted_repeated_documents_go_and_the_accepted_ones_are_named(store, written_documents, old):
    texts, handle = old
    rng = random.Random(2)
    own = texts["old05"].split()
    edited = [*own[:100], "changed", *own[101:200], "altered", *own[201:]]
    rows = [
        ("n", "y", "exact", texts["old03"].upper()),
        ("n", "y", "near", " ".join(edited)),
        ("n", "y", "excerpt", " ".join(texts["old07"].split()[50:150])),
        ("n", "y", "longer", texts["old09"] + " " + text_of(rng, 900)),
        ("n", "y", "fresh", text_of(rng, 300)),
        ("n", "y", "again", texts["twin"]),
    ]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows), handle)
    assert kept_ids(built.handle) == ["fresh", "longer"]
    assert built.counts.rows_in == 6 and built.counts.is_conserved()
    evidence = {row["dropped_page_id"]: row for row in rows_in(built.handle, EVIDENCE, EVIDENCE_FOLDER)}
    assert {name: (row["kept_page_id"], row["rule"]) for name, row in evidence.items()} == {
        "exact": ("old03", "exact"),
        "near": ("old05", "similarity"),
        "excerpt": ("old07", "containment"),
        "again": ("old00", "exact"),
    }
    reasons = {row["page_id"]: row["reason"] for row in rows_in(built.handle, DROPPED, DROPPED_FOLDER)}
    assert reasons == {
        "exact": "exact_duplicate",
        "again": "exact_duplicate",
        "near": "near_duplicate",
        "excerpt": "near_duplicate",
    }


def test_accepted_documents_are_neither_written_nor_compared_with_each_other(store, written_documents, old):
    _, handle = old
    before = {path: path.read_bytes() for path in handle.directory.rglob("*") if path.is_file()}
    built = store.build(DEDUP, DedupConfig(), written_documents([("n", "y", "new", "quite another text")]), handle)
    assert kept_ids(built.handle) == ["new"]
    assert built.record["measures"]["candidate_pairs"] == 0
    assert {path: path.read_bytes() for path in handle.directory.rglob("*") if path.is_file()} == before


def test_accepted_family_is_the_one_that_the_accepted_text_has(store, written_documents):
    rng = random.Random(3)
    one, two = (rng.choices(VOCABULARY, k=600) for _ in range(2))
    rows = [("s", "x", "a", " ".join(one)), ("s", "x", "b", " ".join(one[400:] + two[:400]))]
    first = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    assert {row["family_id"] for row in rows_in(first, CORPUS)} == {"a"}
    new = [("n", "x", "c", " ".join(two[200:]))]
    second = store.build(DEDUP, DedupConfig(), written_documents(new), first).handle
    assert [(row["page_id"], row["family_id"]) for row in rows_in(second, CORPUS)] == [("c", "a")]


def test_accepted_several_corpora_in_a_row_are_all_probed(store, written_documents, old):
    texts, first = old
    rng = random.Random(4)
    text = text_of(rng, 200)
    second = store.build(DEDUP, DedupConfig(), written_documents([("n", "y", "second", text)]), first).handle
    rows = [
        ("m", "z", "of_first", texts["old11"]),
        ("m", "z", "of_second", text),
        ("m", "z", "fresh", text_of(rng, 99)),
    ]
    third = store.build(DEDUP, DedupConfig(), written_documents(rows), first, second)
    assert kept_ids(third.handle) == ["fresh"]
    named = {row["dropped_page_id"]: row["kept_page_id"] for row in rows_in(third.handle, EVIDENCE, EVIDENCE_FOLDER)}
    assert named == {"of_first": "old11", "of_second": "second"}


def test_accepted_corpus_decides_the_fingerprint(store, written_documents, old):
    _, handle = old
    new = written_documents([("n", "y", "new", "quite another text")])
    with_index = store.build(DEDUP, DedupConfig(), new, handle)
    assert with_index.handle.fingerprint != store.build(DEDUP, DedupConfig(), new).handle.fingerprint
    assert store.build(DEDUP, DedupConfig(), new, handle).unchanged


def test_accepted_nothing_new_and_nothing_accepted_are_allowed(store, written_documents, old):
    _, handle = old
    assert store.build(DEDUP, DedupConfig(), written_documents([]), handle).handle.rows == 0
    empty = store.build(DEDUP, DedupConfig(), written_documents([], shards=("none",))).handle
    built = store.build(DEDUP, DedupConfig(), written_documents([("n", "y", "new", "some text")]), empty)
    assert kept_ids(built.handle) == ["new"]


def test_accepted_with_other_signatures_is_refused(store, written_documents, old):
    _, handle = old
    new = written_documents([("n", "y", "new", "quite another text")])
    with pytest.raises(ValueError, match=r"cannot be an index.*same shingle_words"):
        store.build(DEDUP, DedupConfig(bands=20), new, handle)
    (handle.directory / INDEX_FOLDER / RECIPE).unlink()
    record = json.loads((handle.directory / "record.json").read_text())
    del record["files"][f"{INDEX_FOLDER}/{RECIPE}"]
    (handle.directory / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="made by an older version of `dedup`"):
        store.build(DEDUP, DedupConfig(seed=2), new, handle)


def test_accepted_index_that_lost_a_shard_is_refused(store, written_documents, old):
    _, handle = old
    (handle.directory / INDEX_FOLDER / "s1.parquet").unlink()
    new = written_documents([("n", "y", "new", "quite another text")])
    with pytest.raises(CorruptShard, match="delete"):
        store.build(DEDUP, DedupConfig(), new, handle)
