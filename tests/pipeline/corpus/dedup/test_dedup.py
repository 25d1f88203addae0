"""dedup: which documents go, for which, and that nothing else decides it."""

import random
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.corpus.dedup.accepted import view_accepted
from pipeline.corpus.dedup.near_duplicates import find_candidates, load_signatures
from pipeline.corpus.dedup.signatures import SIGNATURES, SIGNATURES_FOLDER, SIGNATURES_VERSION, positions_of
from pipeline.corpus.dedup.stage import DEDUP, SCRATCH, DedupConfig
from pipeline.store.database import open_database
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import CorruptShard
from pipeline.store.records import CORPUS, DROPPED, EVIDENCE, FILTERED, Counts, Shards
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths, text_digest, write_table
from pipeline.store.store import Outcome, Stage, Store
from tests.children import python

VOCABULARY = [f"w{i}" for i in range(5000)]
FOX = (
    "the quick brown fox jumps over the lazy dog while seven wizards box with jugs of liquor near the old stone mill"
)


def words(rng, n):
    return rng.choices(VOCABULARY, k=n)


def five_grams(text):
    """Written for this test: sets of tuples, no hashes."""
    own = text.split()
    return {tuple(own[i : i + 5]) for i in range(len(own) - 4)}


def jaccard(one, other):
    a, b = five_grams(one), five_grams(other)
    return len(a & b) / len(a | b)


def edited(rng, text, n_edits):
    own = text.split()
    for i in rng.sample(range(len(own)), n_edits):
        own[i] = rng.choice(VOCABULARY)
    return " ".join(own)


def kept_rows(handle):
    return [row for path in shard_paths(handle.directory) for row in read_table(path, CORPUS).to_pylist()]


def rows_in(handle, folder, schema):
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path, schema).to_pylist()]


def file_bytes(handle):
    return {
        str(path.relative_to(handle.directory)): path.read_bytes() for path in handle.directory.rglob("*.parquet")
    }


@pytest.fixture
def written_texts(store, written_documents):
    """One shard of documents (id, page id, text), made fast: all else is alike."""
    row = read_table(shard_paths(written_documents([("s", "x", "one", FOX)]).directory)[0], FILTERED)

    def write(documents):
        table = row.take([0] * len(documents))
        for name, values in zip(("id", "page_id", "text"), zip(*documents, strict=True), strict=True):
            field = FILTERED.field(name)
            table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))

        def shard(cfg, inputs, work):
            write_table(work.directory / "s.parquet", table)
            return Outcome(rows=len(documents), counts=Counts(rows_in=len(documents), kept=len(documents)))

        stage = Stage(name="filter", version=1, function=shard, handle=Shards)
        return store.build(stage, {"key": text_digest(*(part for one in documents for part in one))}).handle

    return write


@pytest.fixture
def planted():
    """Rows with edited copies at many similarities, templates and unrelated texts; and the pairs (original, copy)."""
    rng = random.Random(7)
    rows, pairs = [], []
    for i in range(120):
        original = " ".join(words(rng, rng.randrange(150, 400)))
        copy = edited(rng, original, rng.randrange(0, 14))
        rows += [("a", "one", f"o{i:03d}", original), ("b", "two", f"c{i:03d}", copy)]
        pairs.append((f"o{i:03d}", f"c{i:03d}", jaccard(original, copy)))
    template = words(rng, 120)
    for i in range(30):  # the same frame, other content: alike, but no copies
        filled = template[:60] + words(rng, 60) + template[60:]
        rows.append(("t", "templates", f"t{i:03d}", " ".join(filled)))
    rows += [("u", "others", f"u{i:03d}", " ".join(words(rng, 200))) for i in range(60)]
    return rows, pairs


def test_dedup_planted_copies_are_found_and_nothing_else(store, written_documents, planted):
    rows, pairs = planted
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    texts = {name: text for _, _, name, text in rows}
    evidence = rows_in(built.handle, EVIDENCE_FOLDER, EVIDENCE)
    for row in evidence:
        similarity = jaccard(texts[row["kept_page_id"]], texts[row["dropped_page_id"]])
        assert row["similarity"] == pytest.approx(similarity, abs=0.02)  # a word may stand there twice
        assert similarity >= 0.68 or row["containment"] >= 0.9
    gone = {row["dropped_page_id"] for row in evidence}
    certain = [(one, copy) for one, copy, similarity in pairs if similarity >= 0.82]
    found = sum(one in gone or copy in gone for one, copy in certain)
    assert len(certain) >= 40 and found >= 0.95 * len(certain)
    assert all(name[0] in "oc" for name in gone)


def test_dedup_evidence_reconciles_with_dropped_and_counts(store, written_documents, planted):
    rows, _ = planted
    rows += [("x", "three", f"x{i}", rows[0][3].upper()) for i in range(3)]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    dropped = rows_in(built.handle, DROPPED_FOLDER, DROPPED)
    evidence = rows_in(built.handle, EVIDENCE_FOLDER, EVIDENCE)
    kept = kept_rows(built.handle)
    assert built.counts.is_conserved() and built.counts.rows_in == len(rows)
    assert built.counts.dropped == Counter(row["reason"] for row in dropped)
    assert [row["page_id"] for row in dropped] == [row["dropped_page_id"] for row in evidence]
    by_page = {row["page_id"]: row for row in kept}
    sizes = Counter(row["kept_page_id"] for row in evidence)
    assert sizes.keys() <= by_page.keys()
    assert all(row["cluster_size"] == 1 + sizes[row["page_id"]] for row in kept)
    assert all(row["cluster_id"] == row["page_id"] for row in kept)
    assert all(by_page[row["kept_page_id"]]["id"] == row["kept_id"] for row in evidence)


def test_dedup_best_of_copies_stays(store, written_documents):
    rows = [
        ("a", "blog", "short", FOX),
        ("a", "blog", "long", FOX + " and then some more"),
        ("b", "mirror", "shouted", FOX.upper() + " AND THEN SOME MORE"),
    ]
    config = DedupConfig(source_priority=("mirror", "blog"))
    built = store.build(DEDUP, config, written_documents(rows))
    assert [row["page_id"] for row in kept_rows(built.handle)] == ["shouted"]
    assert kept_rows(built.handle)[0]["cluster_size"] == 3
    assert built.counts.dropped == {"exact_duplicate": 1, "near_duplicate": 1}
    assert {row["kept_page_id"] for row in rows_in(built.handle, EVIDENCE_FOLDER, EVIDENCE)} == {"shouted"}


def test_dedup_chain_drops_only_what_is_verified_against_a_kept_one(store, written_documents):
    """a is like b and b is like c, but c is not like a: c stays, although all three are connected."""
    rng = random.Random(3)
    own = words(rng, 400)
    rows = []
    for i, name in enumerate("abc"):
        window = own[18 * i : 18 * i + 300 - i]
        rows.append(("s", "x", name, " ".join(window)))
    texts = {name: text for *_, name, text in rows}
    assert jaccard(texts["a"], texts["b"]) > 0.8 < jaccard(texts["b"], texts["c"])
    assert jaccard(texts["a"], texts["c"]) < 0.8
    config = DedupConfig(min_similarity=0.8, min_containment=0.99, min_own_words=100)
    built = store.build(DEDUP, config, written_documents(rows))
    assert [row["page_id"] for row in kept_rows(built.handle)] == ["a", "c"]


def test_dedup_excerpt_goes_for_the_longer_text_and_never_the_other_way(store, written_documents):
    rng = random.Random(5)
    book = words(rng, 3000)
    repeated = words(rng, 100)
    rows = [
        ("s", "x", "book", " ".join(book)),
        ("s", "x", "excerpt", " ".join(book[1000:1200])),
        # more words, but nothing that `varied` has not; dropping `varied` for it would lose text
        ("s", "x", "repeated", " ".join(repeated * 9)),
        ("s", "x", "varied", " ".join(repeated * 2 + words(rng, 400))),
    ]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    assert [row["page_id"] for row in kept_rows(built.handle)] == ["book", "varied"]
    evidence = rows_in(built.handle, EVIDENCE_FOLDER, EVIDENCE)
    pairs = [(row["kept_page_id"], row["dropped_page_id"], row["rule"]) for row in evidence]
    assert pairs == [("book", "excerpt", "containment"), ("varied", "repeated", "containment")]
    assert evidence[0]["containment"] == 1.0 and evidence[0]["similarity"] < 0.1


def test_dedup_overlapping_texts_become_one_family(store, written_documents):
    rng = random.Random(6)
    own = words(rng, 1000)
    rows = [
        ("s", "x", "first", " ".join(own[:600])),
        ("s", "x", "second", " ".join(own[400:])),  # a third of it stands in the first
        ("s", "x", "alone", " ".join(words(rng, 600))),
    ]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    families = {row["page_id"]: row["family_id"] for row in kept_rows(built.handle)}
    assert families == {"first": "first", "second": "first", "alone": "alone"}
    strict = store.build(DEDUP, DedupConfig(family_overlap=0.6), written_documents(rows))
    assert len({row["family_id"] for row in kept_rows(strict.handle)}) == 3


def test_dedup_same_words_in_another_order_are_another_text(store, written_documents):
    own = words(random.Random(11), 200)
    rows = [("s", "x", "one", " ".join(own)), ("s", "x", "other", " ".join(reversed(own)))]
    assert store.build(DEDUP, DedupConfig(), written_documents(rows)).handle.rows == 2


@pytest.mark.parametrize("text", ["", "...", "one", "one two three four", "\u4f60\u597d"])
def test_dedup_texts_shorter_than_a_shingle_are_compared_too(store, written_documents, text):
    rows = [("s", "x", "one", text), ("s", "x", "other", text.upper()), ("s", "x", "third", "quite another text")]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    assert sorted(row["page_id"] for row in kept_rows(built.handle)) == ["one", "third"]


def test_dedup_scripts_without_spaces_are_compared_by_character(store, written_documents):
    rng = random.Random(8)
    text = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(400))
    rows = [("s", "x", "one", text), ("s", "x", "other", text[:200] + "\u4e00" + text[201:])]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    assert built.counts.dropped == {"near_duplicate": 1}


def test_dedup_no_documents_give_none(store, written_documents):
    built = store.build(DEDUP, DedupConfig(), written_documents([], shards=("empty",)))
    assert built.handle.rows == 0 and built.counts.dropped == {}
    assert [path.name for path in shard_paths(built.handle.directory)] == ["empty.parquet"]
    assert store.build(DEDUP, DedupConfig(), written_documents([])).handle.rows == 0


def test_dedup_all_equal_leaves_one(store, written_documents):
    rows = [(f"s{i % 3}", "x", f"p{i:03d}", FOX) for i in range(200)]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    (kept,) = kept_rows(built.handle)
    assert (kept["page_id"], kept["cluster_size"]) == ("p000", 200)
    assert built.counts.dropped == {"exact_duplicate": 199}


def test_dedup_bucket_of_thousands_costs_pairs_in_proportion(tmp_path, store, written_documents):
    """Two thousand texts in one bucket would be two million pairs."""
    rng = random.Random(9)
    own = words(rng, 300)
    rows = [("s", "x", f"p{i:04d}", " ".join([*own, f"only{i}"])) for i in range(2000)]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    assert built.handle.rows == 1
    assert built.record["measures"]["candidate_pairs"] <= 2000 * 32


def test_dedup_bytes_do_not_depend_on_order_workers_or_shards(tmp_path, store, written_documents, planted):
    rows, _ = planted
    serial = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    other = Store(root=tmp_path / "other", engine=LocalProcesses(n_workers=2))
    parallel = other.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    assert file_bytes(serial) == file_bytes(parallel)
    shuffled = random.Random(1).sample(rows, len(rows))
    mixed = store.build(DEDUP, DedupConfig(), written_documents([("one", *row[1:]) for row in shuffled])).handle

    def facts(handle):
        evidence = rows_in(handle, EVIDENCE_FOLDER, EVIDENCE)
        return (
            sorted((row["page_id"], row["cluster_size"], row["family_id"]) for row in kept_rows(handle)),
            sorted((row["kept_page_id"], row["dropped_page_id"], row["bands_shared"]) for row in evidence),
        )

    assert facts(mixed) == facts(serial)


@pytest.mark.parametrize(("n_threads", "memory_mb"), [(1, 64), (8, 4096)])
def test_dedup_candidates_do_not_depend_on_threads_or_memory(
    tmp_path, store, written_documents, planted, n_threads, memory_mb
):
    rows, _ = planted
    handle = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle

    def candidates(folder, **limits):
        with open_database(folder, **limits) as database:
            load_signatures(database, positions_of(shard_paths(handle.directory, SIGNATURES_FOLDER)))
            view_accepted(database, ())
            find_candidates(database, DedupConfig(), memory_mb=limits["memory_mb"])
            return database.execute("SELECT * FROM candidates ORDER BY ALL").fetchall()

    expected = candidates(tmp_path / "two", n_threads=2, memory_mb=1024)
    assert candidates(tmp_path / "other", n_threads=n_threads, memory_mb=memory_mb) == expected and expected


def test_dedup_one_changed_shard_costs_one_signature_part(store, written_documents):
    rng = random.Random(2)
    rows = [(f"s{i % 4}", "x", f"p{i}", " ".join(words(rng, 80))) for i in range(40)]
    store.build(DEDUP, DedupConfig(), written_documents(rows))
    parts = set((store.root / "dedup" / "parts").iterdir())
    store.build(DEDUP, DedupConfig(), written_documents([*rows[:-1], (*rows[-1][:3], "a new text for this page")]))
    assert len(set((store.root / "dedup" / "parts").iterdir()) - parts) == 1
    parts = set((store.root / "dedup" / "parts").iterdir())
    store.build(DEDUP, DedupConfig(min_similarity=0.5), written_documents(rows))
    assert set((store.root / "dedup" / "parts").iterdir()) == parts


BUILD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.store import Store, read_handle

calls = 0
def show(stage, done, total, unit):
    global calls
    calls += unit == sys.argv[3]
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(root=Path(sys.argv[2]), engine=LocalProcesses(n_workers=1), show=show)
store.build(DEDUP, DedupConfig(), read_handle(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("unit", ["documents", "ranks", "shards"])
def test_dedup_killed_and_run_again_gives_the_same_bytes(tmp_path, store, written_documents, planted, unit):
    rows, _ = planted
    handle = written_documents(rows)
    root = tmp_path / "killed"
    assert python("-c", BUILD_AND_DIE, str(handle.directory), str(root), unit).returncode == -9
    assert not list((root / "dedup").glob("*/record.json"))
    again = Store(root=root, engine=store.engine).build(DEDUP, DedupConfig(), handle).handle
    assert file_bytes(again) == file_bytes(store.build(DEDUP, DedupConfig(), handle).handle)
    assert not (again.directory / ".scratch").exists()


def test_dedup_output_for_fixed_texts_has_not_changed(store, written_documents, planted):
    """Raise the version of the stage, and that of the signatures, when this digest changes on purpose."""
    rows, _ = planted
    handle = store.build(DEDUP, DedupConfig(), written_documents(rows)).handle
    facts = sorted((row["page_id"], row["cluster_size"], row["family_id"]) for row in kept_rows(handle))
    signatures = rows_in(handle, SIGNATURES_FOLDER, SIGNATURES)
    facts += [(row["n_shingles"], row["bands"], row["sample"]) for row in signatures]
    digest = xxhash.xxh3_128_hexdigest(repr(facts).encode())
    assert (digest, DEDUP.version, SIGNATURES_VERSION) == ("1f4134ced6bbce65f9f42f91eda2a1dd", 3, 3)


def test_dedup_unreadable_shard_is_named(store, written_documents):
    handle = written_documents([("s", "x", "one", FOX)])
    path = handle.directory / "s.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(Exception, match=r"s\.parquet"):
        store.build(DEDUP, DedupConfig(), handle)


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_similarity", 0.0), ("min_containment", 1.5), ("family_overlap", -1.0), ("bands", 0), ("seed", -1)],
)
def test_dedup_config_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}, expected"):
        DedupConfig(**{field: value})


def test_dedup_leaves_the_columns_and_names_of_its_input(store, written_documents):
    handle = written_documents([("b", "x", "one", FOX), ("a", "x", "two", "some other text")])
    built = store.build(DEDUP, DedupConfig(), handle)
    assert [path.name for path in shard_paths(built.handle.directory)] == ["a.parquet", "b.parquet"]
    schema = pq.read_schema(built.handle.directory / "a.parquet")
    assert schema.equals(CORPUS)


DIE_AFTER = """
import os, signal, sys, threading
from pathlib import Path
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.store import Store, read_handle

store = Store(root=Path(sys.argv[2]), engine=LocalProcesses(n_workers=2))
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
store.build(DEDUP, DedupConfig(), read_handle(Path(sys.argv[1])))
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dedup_killed_at_twenty_random_moments_gives_the_same_bytes(tmp_path, store, written_documents, planted):
    """Each run goes on from what the killed one before it left, or begins anew where that one had finished."""
    rng = random.Random(12)
    rows, _ = planted
    rows += [(f"k{i % 9}", "many", f"k{i:05d}", " ".join(words(rng, 60))) for i in range(500)]
    handle = written_documents(rows)
    started = time.perf_counter()
    expected = file_bytes(Store(root=tmp_path / "whole").build(DEDUP, DedupConfig(), handle).handle)
    seconds = time.perf_counter() - started
    n_killed = n_runs = 0
    root = tmp_path / "killed0"
    while n_killed < 20:
        moment = 0.1 + rng.random() * seconds
        n_runs += 1
        assert n_runs < 100
        if python("-c", DIE_AFTER, str(handle.directory), str(root), str(moment)).returncode == -9:
            n_killed += 1
        else:
            again = Store(root=root).build(DEDUP, DedupConfig(), handle)
            assert again.unchanged and file_bytes(again.handle) == expected
            root = tmp_path / f"killed{n_runs}"
    again = Store(root=root).build(DEDUP, DedupConfig(), handle).handle
    assert file_bytes(again) == expected
    assert not (again.directory / SCRATCH).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dedup_hundred_thousand_equal_documents_leave_one(store, written_texts):
    built = store.build(DEDUP, DedupConfig(), written_texts([("same", f"p{i:06d}", FOX) for i in range(100_000)]))
    assert built.handle.rows == 1 and built.counts.dropped == {"exact_duplicate": 99_999}
    assert built.record["measures"]["candidate_pairs"] == 0
    assert built.record["measures"]["largest_cluster"] == 100_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dedup_hundred_thousand_nearly_equal_documents_cost_pairs_in_proportion(store, written_texts):
    own = " ".join(words(random.Random(9), 60))
    rows = [(f"{i:032x}", f"p{i:06d}", f"{own} only{i}") for i in range(100_000)]
    built = store.build(DEDUP, DedupConfig(), written_texts(rows))
    assert built.handle.rows == 1
    assert built.record["measures"]["candidate_pairs"] <= 100_000 * 64


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dedup_document_of_hundred_megabytes_is_compared(store, written_documents):
    """In workers with the usual limit of memory; an excerpt of it goes."""
    rng = random.Random(10)
    block = " ".join(words(rng, 40_000)) + " "
    text = "".join(f"{block}part {i} " for i in range(100_000_000 // len(block) + 1))
    excerpt = " ".join(block.split()[1000:3000])
    rows = [("s", "x", "huge", text), ("s", "x", "excerpt", excerpt), ("t", "x", "other", " ".join(words(rng, 500)))]
    limited = Store(root=store.root, engine=LocalProcesses(n_workers=1))
    built = limited.build(DEDUP, DedupConfig(), written_documents(rows))
    assert len(text) > 100_000_000
    assert [row["page_id"] for row in kept_rows(built.handle)] == ["huge", "other"]


def test_dedup_different_texts_of_one_id_both_stay(store, written_texts):
    """A hash may collide, by chance or because somebody made it so."""
    rng = random.Random(13)
    one, other = (" ".join(words(rng, 100)) for _ in range(2))
    rows = [("0" * 32, "a", one), ("0" * 32, "b", other), ("0" * 32, "c", one)]
    built = store.build(DEDUP, DedupConfig(), written_texts(rows))
    assert [row["page_id"] for row in kept_rows(built.handle)] == ["a", "b"]
    assert built.counts.dropped == {"exact_duplicate": 1}


def test_dedup_documents_of_one_page_id_are_told_apart(store, written_documents):
    rng = random.Random(14)
    one, other = (" ".join(words(rng, 100)) for _ in range(2))
    rows = [("s", "x", "same", one), ("s", "x", "same", other), ("t", "x", "same", one)]
    built = store.build(DEDUP, DedupConfig(), written_documents(rows))
    assert sorted(row["text"] for row in kept_rows(built.handle)) == sorted([one, other])
    assert built.counts.is_conserved() and built.counts.dropped == {"exact_duplicate": 1}


def test_dedup_one_document_stays(store, written_documents):
    built = store.build(DEDUP, DedupConfig(), written_documents([("s", "x", "one", FOX)]))
    assert built.handle.rows == 1 and built.record["measures"]["largest_cluster"] == 1


def test_dedup_shard_that_lost_its_tail_is_named(store, written_documents):
    handle = written_documents([(f"s{i % 2}", "x", f"p{i}", f"{FOX} {i}") for i in range(50)])
    path = handle.directory / "s1.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptShard, match=r"s1\.parquet.*delete"):
        store.build(DEDUP, DedupConfig(), handle)


def test_dedup_shard_that_changes_after_its_signatures_is_named(store, written_documents):
    """Its signatures are cached, so that only the writing reads it."""
    handle = written_documents([(f"s{i % 2}", "x", f"p{i}", f"{FOX} {i}") for i in range(50)])
    workers = Store(root=store.root, engine=LocalProcesses(n_workers=1))
    workers.build(DEDUP, DedupConfig(), handle)
    path = handle.directory / "s1.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorruptShard, match=r"s1\.parquet contains other bytes"):
        workers.build(DEDUP, DedupConfig(min_similarity=0.6), handle)


def test_dedup_memory_and_threads_are_no_part_of_its_identity(store, written_documents):
    handle = written_documents([("s", "x", "one", FOX)])
    store.build(DEDUP, DedupConfig(), handle)
    assert store.build(DEDUP, DedupConfig(memory_mb=64, threads=1), handle).unchanged
