"""The store: what is made once, what is made again, and what happens when a build is cut off."""

import json
import multiprocessing
import os
import signal
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.engine import Done, LocalProcesses
from pipeline.store.errors import CorruptShard, DiskFull
from pipeline.store.parts import map_shards
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import read_table, shard_paths, write_rows, write_table, write_text
from pipeline.store.store import (
    NOT_IDENTITY,
    Outcome,
    Stage,
    Store,
    literals,
    read_handle,
    recipe_of,
)
from tests.children import python

ROW = pa.schema([pa.field("text", pa.string())])
calls: list[str] = []  # what ran in this process


@dataclass(frozen=True, kw_only=True)
class Settings:
    words: tuple[str, ...] = ("one", "two")
    factor: float = 1.5
    folder: str = field(default="", metadata=NOT_IDENTITY)


def write_words(cfg: Settings, inputs, work) -> Outcome:
    calls.append("words")
    for i, word in enumerate(cfg.words):
        write_table(work.directory / f"{i}.parquet", pa.table({"text": [word] * 3}, schema=ROW))
    return Outcome(rows=3 * len(cfg.words), counts=Counts(rows_in=3 * len(cfg.words), kept=3 * len(cfg.words)))


def upper(text: str) -> str:
    return text.upper()


def upper_shards(cfg, inputs, work) -> Outcome:
    """Keeps what is upper case, drops the word "bad"."""

    def write(part: Path, items: list[str], answers: list[Done]) -> Counts:
        calls.append(items[0] if items else "")
        assert [answer.value for answer in answers] == [item.upper() for item in items]
        kept = [{"text": answer.value} for answer in answers if answer.value != "BAD"]
        write_rows(part / "kept.parquet", kept, ROW)
        counts = Counts(rows_in=len(items), kept=len(kept))
        if len(kept) < len(items):
            counts.drop("bad", len(items) - len(kept))
            write_rows(part / "dropped.parquet", [{"text": "bad"}] * (len(items) - len(kept)), ROW)
        return counts

    def read(path: Path) -> list[str]:
        return read_table(path)["text"].to_pylist()

    counts = map_shards(work, inputs, read=read, function=upper, write=write)
    return Outcome(rows=counts.kept, counts=counts, content=tuple(p.name for p in shard_paths(work.directory)))


WORDS = Stage(name="words", version=1, function=write_words, handle=Shards)
UPPER = Stage(name="upper", version=1, function=upper_shards, handle=Shards)


@pytest.fixture(autouse=True)
def clean_calls():
    calls.clear()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(root=tmp_path / "store", engine=LocalProcesses(n_workers=1))


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.parquet")}


def test_store_same_thing_again_does_no_work(store):
    first, second = store.build(WORDS, Settings()), store.build(WORDS, Settings())
    assert (first.unchanged, second.unchanged) == (False, True)
    assert calls == ["words"] and first.handle == second.handle
    assert second.counts == Counts(rows_in=6, kept=6)


@pytest.mark.parametrize(
    "other",
    [
        lambda: (replace(WORDS, version=2), Settings()),
        lambda: (replace(WORDS, name="others"), Settings()),
        lambda: (replace(WORDS, libraries=("numpy",)), Settings()),
        lambda: (WORDS, Settings(factor=1.25)),
        lambda: (WORDS, Settings(words=("onetwo",))),
    ],
)
def test_store_version_name_libraries_and_config_are_identity(other):
    assert recipe_of(*other()) != recipe_of(WORDS, Settings())


def test_store_where_things_lie_is_no_identity(store, tmp_path):
    here = store.build(WORDS, Settings(folder="/one"))
    there = Store(root=tmp_path / "elsewhere").build(WORDS, Settings(folder="/two"))
    out = store.build(WORDS, Settings(), directory=tmp_path / "out")
    assert here.handle.fingerprint == there.handle.fingerprint == out.handle.fingerprint
    assert here.handle.digest == there.handle.digest == out.handle.digest
    assert out.handle.directory == tmp_path / "out"


def test_store_input_with_equal_content_made_otherwise_ends_the_rebuild(store):
    one = store.build(WORDS, Settings(factor=1.0))
    two = store.build(WORDS, Settings(factor=2.0))
    assert one.handle.fingerprint != two.handle.fingerprint and one.handle.digest == two.handle.digest
    store.build(UPPER, None, one.handle)
    assert store.build(UPPER, None, two.handle).unchanged


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), b"x", {1, 2}, object()])
def test_store_config_value_that_is_no_literal_is_refused_with_its_place(value):
    with pytest.raises(ValueError, match=r"config\.words\[1\] is"):
        literals(Settings(words=("a", value)))  # type: ignore[arg-type]


def test_store_changed_shard_alone_is_made_again(store):
    store.build(UPPER, None, store.build(WORDS, Settings(words=("a", "b", "c"))).handle)
    calls.clear()
    built = store.build(UPPER, None, store.build(WORDS, Settings(words=("a", "x", "c"))).handle)
    assert calls == ["words", "x"]
    assert [read_table(p)["text"][0].as_py() for p in shard_paths(built.handle.directory)] == ["A", "X", "C"]


def test_store_new_version_makes_every_shard_again(store):
    words = store.build(WORDS, Settings()).handle
    store.build(UPPER, None, words)
    calls.clear()
    store.build(replace(UPPER, version=2), None, words)
    assert calls == ["one", "two"]


def test_store_counts_are_summed_over_new_and_known_shards(store):
    store.build(UPPER, None, store.build(WORDS, Settings(words=("a", "bad"))).handle)
    built = store.build(UPPER, None, store.build(WORDS, Settings(words=("bad", "c", "a"))).handle)
    assert built.counts == Counts(rows_in=9, kept=6, dropped={"bad": 3}) and built.counts.is_conserved()
    assert [p.name for p in shard_paths(built.handle.directory, "dropped")] == ["0.parquet"]


@pytest.mark.parametrize("words", [("", "a"), ("a", ""), ("a", "", "", "b"), ("",)])
def test_store_shards_without_rows_keep_their_place(store, words):
    def some(cfg, inputs, work):
        for i, word in enumerate(cfg.words):
            write_rows(work.directory / f"{i}.parquet", [{"text": word}] * bool(word), ROW)
        return Outcome(rows=2)

    built = store.build(UPPER, None, store.build(replace(WORDS, function=some), Settings(words=words)).handle)
    tables = [read_table(path)["text"].to_pylist() for path in shard_paths(built.handle.directory)]
    assert tables == [[word.upper()] * bool(word) for word in words]


def test_store_two_inputs_with_shards_of_the_same_name_are_refused(store):
    one, two = (store.build(WORDS, Settings(words=(word,))).handle for word in "ab")
    with pytest.raises(ValueError, match=r"0\.parquet and .*0\.parquet have the same name"):
        store.build(UPPER, None, one, two)


@pytest.mark.parametrize("n_workers", [2, 4])
def test_store_bytes_do_not_depend_on_the_number_of_workers(store, tmp_path, n_workers):
    settings = Settings(words=tuple("abcdefgh"))
    one = store.build(UPPER, None, store.build(WORDS, settings).handle)
    other = Store(root=tmp_path / "other", engine=LocalProcesses(n_workers=n_workers))
    many = other.build(UPPER, None, other.build(WORDS, settings).handle)
    assert bytes_of(one.handle.directory) == bytes_of(many.handle.directory)
    assert one.handle.digest == many.handle.digest


def test_store_shard_that_lost_bytes_is_named_and_rebuilt_after_it_was_deleted(store):
    words = store.build(WORDS, Settings()).handle
    built = store.build(UPPER, None, words)
    before = bytes_of(built.handle.directory)
    shard = built.handle.directory / "1.parquet"
    os.truncate(shard, 10)
    with pytest.raises(CorruptShard, match=r"1\.parquet: 10 bytes, expected \d+ bytes; delete .* and rerun"):
        store.build(UPPER, None, words)
    for path in built.handle.directory.rglob("*.*"):
        path.unlink()
    assert bytes_of(store.build(UPPER, None, words).handle.directory) == before


def test_store_flipped_byte_in_a_cached_shard_is_not_used_again(store):
    """The output is a link to the cached shard, so that damage to one is damage to the other."""
    words = store.build(WORDS, Settings()).handle
    built = store.build(UPPER, None, words)
    before = bytes_of(built.handle.directory)
    with (built.handle.directory / "0.parquet").open("r+b") as file:
        file.seek(6)
        file.write(b"\xff\xff")
    (built.handle.directory / "record.json").unlink()
    assert bytes_of(store.build(UPPER, None, words).handle.directory) == before


def test_store_missing_shard_and_broken_record_are_named(store):
    built = store.build(WORDS, Settings())
    (built.handle.directory / "0.parquet").unlink()
    with pytest.raises(CorruptShard, match=r"0\.parquet: missing, expected"):
        read_handle(built.handle.directory)
    write_text(built.handle.directory / "record.json", "{")
    with pytest.raises(CorruptShard, match=r"record\.json is damaged"):
        store.build(WORDS, Settings())


def test_store_unreadable_input_shard_is_named(store):
    words = store.build(WORDS, Settings()).handle
    path = words.directory / "0.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorruptShard, match=r"0\.parquet contains other bytes"):
        store.build(UPPER, None, words)


def test_store_handle_is_read_back_equal(store, tmp_path):
    built = store.build(WORDS, Settings())
    assert read_handle(built.handle.directory) == built.handle
    with pytest.raises(ValueError, match="is not a finished output"):
        read_handle(tmp_path)


def test_store_folder_with_other_things_is_refused(store, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="full is not empty; choose another folder"):
        store.build(WORDS, Settings(), directory=tmp_path / "full")
    store.build(WORDS, Settings(), directory=tmp_path / "out")
    with pytest.raises(ValueError, match="contains a finished `words` built from other inputs or settings"):
        store.build(WORDS, Settings(factor=3.0), directory=tmp_path / "out")


def test_store_fault_in_a_stage_leaves_no_record_and_the_next_build_goes_on(store, tmp_path):
    def fail_once(cfg, inputs, work):
        write_text(work.directory / f".{len(calls)}.part", "half")
        outcome = write_words(cfg, inputs, work)
        if len(calls) == 1:
            raise ValueError("cut off")
        return outcome

    stage = replace(WORDS, function=fail_once)
    for directory in (None, tmp_path / "out"):
        calls.clear()
        with pytest.raises(ValueError, match="cut off"):
            store.build(stage, Settings(), directory=directory)
        built = store.build(stage, Settings(), directory=directory)
        assert sorted(built.record["files"]) == ["0.parquet", "1.parquet"]
        assert not list(built.handle.directory.glob(".0.part"))


def test_store_record_tells_what_was_made_from_what(store):
    words = store.build(WORDS, Settings(factor=2.0))
    record = store.build(UPPER, None, words.handle).record
    assert record["inputs"] == [
        {"stage": "words", "fingerprint": words.handle.fingerprint, "digest": words.handle.digest}
    ]
    assert words.record["config"] == {"words": ["one", "two"], "factor": 2.0}
    assert record["bytes"] == sum(file["bytes"] for file in record["files"].values())


def test_store_content_patterns_and_volatile_columns_decide_the_identity(store):
    def noted(cfg, inputs, work):
        write_text(work.directory / "log.txt", cfg.words[0])
        write_table(work.directory / "main.parquet", pa.table({"text": ["same"], "at": [cfg.words[0]]}))
        return Outcome(rows=1, content=("main*",), volatile=("at",))

    stage = replace(WORDS, function=noted)
    one, two = (store.build(stage, Settings(words=(word,))).handle for word in "ab")
    assert one.digest == two.digest and one.fingerprint != two.fingerprint


def test_store_output_of_another_version_of_the_parquet_library_rebuilds_nothing_downstream(store):
    """Every footer holds the version of pyarrow, and a digest was that of the file: after an upgrade whatever was
    built again differed, and all after it was built again too (review 3.5)."""

    def written_otherwise(cfg, inputs, work):
        outcome = write_words(cfg, inputs, work)
        for path in shard_paths(work.directory):
            pq.write_table(read_table(path).replace_schema_metadata({"by": "other"}), path, row_group_size=1)
        return outcome

    one = store.build(WORDS, Settings())
    other = store.build(replace(WORDS, function=written_otherwise, version=2), Settings())
    assert bytes_of(one.handle.directory) != bytes_of(other.handle.directory)
    store.build(UPPER, None, one.handle)
    assert store.build(UPPER, None, other.handle).unchanged


def test_store_file_that_a_stage_replaces_after_it_was_linked_is_hashed_as_it_is(store):
    def replaced(cfg, inputs, work):
        outcome = upper_shards(cfg, inputs, work)
        write_rows(work.directory / "0.parquet", [{"text": cfg.words[0]}], ROW)
        return outcome

    words, stage = store.build(WORDS, Settings()).handle, replace(UPPER, function=replaced)
    one, other = (store.build(stage, Settings(words=(word,)), words).handle for word in "ab")
    assert one.digest != other.digest


def test_store_progress_ends_at_the_number_of_rows(tmp_path):
    seen = []
    store = Store(root=tmp_path, engine=LocalProcesses(n_workers=1), show=lambda *call: seen.append(call))
    store.build(UPPER, None, store.build(WORDS, Settings()).handle)
    assert seen[0] == ("upper", 1, 6, "items") and seen[-1] == ("upper", 6, 6, "items")


def build_slowly(root: str, barrier, results) -> None:
    def slow(cfg, inputs, work):
        results.put("built")
        return write_words(cfg, inputs, work)

    barrier.wait(timeout=600)
    built = Store(root=Path(root)).build(replace(WORDS, function=slow), Settings())
    results.put(built.handle.digest)


def test_store_two_builds_at_once_one_builds_the_other_reuses(tmp_path):
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as manager:
        barrier, results = manager.Barrier(2), manager.Queue()
        processes = [context.Process(target=build_slowly, args=(str(tmp_path), barrier, results)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=600)
        seen = [results.get(timeout=60) for _ in range(3)]
        assert seen.count("built") == 1 and results.empty()
        assert len(set(seen) - {"built"}) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def big_then_small(cfg, inputs, work) -> Outcome:
    write_text(work.directory / "0.txt", "done")
    write_table(work.directory / "1.parquet", pa.table({"text": [os.urandom(100_000).hex() for _ in range(30)]}))
    return Outcome(rows=1)


def test_store_full_disk_is_one_clear_line_and_the_next_build_goes_on(small_disk):
    store = Store(root=small_disk / "store")
    with pytest.raises(DiskFull, match=r"no space left to write `words` .*MB.*gristmill gc.*run again") as caught:
        store.build(replace(WORDS, function=big_then_small), Settings())
    assert "\n" not in str(caught.value)
    assert not list(small_disk.rglob(".*.part"))
    assert store.build(WORDS, Settings()).handle.rows == 6


def test_store_killed_build_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    """SIGKILL while the third shard is written; the first two are not made again."""
    settings = Settings(words=tuple("abcdef"))
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from tests.pipeline.store import test_store as t\n"
        "from pipeline.store import shards\n"
        "n_written = 0\n"
        "def write_table(path, table):\n"
        "    global n_written\n"
        "    n_written += 1\n"
        "    if n_written > 8:\n"
        "        path.with_name(f'.{path.name}.1.part').touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    plain(path, table)\n"
        "plain, shards.write_table = shards.write_table, write_table\n"
        "t.write_table = write_table\n"
        f"store = t.Store(root=Path({str(tmp_path / 'store')!r}), engine=t.LocalProcesses(n_workers=2))\n"
        f"words = store.build(t.WORDS, t.Settings(words=tuple('abcdef'))).handle\n"
        "store.build(t.UPPER, None, words)\n"
    )
    killed = python("-c", script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store(root=tmp_path / "store", engine=LocalProcesses(n_workers=1))
    resumed = store.build(UPPER, None, store.build(WORDS, settings).handle)
    assert calls == list("cdef")
    whole = Store(root=tmp_path / "whole", engine=LocalProcesses(n_workers=1))
    never = whole.build(UPPER, None, whole.build(WORDS, settings).handle)
    assert bytes_of(resumed.handle.directory) == bytes_of(never.handle.directory)
    assert resumed.record["files"] == never.record["files"]


def test_store_without_git_has_no_commit(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from tests.pipeline.store import test_store as t\n"
        f"print(t.Store(root=Path({str(tmp_path)!r})).build(t.WORDS, t.Settings()).record['commit'])"
    )
    answer = python("-c", code, env={"PATH": ""}, check=True)
    assert answer.stdout == "None\n"


def test_record_is_json_that_others_can_read(store):
    built = store.build(WORDS, Settings())
    record = json.loads((built.handle.directory / "record.json").read_text())
    assert record["stage"] == "words" and record["rows"] == 6 and record["handle"] == "Shards"
