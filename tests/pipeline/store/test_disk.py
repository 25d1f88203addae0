"""gc keeps what a kept result or a registered model was made from, and nothing else; du counts bytes once."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.store.disk import disk_usage, find_garbage, remove_garbage, size_text
from pipeline.store.layout import Layout, load_current, save_current
from pipeline.store.records import Shards
from pipeline.store.shards import link_or_copy, write_text
from pipeline.store.store import Outcome, Stage, Store

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


def test_gc_while_a_build_runs_removes_nothing(layout):
    old = _materialise(layout, "a")
    _, new_corpus = _materialise(layout, "b")
    garbage = find_garbage(layout, keep=1, registered=())
    building = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        " print('locked', flush=True); sys.stdin.read()"
    )
    lock = new_corpus.parent / f".{new_corpus.name}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", building, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"{new_corpus.name} is being built"):
            remove_garbage(layout, garbage)
    assert all(folder.exists() for folder in old)
    with FileLock(lock).acquire(timeout=0):
        pass
    remove_garbage(layout, garbage)
    assert not any(folder.exists() for folder in old)


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
    assert places["store/dedup"].note == "1 outputs, 1 current"
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
