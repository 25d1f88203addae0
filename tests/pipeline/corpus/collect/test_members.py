"""Names, links and special files of folders and archives: addresses are distinct, and only files are opened."""

import inspect
import io
import os
import socket
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.members import address_of, members_of, open_regular, shown

LATIN = [b"caf\xe9.txt", b"caf\xe8.txt", "caf\u00e9.txt".encode(), "cafe\u0301.txt".encode(), b"line\nend\x1b[1m.txt"]
ADDRESSES = {"caf%E9.txt", "caf%E8.txt", "caf%C3%A9.txt", "cafe%CC%81.txt", "line%0Aend%1B%5B1m.txt"}


@pytest.fixture
def latin(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in LATIN:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
    return folder


def source_of(path: Path, **keys) -> FilesSource:
    return FilesSource(name="letters", path=str(path), **keys)


def contents(source: FilesSource, cache: Path) -> dict[str, bytes]:
    read = {}
    for url, member in source.entries(cache, lambda done, total: None):
        with member.open() as file:
            read[url.rpartition("/")[2]] = file.read()
    return read


def test_names_that_are_no_utf8_keep_their_identity(latin, tmp_path):
    """Two names that differ in a byte that is not UTF-8 had one address, so that trace and forget could not tell them
    apart (devsnd/tarindexer#9, rsnitsch/py3createtorrent#33)."""
    assert {name.encode(): content for name, content in contents(source_of(latin), tmp_path).items()}.keys() == {
        address.encode() for address in ADDRESSES
    }


def test_names_that_are_no_utf8_are_in_the_digest_so_that_a_change_is_seen(latin, tmp_path):
    source = source_of(latin)
    before = source.digest(tmp_path / "cache"), source.snapshot()
    Path(os.fsdecode(os.fsencode(latin) + b"/" + LATIN[0])).write_bytes(b"another text")
    after = source.digest(tmp_path / "cache"), source.snapshot()
    assert before[0] != after[0] and before[1] != after[1]


def test_names_that_are_no_utf8_keep_their_identity_in_a_tar(tmp_path):
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{style}.tar.gz"
        with tarfile.open(path, "w:gz", format=style, encoding="utf-8", errors="surrogateescape") as archive:
            for name in LATIN:
                info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
                info.size = len(name)
                archive.addfile(info, io.BytesIO(name))
        assert set(contents(source_of(path), tmp_path)) == ADDRESSES


def test_names_in_a_zip_are_utf8_where_they_can_be_and_cp437_otherwise(tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("caf\u00e9.txt", "mill-1.txt", "mill-22.txt"):
            archive.writestr(name, "x")
    raw = path.read_bytes()  # two names without the flag: one of UTF-8, one of cp437
    raw = raw.replace(b"mill-1.txt", b"m\xc3\xbc-1.txtx").replace(b"mill-22.txt", b"m\x81ll-22.txt")
    path.write_bytes(raw)
    assert set(contents(source_of(path), tmp_path)) == {"caf%C3%A9.txt", "m%C3%BC-1.txtx", "m%C3%BCll-22.txt"}


def test_names_with_control_characters_are_escaped_in_messages():
    assert shown("a\nb\x1b[1m\udce9") == "a\\nb\\x1b[1m\\udce9"
    assert address_of("a b\udce9") == "a%20b%E9"


def test_links_and_special_files_are_skipped_with_a_reason_and_never_opened(tmp_path, monkeypatch):
    """A link to a FIFO or to /dev/zero hung the stage, and a circle of links ended the source."""
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (folder / "good.txt").write_text("good")
    os.mkfifo(folder / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as plug:
        monkeypatch.chdir(folder)  # the path of a socket has at most 108 bytes
        plug.bind("plug.txt")
    links = {
        "to-good.txt": "good.txt",
        "to-fifo.txt": "fifo.txt",
        "to-zero.txt": "/dev/zero",
        "to-self.txt": "to-self.txt",
        "circle-a": "circle-b",
        "circle-b": "circle-a",
        "to-secret.txt": str(outside / "secret.txt"),
        "to-outside": str(outside),
        "to-nothing.txt": "nothing",
        "to-parent": "..",
        "to-here": ".",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(outside / "far.txt")
    (folder / "to-far-fifo.txt").symlink_to(outside / "far.txt")
    refused = {member.name: member.refused for member in members_of(folder) if member.refused}
    assert refused == {
        "fifo.txt": "special_file",
        "plug.txt": "special_file",
        "to-fifo.txt": "special_file",
        "to-zero.txt": "unsafe_member_name",
        "to-self.txt": "broken_link",
        "circle-a": "broken_link",
        "circle-b": "broken_link",
        "to-secret.txt": "unsafe_member_name",
        "to-outside": "unsafe_member_name",
        "to-nothing.txt": "broken_link",
        "to-parent": "unsafe_member_name",
        "to-far-fifo.txt": "unsafe_member_name",
    }
    source = source_of(folder)
    assert source.digest(tmp_path / "cache") == source.digest(tmp_path / "cache") and source.snapshot()


def test_a_file_that_became_a_fifo_after_it_was_listed_is_not_waited_for(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (member,) = members_of(folder)
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    with pytest.raises(OSError, match="expected a file, found a FIFO"):
        member.open()
    with pytest.raises(OSError, match="expected a file, found a folder"):
        open_regular(folder)


def test_the_path_of_a_source_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"`letters`: path .*/pipe is neither a folder nor a file"):
        source_of(tmp_path / "pipe").snapshot()


def test_a_deep_tree_of_folders_is_listed_without_recursion(tmp_path):
    folder = tmp_path.joinpath(*"abcdefghij" * 10)
    folder.mkdir(parents=True)
    (folder / "leaf.txt").write_text("leaf")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        names = [member.name for member in members_of(tmp_path)]
    finally:
        sys.setrecursionlimit(limit)
    assert names == [(folder / "leaf.txt").relative_to(tmp_path).as_posix()]


def test_a_copy_that_keeps_size_and_time_of_a_file_is_seen(tmp_path):
    """`cp -p`, `rsync -t` and restored backups keep the modification time, so a change of equal size was missed."""
    folder = tmp_path / "in"
    folder.mkdir()
    note = folder / "note.txt"
    note.write_text("one")
    os.utime(note, (1_000_000_000, 1_000_000_000))
    source, cache = source_of(folder), tmp_path / "cache"
    before = source.digest(cache), source.snapshot()
    for way in ("in place", "renamed"):
        target = note if way == "in place" else folder / ".note.new"
        target.write_text("two" if way == "in place" else "six")
        os.utime(target, (1_000_000_000, 1_000_000_000))
        target.replace(note)
        after = source.digest(cache), source.snapshot()
        assert before[0] != after[0] and before[1] != after[1], way
        before = after


def test_a_digest_is_computed_again_only_for_files_that_changed(tmp_path, monkeypatch):
    folder, read = tmp_path / "in", []
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    monkeypatch.setattr("pipeline.corpus.collect.files.SETTLED_SECONDS", -1)
    source, cache = source_of(folder), tmp_path / "cache"
    first = source.digest(cache)
    monkeypatch.setattr(
        "pipeline.corpus.collect.files.open_regular", lambda path: read.append(path) or open_regular(path)
    )
    assert source.digest(cache) == first and read == []
    (folder / "b.txt").write_text("B")
    assert source.digest(cache) != first and [Path(path).name for path in read] == ["b.txt"]
    (memory,) = (cache / "file_digests").iterdir()
    memory.write_text('{"a.txt": ')  # cut off
    assert source.digest(cache) != first and len(read) == 4
