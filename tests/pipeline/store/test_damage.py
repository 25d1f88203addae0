"""Damaged files of the data folder: rotten bits, torn records and handles. Each error names the file and the cure."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.store import checksums
from pipeline.store.checksums import SEEN, check_output, damaged_files
from pipeline.store.errors import CorruptShard
from pipeline.store.layout import Layout, all_current, all_entries, load_current, save_current
from pipeline.store.lineage import lineage
from pipeline.store.record_file import load_record, read_record
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import write_bytes
from pipeline.store.store import Outcome, Stage, Store, read_handle, verify
from pipeline.tracking.journal import Journal
from tests.children import python


@dataclass(frozen=True, kw_only=True)
class Settings:
    n_bytes: int = 1000
    name: str = "a"


def write_files(cfg: Settings, inputs, work) -> Outcome:
    write_bytes(work.directory / "rows.bin", cfg.name.encode() * cfg.n_bytes)
    write_bytes(work.directory / "notes" / "curve.jsonl", b"{}\n")  # not part of the identity
    return Outcome(rows=1, content=("rows.bin",))


FLOUR = Stage(name="flour", version=1, function=write_files, handle=Shards)
BREAD = Stage(name="bread", version=1, function=write_files, handle=Shards)
WEIGHTS = Stage(name="weights", version=1, function=write_files, handle=Checkpoint)


def flip(path: Path, *, place: int = -1, keeps_time: bool = True) -> None:
    """Change one bit, and nothing that a listing of the folder shows."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    if keeps_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rot(path: Path, directory: Path) -> None:
    """Change one bit as a disk does: no time of the file shows it, so the folder counts as verified today."""
    flip(path)
    seen = json.loads((directory / SEEN).read_text("utf-8"))
    status, name = path.stat(), str(path.relative_to(directory))
    seen["files"][name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    (directory / SEEN).write_text(json.dumps(seen), "utf-8")


@pytest.mark.parametrize("name", ["rows.bin", "notes/curve.jsonl"])
def test_flipped_bit_is_found_when_the_output_is_asked_for_again(name, store):
    """Only sizes were compared: doctor said "all whole", and a model was trained on it (borgbackup/borg#5296)."""
    built = store.build(FLOUR, Settings())
    assert store.build(FLOUR, Settings()).unchanged
    flip(built.handle.directory / name)
    with pytest.raises(
        CorruptShard, match=rf"{name} contains other bytes .* delete {built.handle.directory} and rer"
    ):
        store.build(FLOUR, Settings())


def test_flipped_bit_of_an_input_is_found_before_it_is_read(store):
    flour = store.build(FLOUR, Settings()).handle
    flip(flour.directory / "rows.bin")
    with pytest.raises(CorruptShard, match=r"flour/.*/rows\.bin contains other bytes"):
        store.build(BREAD, Settings(), flour)
    assert not (store.root / "bread" / "x").exists()


def test_bit_that_rots_without_a_trace_is_found_by_the_sample_of_the_next_day(store):
    flour = store.build(FLOUR, Settings()).handle
    rot(flour.directory / "rows.bin", flour.directory)
    verify(flour.directory)  # was verified today
    seen = json.loads((flour.directory / SEEN).read_text("utf-8"))
    (flour.directory / SEEN).write_text(json.dumps(seen | {"day": "2020-01-01"}), "utf-8")
    check_output(flour.directory, load_record(flour.directory))  # is not read, so nothing is sampled
    with pytest.raises(CorruptShard, match=r"rows\.bin contains other bytes"):
        verify(flour.directory)


def test_weights_are_verified_whole_every_time_they_are_read(store):
    weights = store.build(WEIGHTS, Settings()).handle
    rot(weights.directory / "rows.bin", weights.directory)
    with pytest.raises(CorruptShard, match=r"weights/.*/rows\.bin contains other bytes"):
        store.build(BREAD, Settings(), weights)


def test_nothing_is_verified_twice_a_day(store, monkeypatch):
    flour = store.build(FLOUR, Settings()).handle
    monkeypatch.setattr(checksums, "_first_changed", lambda *args: pytest.fail("a file was read again"))
    verify(flour.directory)
    store.build(FLOUR, Settings())


def test_sample_of_a_large_output_is_bounded_and_differs_from_day_to_day(store, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 100)
    monkeypatch.setattr(checksums, "SAMPLE_BYTES", 300)
    flour = store.build(FLOUR, Settings()).handle
    record, read = load_record(flour.directory), []
    first_changed = checksums._first_changed

    def counted(path: Path, expected: list[str], numbers: list[int]) -> int | None:
        read.extend((path.name, number) for number in numbers)
        return first_changed(path, expected, numbers)

    monkeypatch.setattr(checksums, "_first_changed", counted)
    samples = set()
    for day in range(5):
        monkeypatch.setattr(checksums.time, "strftime", lambda form, day=day: f"2020-01-0{day}")
        check_output(flour.directory, record, is_read=True)
        assert len(read) == 3
        samples.add(frozenset(read))
        read.clear()
    assert len(samples) > 1


def test_damaged_files_lists_all_of_them(store):
    flour = store.build(FLOUR, Settings()).handle
    record = load_record(flour.directory)
    assert not list(damaged_files(flour.directory, record))
    flip(flour.directory / "rows.bin")
    (flour.directory / "notes" / "curve.jsonl").unlink()
    found = list(damaged_files(flour.directory, record))
    assert len(found) == 2 and "rows.bin contains other bytes" in found[1] and "curve.jsonl is missing" in found[0]


def test_damaged_file_of_a_record_without_checksums_is_found_by_its_digest(store):
    flour = store.build(FLOUR, Settings()).handle
    record = load_record(flour.directory)
    for entry in record["files"].values():
        del entry["blocks"]
    assert not list(damaged_files(flour.directory, record))
    check_output(flour.directory, record, is_read=True)
    flip(flour.directory / "rows.bin")
    assert len(list(damaged_files(flour.directory, record))) == 1


@pytest.mark.parametrize("read", [read_handle, lambda directory: lineage([read_handle(directory)])])
def test_flipped_bit_is_found_by_commands_that_only_read(read, store):
    """`trace`, `forget` and `results` of a damaged output ended in an error of Parquet or JSON without a file."""
    flour = store.build(FLOUR, Settings()).handle
    bread = store.build(BREAD, Settings(), flour).handle
    damaged = bread if read is read_handle else flour
    flip(damaged.directory / "rows.bin")
    with pytest.raises(CorruptShard, match=rf"{damaged.directory}/rows\.bin contains other bytes"):
        read(bread.directory)


CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline.store.layout import Layout, load_current, save_current
from pipeline.store.store import read_handle
from pipeline.tracking.journal import Journal

place, n, layout = sys.argv[1], int(sys.argv[2]), Layout(Path(sys.argv[3]))
left, call = n, getattr(os, place)

def killing(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args, **kwargs)

handle = read_handle(Path(sys.argv[4]))
setattr(os, place, killing)
save_current(layout, "corpus", handle)
Journal(layout, "f" * 32).update(start={}, status="FINISHED")
"""


@pytest.mark.parametrize("n", [1, 2, 3])
def test_kill_while_a_handle_or_journal_is_written_leaves_a_whole_file(n, layout):
    store = Store(root=layout.store)
    first, second = (store.build(FLOUR, Settings(name=name)).handle for name in "ab")
    save_current(layout, "corpus", first)
    journal = Journal(layout, "f" * 32)
    journal.folder.mkdir(parents=True)
    journal.update(start={}, status="RUNNING")
    answer = python("-c", CHILD, "fsync", str(n), str(layout.data), str(second.directory))
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert load_current(layout, "corpus") in (first, second)
    assert journal.state()["status"] in ("RUNNING", "FINISHED")


RECORDS = [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[]",
    lambda text: "null",
    lambda text: "[" * 100_000,
    lambda text: "\0" * len(text),
    lambda text: text.replace('"digest"', '"digets"', 1),
    lambda text: text.replace('"fingerprint"', '"x"', 1),
    lambda text: text.replace('"handle": "Shards"', '"handle": "Sacks"'),
    lambda text: text.replace('"rows": 1', '"rows": "1"'),
    lambda text: text.replace('"inputs": []', '"inputs": [1]'),
    lambda text: text.replace('"counts": null', '"counts": {"kept": 1}'),
    lambda text: text.replace('"files": {', '"files": {"x": 3, '),
]


@pytest.mark.parametrize("spoil", RECORDS)
def test_damaged_record_is_named_with_the_cure(spoil, store):
    """A torn record, `[]` and a missing key were a JSONDecodeError, TypeError and KeyError without a file
    (HelloZeroNet/ZeroNet#2125)."""
    directory = store.build(FLOUR, Settings()).handle.directory
    path = directory / "record.json"
    path.write_text(spoil(path.read_text("utf-8")), "utf-8")
    with pytest.raises(CorruptShard, match=rf"{path} is damaged \(.*\); delete {directory} and rerun"):
        read_record(directory)
    with pytest.raises(CorruptShard, match=r"record\.json is damaged"):
        store.build(FLOUR, Settings())


ENTRIES = [
    lambda text: "",
    lambda text: text[:20],
    lambda text: "[]",
    lambda text: "{}",
    lambda text: text.replace("corpus", "corpux"),
    lambda text: text.replace("flour/", "../flour/"),
    lambda text: text.replace('"folder": "', '"folder": "/'),
    lambda text: text.replace('"earlier": []', '"earlier": 3'),
    lambda text: text.replace('"earlier": []', '"earlier": [3]'),
]


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path)


@pytest.mark.parametrize("spoil", ENTRIES)
def test_damaged_handle_is_named_with_the_cure(spoil, layout):
    """A torn or empty file of data/current was a JSONDecodeError that named three wrong assets and no file
    (drt-hub/drt#47)."""
    handle = Store(root=layout.store).build(FLOUR, Settings()).handle
    save_current(layout, "corpus", handle)
    path = layout.current / "corpus.json"
    path.write_text(spoil(path.read_text("utf-8")), "utf-8")
    for read in (all_entries, all_current, lambda layout: load_current(layout, "corpus")):
        with pytest.raises(CorruptShard, match=rf"{path} is damaged \(.*\); run `gristmill doctor`"):
            read(layout)


def test_damaged_handle_is_set_aside_when_the_asset_is_made_again(layout, caplog):
    handle = Store(root=layout.store).build(FLOUR, Settings()).handle
    (layout.current).mkdir()
    path = layout.current / "corpus.json"
    path.write_text("{", "utf-8")
    save_current(layout, "corpus", handle)
    assert load_current(layout, "corpus") == handle
    assert path.with_name("corpus.json.damaged").read_text("utf-8") == "{"
    assert "corpus.json is damaged" in caplog.text


def test_handle_of_a_removed_output_says_so(layout):
    handle = Store(root=layout.store).build(FLOUR, Settings()).handle
    save_current(layout, "corpus", handle)
    handle.directory.rename(layout.data / "elsewhere")
    with pytest.raises(ValueError, match=r"the output of corpus, was removed; run `gristmill run \+corpus`"):
        load_current(layout, "corpus")
