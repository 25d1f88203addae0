"""gc keeps what a kept result or a registered model was made from, and nothing else; du counts bytes once."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.store.disk import disk_usage, find_garbage, remove_garbage, size_text
from pipeline.store.layout import Layout, all_entries, load_current, save_current
from pipeline.store.records import Shards
from pipeline.store.run_handles import forget_runs, save_of_run
from pipeline.store.shards import link_or_copy, text_digest, write_text
from pipeline.store.store import Outcome, Stage, Store, read_handle

ROOT = Path(__file__).parents[3]
KILOBYTE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterConfig:
    letter: str


def _write_letter(cfg, inputs, work) -> Outcome:
    """A kilobyte of one letter, cached as a part and linked into the output, as map_shards does."""
    part = work.parts / cfg.letter / "kept.txt"
    if not part.exists():
        write_text(part, cfg.letter * KILOBYTE)
    link_or_copy(part, work.directory / "letters.txt")
    return Outcome(rows=1)


PAGES = Stage(name="collect", version=1, function=_write_letter, handle=Shards)
CORPUS = Stage(name="dedup", version=1, function=_write_letter, handle=Shards)


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path)


def _materialise(layout: Layout, letter: str) -> tuple[Path, Path]:
    """Folders of the pages and of the corpus made of `letter`, which become current."""
    store = Store(root=layout.store)
    pages = store.build(PAGES, LetterConfig(letter=letter)).handle
    corpus = store.build(CORPUS, LetterConfig(letter=letter), pages).handle
    save_current(layout, "pages/letters", pages)
    save_current(layout, "corpus", corpus)
    return pages.directory, corpus.directory


def test_gc_keep_one_removes_older_outputs_with_their_parts(layout):
    old = _materialise(layout, "a")
    new = _materialise(layout, "b")
    garbage = find_garbage(layout, keep=1, registered=())
    assert set(garbage.outputs) == set(old)
    assert {part.name for part in garbage.parts} == {"a"}
    remove_garbage(layout, garbage)
    assert [folder.exists() for folder in (*old, *new)] == [False, False, True, True]
    assert sorted(part.name for part in layout.store.glob("*/parts/*")) == ["b", "b"]
    assert load_current(layout, "corpus").directory == new[1]


def test_gc_keep_two_keeps_the_output_before(layout):
    oldest, *_ = _materialise(layout, "a"), _materialise(layout, "b"), _materialise(layout, "c")
    assert set(find_garbage(layout, keep=2, registered=()).outputs) == set(oldest)


def test_gc_output_that_came_back_counts_as_the_newest(layout):
    _materialise(layout, "a")
    middle = _materialise(layout, "b")
    _materialise(layout, "a")
    assert set(find_garbage(layout, keep=1, registered=()).outputs) == set(middle)


def test_gc_keeps_what_a_current_output_was_made_from(layout):
    """The corpus is current, its pages are not: they answer where the corpus came from."""
    old_pages, _ = _materialise(layout, "a")
    save_current(layout, "pages/letters", Store(root=layout.store).build(PAGES, LetterConfig(letter="b")).handle)
    assert old_pages not in find_garbage(layout, keep=1, registered=()).outputs


def test_gc_keeps_a_registered_model_and_its_inputs(layout):
    old_pages, old_corpus = _materialise(layout, "a")
    _materialise(layout, "b")
    assert find_garbage(layout, keep=1, registered={old_corpus.name}).folders == ()
    assert set(find_garbage(layout, keep=1, registered={old_pages.name}).outputs) == {old_corpus}


def test_gc_keeps_unfinished_builds_unless_told(layout):
    _materialise(layout, "a")
    killed = layout.store / "collect" / ("f" * 32)
    write_text(killed / "checkpoints" / "weights", "half")
    write_text(layout.store / "collect" / "parts" / "done" / "kept.parquet", "a finished shard of it")
    assert find_garbage(layout, keep=1, registered=()).folders == ()
    told = find_garbage(layout, keep=1, registered=(), unfinished=True)
    assert told.unfinished == (killed,)
    assert [part.name for part in told.parts] == ["done"]


def test_gc_promises_the_bytes_that_come_free(layout):
    """Output and part share one inode: a kilobyte of each stage comes free, once."""
    _materialise(layout, "a")
    _materialise(layout, "b")
    records = sum(
        (folder / name).stat().st_size
        for folder in find_garbage(layout, keep=1, registered=()).outputs
        for name in ("record.json", ".verified.json")
    )
    assert find_garbage(layout, keep=1, registered=()).n_bytes == 2 * KILOBYTE + records


BUILDING = """
import sys
from pathlib import Path
from tests.pipeline.store.test_disk import CORPUS, PAGES, LetterConfig
from pipeline.store.store import Outcome, Store, Stage, read_handle

def waiting(cfg, inputs, work):
    print("building", flush=True)
    sys.stdin.read()
    return Outcome(rows=len((inputs[0].directory / "letters.txt").read_text()))

store = Store(root=Path(sys.argv[1]))
pages = read_handle(Path(sys.argv[2]))
stage = Stage(name="split", version=1, function=waiting, handle=CORPUS.handle)
print(store.build(stage, LetterConfig(letter="x"), pages).handle.rows)
"""


@contextmanager
def building(layout: Layout, pages: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that builds from `pages`, until its input is closed."""
    command = [sys.executable, "-c", BUILDING, str(layout.store), str(pages)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as builder:
        assert builder.stdout.readline() == "building\n"
        yield builder
        assert builder.communicate("")[0] == f"{KILOBYTE}\n"
        assert builder.returncode == 0


def test_gc_while_a_build_runs_keeps_what_it_uses_and_removes_the_rest(layout):
    """gc refused as a whole while any build ran, so that a full disk during a training stayed full (own review)."""
    read, unread = _materialise(layout, "a"), _materialise(layout, "b")
    newest = _materialise(layout, "c")
    with building(layout, read[0]):
        garbage = find_garbage(layout, keep=1, registered=())
        assert set(garbage.outputs) == {read[1], *unread}
        assert remove_garbage(layout, garbage) == []
    assert [folder.exists() for folder in (*read, *unread, *newest)] == [True, False, False, False, True, True]


def test_gc_keeps_what_a_build_began_to_use_after_the_list_was_made(layout):
    """A build that started between list and removal read what was being removed (own review)."""
    read, unread = _materialise(layout, "a"), _materialise(layout, "b")
    _materialise(layout, "c")
    garbage = find_garbage(layout, keep=1, registered=())
    assert set(garbage.outputs) == {*read, *unread}
    with building(layout, read[0]):
        kept = remove_garbage(layout, garbage)
        assert kept[0] == read[0] and not any(folder.exists() for folder in (read[1], *unread))
    assert set(find_garbage(layout, keep=1, registered=()).outputs) >= {read[0]}  # the build has ended


def test_gc_keeps_what_a_killed_process_used_for_nobody(layout):
    read, _ = _materialise(layout, "a"), _materialise(layout, "b")
    command = [sys.executable, "-c", BUILDING, str(layout.store), str(read[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as builder:
        assert builder.stdout.readline() == "building\n"
        builder.kill()
    assert read[0] in find_garbage(layout, keep=1, registered=()).outputs
    assert list((layout.store / ".leases").iterdir()) == []


def test_gc_keeps_what_a_run_may_still_read(layout):
    read, _ = _materialise(layout, "a"), _materialise(layout, "b")
    save_of_run(layout, "r1", "corpus", read_handle(read[1]))
    garbage = find_garbage(layout, keep=1, registered=())
    assert garbage.outputs == ()  # nor the pages that it was made from
    forget_runs(layout, ["r1"])
    assert set(find_garbage(layout, keep=1, registered=()).outputs) == set(read)


def test_gc_outputs_of_assets_that_no_file_declares_are_kept_for_nobody(layout):
    """A source or task that was taken out of the files kept its outputs, and all they were made from (own review)."""
    pages, corpus = _materialise(layout, "a")
    garbage = find_garbage(layout, keep=1, registered=(), declared=["corpus"])
    assert (garbage.outputs, garbage.retired) == ((), ("pages/letters",))  # the corpus was made from these pages
    garbage = find_garbage(layout, keep=1, registered=(), declared=[])
    assert set(garbage.outputs) == {pages, corpus}
    remove_garbage(layout, garbage)
    assert all_entries(layout) == []


def test_gc_removes_what_killed_processes_left_and_digests_of_sources_that_are_gone(layout):
    pages, _ = _materialise(layout, "a")
    old = time.time() - 2 * 24 * 3600
    lock, part = layout.store / "collect" / f".{'e' * 32}.lock", layout.cache / "abc" / ".wheel.whl.1.part"
    digests = [layout.cache / "file_digests" / f"{text_digest(path)}.json" for path in ("/here", "/gone")]
    for path in (lock, part, *digests):
        write_text(path, "x")
    assert find_garbage(layout, keep=1, registered=()).files == ()  # a process that runs may have written them
    for path in (lock, part):
        os.utime(path, (old, old))
    garbage = find_garbage(layout, keep=1, registered=(), sources=["/here"])
    assert set(garbage.files) == {lock, part, digests[1]}
    remove_garbage(layout, garbage)
    assert digests[0].exists() and pages.exists() and not any(path.exists() for path in garbage.files)


def test_gc_removes_downloads_that_nothing_names_any_more(layout):
    kept, old = (layout.cache / (letter * 64) / "model.gguf" for letter in "ab")
    for path in (kept, old, old.with_name(".lock")):
        write_text(path, "x")
    assert find_garbage(layout, keep=1, registered=()).files == ()
    garbage = find_garbage(layout, keep=1, registered=(), downloads=["a" * 64])
    assert set(garbage.files) == {old, old.with_name(".lock")} and garbage.n_bytes == 2
    remove_garbage(layout, garbage)
    assert kept.exists() and not old.parent.exists()


def test_gc_keep_zero_is_refused(layout):
    with pytest.raises(ValueError, match="--keep is 0"):
        find_garbage(layout, keep=0, registered=())


def test_du_counts_shared_bytes_once(layout):
    _materialise(layout, "a")
    places = {place.name: place for place in disk_usage(layout)}
    on_disk = {(s.st_ino): s.st_size for p in layout.store.rglob("*") if p.is_file() for s in [p.stat()]}
    locks = list(layout.store.rglob("*.lock"))
    assert sum(place.n_bytes for place in places.values()) == sum(on_disk.values())
    assert sum(place.n_files for place in places.values()) == len(on_disk) - len(locks)
    assert places["store/dedup"].note == "1 output, 1 needed by current results"
    assert places["store/dedup/parts"].n_bytes == 0


@pytest.mark.parametrize(("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (3_200_000, "3.2 MB"), (5e13, "50.0 TB")])
def test_size_text_examples(n_bytes, text):
    assert size_text(n_bytes) == text


def _index(layout: Layout, output: Path) -> Path:
    """What `gristmill trace` keeps of an output."""
    index = layout.store / "trace" / output.name
    write_text(index / "keys.arrow", "x" * KILOBYTE)
    return index


def test_gc_removes_the_trace_indexes_of_what_goes_or_is_gone_and_no_other(layout):
    old, new = _materialise(layout, "a"), _materialise(layout, "b")
    gone, kept = [_index(layout, folder) for folder in (*old, Path("f" * 32))], [_index(layout, one) for one in new]
    garbage = find_garbage(layout, keep=1, registered=(), unfinished=True)
    assert set(garbage.indexes) == set(gone) and garbage.unfinished == ()
    remove_garbage(layout, garbage)
    assert [index.exists() for index in (*gone, *kept)] == [False] * 3 + [True] * 2


def test_du_shows_the_trace_indexes_as_a_place_and_not_as_a_stage(layout):
    _index(layout, _materialise(layout, "a")[0])
    places = {place.name: place for place in disk_usage(layout)}
    assert places["store/trace"].n_bytes == KILOBYTE and "rebuilt" in places["store/trace"].note
