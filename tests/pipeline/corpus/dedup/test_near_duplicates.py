"""near_duplicates: what DuckDB is given decides nothing, and what it lacks is said in one line."""

import random
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from pipeline.corpus.dedup.accepted import view_accepted
from pipeline.corpus.dedup.near_duplicates import explained, find_candidates, load_signatures
from pipeline.corpus.dedup.signatures import SIGNATURES_FOLDER, positions_of
from pipeline.corpus.dedup.stage import DEDUP, SCRATCH, DedupConfig
from pipeline.store.database import open_database
from pipeline.store.errors import DiskFull
from pipeline.store.shards import shard_paths
from pipeline.store.store import Store, room_for

SYLLABLES = ["ba", "de", "fi", "go", "lu", "mer", "nan", "pol", "ris", "tov"]


def corpus(seed, n):
    """Rows (shard, source, name, text): every fifth is an edited copy of another, all share stock phrases."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(SYLLABLES, k=rng.randrange(1, 5))) for _ in range(3000)]
    stock = [" ".join(rng.choices(vocabulary, k=12)) for _ in range(20)]
    rows, texts = [], []
    for i in range(n):
        own = rng.choices(vocabulary, k=rng.randrange(40, 120))
        if texts and i % 5 == 0:
            own = rng.choice(texts).split()
            for at in rng.sample(range(len(own)), rng.randrange(0, 4)):
                own[at] = rng.choice(vocabulary)
        texts.append(" ".join([*own, rng.choice(stock)]) if i % 3 == 0 else " ".join(own))
        rows.append((f"s{i % 3}", f"source{i % 2}", f"p{i:06d}", texts[-1]))
    return rows


def file_bytes(handle):
    return {
        str(path.relative_to(handle.directory)): path.read_bytes() for path in handle.directory.rglob("*.parquet")
    }


@pytest.fixture
def built(store, written_documents):
    """Builds dedup of a corpus in a store of its own, with settings."""

    def build(root, rows, **settings):
        other = Store(root=root, engine=store.engine)
        return other.build(DEDUP, DedupConfig(**settings), written_documents(rows)).handle

    return build


@pytest.mark.parametrize("n", [1000, pytest.param(60_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_dedup_bytes_are_equal_for_any_threads_memory_and_order(tmp_path, built, n):
    rows = corpus(1, n)
    expected = file_bytes(built(tmp_path / "one", rows, threads=1, memory_mb=512))
    assert sum(name.startswith("evidence") for name in expected) == 3
    for threads, memory_mb in ((2, 8000), (8, 512), (8, 8000), (2, 64)):
        folder = tmp_path / f"{threads}-{memory_mb}"
        assert file_bytes(built(folder, rows, threads=threads, memory_mb=memory_mb)) == expected
        shutil.rmtree(folder)


def test_dedup_shards_in_another_order_give_the_same_bytes(tmp_path, built):
    """Rows of a shard keep their place; the shards themselves come in the order of their names."""
    rows = corpus(2, 300)
    by_shard = sorted(rows, key=lambda row: row[0], reverse=True)
    assert file_bytes(built(tmp_path / "one", rows)) == file_bytes(built(tmp_path / "other", by_shard))


def test_find_candidates_spills_and_finds_the_same(tmp_path, built):
    handle = built(tmp_path / "store", corpus(3, 2000))

    def candidates(folder, memory_mb, n_threads, assumed_mb):
        with open_database(folder, n_threads=n_threads, memory_mb=memory_mb) as database:
            load_signatures(database, positions_of(shard_paths(handle.directory, SIGNATURES_FOLDER)))
            view_accepted(database, ())
            find_candidates(database, DedupConfig(), memory_mb=assumed_mb)
            tables = ("candidates", "relatives", "repeated")
            return [database.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall() for name in tables]

    expected = candidates(tmp_path / "roomy", 1000, 1, 1000)
    assert all(expected)
    assert candidates(tmp_path / "passes", 1000, 2, 1) == expected  # a pass for every few hashes
    assert candidates(tmp_path / "tight", 32, 4, 1000) == expected  # one pass, which does not fit


@contextmanager
def mounted(folder, kilobytes):
    """A file system of that size at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [200, 700, 1400])  # full at signatures, at hashes of texts, at the outcomes
def test_dedup_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, store, written_documents, kilobytes):
    handle = written_documents(corpus(4, 800))
    expected = file_bytes(store.build(DEDUP, DedupConfig(), handle).handle)
    with mounted(tmp_path / "small", kilobytes) as root:
        small = Store(root=root, engine=store.engine)
        with pytest.raises(DiskFull, match=r"no space left .*MB free.*free some.*finished work is kept") as stopped:
            small.build(DEDUP, DedupConfig(), handle)
        assert "\n" not in str(stopped.value) and str(root) in str(stopped.value)
        assert not list(root.glob(f"dedup/*/{SCRATCH}"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(root)], check=True)
        parts = set((root / "dedup" / "parts").glob("*/record.json"))
        assert file_bytes(small.build(DEDUP, DedupConfig(), handle).handle) == expected
        assert parts <= set((root / "dedup" / "parts").glob("*/record.json"))


def test_explained_too_little_memory_names_the_setting(tmp_path):
    message = r"memory_mb=64 .* is too little"
    with (
        pytest.raises(ValueError, match=message),
        explained(64),
        open_database(tmp_path, n_threads=1, memory_mb=64) as database,
    ):
        database.execute("SELECT list(i) FROM range(100000000) AS t(i)").fetchall()


def test_open_database_spill_over_its_limit_is_a_full_disk(tmp_path):
    with (
        pytest.raises(DiskFull, match="no space left to write `dedup`"),
        room_for("dedup", tmp_path),
        open_database(tmp_path, n_threads=2, memory_mb=64) as database,
    ):
        database.execute("SET max_temp_directory_size = '1MB'")
        database.execute("CREATE TABLE t AS SELECT i, hash(i) AS h FROM range(20000000) AS r(i) ORDER BY h")
