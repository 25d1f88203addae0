"""Members are parsed in workers: what one of them does to its worker costs itself alone, and bytes do not change."""

import bz2
import io
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.corpus.collect.members import Member
from pipeline.corpus.collect.source import Progress, Source
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.collect.unread_files import unread_files
from pipeline.store.engine import Done, Failed, LocalProcesses
from pipeline.store.records import DROPPED, PAGE
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Built, Store
from tests.pipeline.conftest import InThisProcess


def dies() -> io.BytesIO:
    os._exit(1)


def hangs() -> io.BytesIO:
    time.sleep(600)
    raise AssertionError


def swells() -> io.BytesIO:
    return io.BytesIO(b"x" * 40_000_000_000)


def fails() -> io.BytesIO:
    raise KeyError("a mistake of the program")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostileSource(Source):
    """Members that a library could not stand."""

    kind: ClassVar[str] = "hostile"
    members: tuple[str, ...] = ("**/*",)

    def snapshot(self) -> str:
        return ""

    def digest(self, cache: Path) -> str:
        return ""

    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        for name, opener in (("dies", dies), ("hangs", hangs), ("swells", swells), ("fails", fails)):
            yield f"u:{name}-good.txt", Member(f"{name}-good.txt", partial(io.BytesIO, b"good"))
            yield f"u:{name}.txt", Member(f"{name}.txt", opener)


def pages(built: Built) -> dict[str, bytes]:
    rows = [row for path in shard_paths(built.handle.directory) for row in read_table(path, PAGE).to_pylist()]
    return {row["url"].rpartition("/")[2]: row["content"] for row in rows}


def reasons(built: Built) -> dict[str, str]:
    paths = shard_paths(built.handle.directory, "dropped")
    rows = [row for path in paths for row in read_table(path, DROPPED).to_pylist()]
    assert built.counts.is_conserved() and len(rows) == sum(built.counts.dropped.values())
    return {row["url"].rpartition("/")[2]: row["reason"] for row in rows}


def test_a_member_that_ends_its_worker_costs_itself_alone(tmp_path):
    """Archives, JSON, Parquet and dumps were parsed in the process of the step, which a crash of a library ended."""
    store = Store(root=tmp_path / "store", engine=LocalProcesses(n_workers=2))
    cfg = CollectConfig(member_seconds=1.0, member_memory_mb=2000)
    built = collect(store, HostileSource(name="hostile"), tmp_path / "cache", cfg)
    failed = ("dies", "hangs", "swells", "fails")
    assert pages(built) == {f"u:{name}-good.txt": b"good" for name in failed}
    assert reasons(built) == {
        "u:dies.txt": "crash",
        "u:hangs.txt": "timeout",
        "u:swells.txt": "out_of_memory",
        "u:fails.txt": "error",
    }
    assert not list(built.handle.directory.rglob(".*.part"))


def test_output_bytes_are_equal_for_any_number_of_workers_and_any_archive(tmp_path):
    texts = {f"d{i % 7}/{i}.txt": f"Text {i} of the mill.".encode() * (1 + i % 5) for i in range(100)}
    texts["rows.jsonl"] = b'{"text": "row"}\n' * 300
    texts["large.txt"] = os.urandom(50_000).hex().encode()
    found = []
    for form in ("zip", "tar.gz"):
        path = tmp_path / f"in.{form}"
        if form == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in texts.items():
                    archive.writestr(name, content)
        else:
            with tarfile.open(path, "w:gz") as archive:
                for name, content in texts.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        for number, engine in enumerate((InThisProcess(), LocalProcesses(n_workers=1 if form == "zip" else 3))):
            store = Store(root=tmp_path / f"{form}-{number}", engine=engine)
            built = collect(store, FilesSource(name="letters", path=str(path)), tmp_path / "cache")
            files = sorted((p.name, p.read_bytes()) for p in shard_paths(built.handle.directory, "dropped"))
            found.append((form, built.handle.digest, built.counts, files))
            assert len(pages(built)) == 401
    assert found[0] == found[1] and found[2] == found[3]


@pytest.fixture
def held_small(monkeypatch):
    monkeypatch.setattr("pipeline.corpus.collect.parsing.MOST_HELD", 10)
    monkeypatch.setattr("pipeline.corpus.collect.parsing.INLINE_BYTES", 1000)


def test_large_members_of_a_tar_pass_through_temporary_files(tmp_path, held_small):
    path = tmp_path / "in.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in {"a.txt": b"x" * 500, "rows.jsonl": b'{"text": "row"}\n' * 300, "b.txt": b"b"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    store = Store(root=tmp_path / "store", engine=InThisProcess())
    built = collect(store, FilesSource(name="letters", path=str(path)), tmp_path / "cache")
    assert len(pages(built)) == 302 and pages(built)["in.tar!/a.txt".rpartition("/")[2]] == b"x" * 500
    assert not list(built.handle.directory.rglob(".*.part"))


def test_files_that_each_unpack_to_little_are_bounded_together(tmp_path, monkeypatch):
    """Nine bombs of kilobytes, each within its own limit, must not fill the disk together."""
    monkeypatch.setattr("pipeline.corpus.collect.stage.FREE_IN_ALL", 100_000)
    monkeypatch.setattr("pipeline.corpus.collect.stage.MAX_EXPANSION", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "a"}\n' * 400))
    (folder / "z.txt").write_text("good")
    store = Store(root=tmp_path / "store", engine=InThisProcess())
    built = collect(store, FilesSource(name="letters", path=str(folder)), tmp_path / "cache")
    assert built.counts.kept == 2 * 400 + 1 and built.counts.dropped == {"too_large": 7}
    assert built.record["measures"]["files_without_pages"] == 7


def test_an_archive_that_unpacks_to_too_much_is_refused_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.collect.unpacking.FREE_BYTES", 1_000_000)
    path = tmp_path / "bomb.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        info = tarfile.TarInfo("zeros.bin")
        info.size = 20_000_000
        archive.addfile(info, io.BytesIO(bytes(info.size)))
        archive.addfile(tarfile.TarInfo("a.txt"))
    store = Store(root=tmp_path / "store", engine=InThisProcess())
    source = FilesSource(name="letters", path=str(path), members=("*.txt",))
    with pytest.raises(ValueError, match=r"bomb\.tar\.bz2 unpacks to more than 1 MB"):
        collect(store, source, tmp_path / "cache")


def test_a_file_of_which_no_page_was_made_is_named_in_the_log_and_by_a_check(tmp_path, caplog):
    """A data set that was refused as a whole was one more drop among others, and the exit code was 0."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("good")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "train.json").write_text('{"rows": [{"question": "Why?"}]}')
    store = Store(root=tmp_path / "store", engine=InThisProcess())
    built = collect(store, FilesSource(name="letters", path=str(folder)), tmp_path / "cache")
    (line,) = [record.message for record in caplog.records]
    assert (
        line.startswith("source `letters`: no page was made of file://") and "train.json: no_text_key (found" in line
    )
    verdict = unread_files(built.handle)
    assert not verdict.passed and verdict.observed == 1
    ((url, said),) = verdict.details.items()
    assert url.endswith("/train.json") and "question (text)" in said
    (folder / "train.json").write_text('{"rows": [{"text": "Because."}]}')
    assert unread_files(
        collect(store, FilesSource(name="letters", path=str(folder)), tmp_path / "cache").handle
    ).passed


class Short(InThisProcess):
    """A machine on which no worker finishes a batch with one of `names` in its address."""

    def __init__(self, *names: str):
        self.names = names

    def map(self, function: Any, items: Any, **limits: Any) -> Iterator[Any]:
        for item in items:
            is_lost = any(name in given.url for given in item.members for name in self.names)
            yield Failed("timeout", "took more than 1 s") if is_lost else Done(function(item))


def test_a_member_that_a_bad_minute_lost_is_read_by_the_next_build(tmp_path):
    """What a loaded machine could not finish stayed a drop of the source for ever."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    source, store = (
        FilesSource(name="letters", path=str(folder)),
        Store(root=tmp_path / "store", engine=Short("b.txt")),
    )
    lost = collect(store, source, tmp_path / "cache")
    assert lost.counts.dropped == lost.counts.lost == {"timeout": 1} and lost.counts.kept == 2
    mended = collect(replace(store, engine=InThisProcess()), source, tmp_path / "cache")
    assert mended.counts.dropped == mended.counts.lost == {} and mended.counts.kept == 3
    assert collect(store, source, tmp_path / "cache").unchanged


def test_a_member_that_fails_in_two_builds_is_tried_again_only_with_a_higher_limit(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    source, store = (
        FilesSource(name="letters", path=str(folder)),
        Store(root=tmp_path / "store", engine=Short("b.txt")),
    )
    collect(store, source, tmp_path / "cache")
    again = collect(store, source, tmp_path / "cache")
    assert again.counts.dropped == again.counts.lost == {"repeatedly_timeout": 1}
    assert not unread_files(again.handle).passed
    assert collect(store, source, tmp_path / "cache").unchanged
    raised = collect(store, source, tmp_path / "cache", CollectConfig(member_seconds=600.0))
    assert raised.counts.lost == {"timeout": 1}
