"""Collecting folders, files and archives: every page or its reason, whatever the files hold."""

import bz2
import io
import json
import os
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.corpus.collect.members import glob_regex
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import COLLECT, CollectConfig, collect
from pipeline.store.errors import SourceUnavailable
from pipeline.store.records import DROPPED, PAGE
from pipeline.store.shards import read_table, shard_paths, text_digest
from pipeline.store.store import Store
from tests.pipeline.conftest import InThisProcess

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">
<siteinfo><sitename>Test</sitename></siteinfo>
<page><title>Corn &amp; mills</title><ns>0</ns><id>1</id><revision><text>A '''mill''' grinds.</text></revision></page>
<page><title>Maize</title><ns>0</ns><redirect/><revision><text>#REDIRECT [[Corn]]</text></revision></page>
<page><title>Talk:Corn</title><ns>1</ns><revision><text>I say.</text></revision></page>
<page><title>Nothing</title><ns>0</ns><revision><text></text></revision></page>
</mediawiki>"""


class Mill:
    """A store below one temporary folder, and the rows that a source gives."""

    def __init__(self, tmp_path: Path):
        self.store = Store(root=tmp_path / "store", engine=InThisProcess())
        self.cache = tmp_path / "cache"

    def build(self, path: Path, cfg: CollectConfig | None = None, **keys):
        source = FilesSource(name="letters", licence="mine", path=str(path), **keys)
        return collect(self.store, source, self.cache, cfg)

    def pages(self, built) -> list[dict]:
        return [r for path in shard_paths(built.handle.directory) for r in read_table(path, PAGE).to_pylist()]

    def dropped(self, built) -> dict[str, str]:
        paths = shard_paths(built.handle.directory, "dropped")
        rows = [row for path in paths for row in read_table(path, DROPPED).to_pylist()]
        assert built.counts.is_conserved() and len(rows) == sum(built.counts.dropped.values())
        return {row["url"].rpartition("/")[2]: row["reason"] for row in rows}


@pytest.fixture
def mill(tmp_path) -> Mill:
    return Mill(tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one file of every sort."""
    folder = tmp_path / "letters"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "page.html").write_text("<p>page</p>")
    (folder / "note.txt").write_text("note")
    (folder / "read me.md").write_text("# read")
    (folder / "deep" / "deeper" / "manual.rst").write_text("Manual\n======\n")
    (folder / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (folder / "dump.xml.bz2").write_bytes(bz2.compress(DUMP.encode()))
    return folder


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_collect_folder_gives_a_page_a_file_line_and_article(mill, folder):
    built = mill.build(folder)
    base = folder.as_uri()
    found = {page["url"]: (page["media_type"], page["title"], page["content"]) for page in mill.pages(built)}
    assert found == {
        f"{base}/page.html": ("text/html", None, b"<p>page</p>"),
        f"{base}/note.txt": ("text/plain", None, b"note"),
        f"{base}/read%20me.md": ("text/markdown", None, b"# read"),
        f"{base}/deep/deeper/manual.rst": ("text/x-rst", None, b"Manual\n======\n"),
        f"{base}/lines.jsonl#line=1": ("text/plain", None, b"one"),
        f"{base}/lines.jsonl#line=3": ("text/plain", None, b"two"),
        f"{base}/dump.xml.bz2#Corn_%26_mills": ("text/x-wiki", "Corn & mills", b"A '''mill''' grinds."),
    }
    assert built.counts.rows_in == 10
    assert built.counts.dropped == {"redirect": 1, "other_namespace": 1, "empty": 1}
    assert {page["licence"] for page in mill.pages(built)} == {"mine"}


def test_collect_golden_digest(mill, folder):
    """When this fails because the output changed on purpose: raise COLLECT.version, then take the new digest."""
    built = mill.build(folder)
    pages = sorted((page["media_type"], page["title"] or "", page["content"]) for page in mill.pages(built))
    names = [path.name for path in shard_paths(built.handle.directory, "dropped")]
    assert all(name.startswith("letters-000") for name in names)
    digest = text_digest(*(part for page in pages for part in page))
    assert (COLLECT.version, digest) == (4, "5430cd905bc54771ae8681eab7d78d56")


def test_collect_again_does_no_work(mill, folder):
    first, second = mill.build(folder), mill.build(folder)
    assert not first.unchanged and second.unchanged and second.handle == first.handle


def test_collect_changed_file_changes_its_shard_only(mill, folder):
    before = mill.build(folder)
    (folder / "note.txt").write_text("nota")
    after = mill.build(folder)
    assert after.handle.digest != before.handle.digest
    digests = [{n: f["digest"] for n, f in b.record["files"].items()} for b in (before, after)]
    changed = [name for name in digests[0] if digests[0][name] != digests[1][name]]
    url = (folder / "note.txt").as_uri()
    homes = [p.name for p in shard_paths(after.handle.directory) if url in read_table(p)["url"].to_pylist()]
    assert changed == homes


def test_collect_same_files_collected_at_another_time_have_the_same_digest(mill, folder, tmp_path):
    first = mill.build(folder)
    for path in folder.rglob("*.*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    other = Mill(tmp_path / "other")
    second = other.build(folder)
    assert second.handle.digest == first.handle.digest and second.handle.fingerprint == first.handle.fingerprint
    table = read_table(shard_paths(second.handle.directory)[0])
    assert str(table.schema.field("collected_at").type) == "timestamp[ms, tz=UTC]"


def test_collect_file_of_same_size_and_time_but_other_bytes_is_noticed_after_it_settled(mill, folder):
    """A digest cached by size and time must not hide a change that came right after it was taken."""
    first = mill.build(folder)
    stat = (folder / "note.txt").stat()
    (folder / "note.txt").write_text("NOTE")
    os.utime(folder / "note.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert mill.build(folder).handle.digest != first.handle.digest


def test_collect_file_that_changes_while_it_is_read_is_not_recorded(mill, folder):
    """Else the pages would lie below a fingerprint of other bytes."""

    def touch(*call) -> None:
        (folder / "deep" / "late.txt").write_text("late")

    calm = mill.store
    mill.store = replace(calm, show=touch)
    each_page_its_shard = CollectConfig(n_shards=99_999)
    with pytest.raises(SourceUnavailable, match="`letters` changed while they were read; run again"):
        mill.build(folder, each_page_its_shard)
    mill.store = calm
    (folder / "deep" / "late.txt").unlink()
    built = mill.build(folder, each_page_its_shard)
    assert built.counts.kept == len(mill.pages(built)) == 7


def test_collect_file_that_vanishes_while_it_is_read_is_left_out_by_a_second_reading(mill, folder, caplog):
    """The source ended with an error, although reading it again was all that was needed."""

    def remove(*call: object) -> None:
        (folder / "note.txt").unlink(missing_ok=True)

    mill.store = replace(mill.store, show=remove)
    built = mill.build(folder)
    assert "note.txt" not in {page["url"].rpartition("/")[2] for page in mill.pages(built)}
    assert len(mill.pages(built)) == 6 and "they are read again" in caplog.text


def test_collect_number_of_shards_and_order_inside_follow_config(mill, folder):
    built = mill.build(folder, CollectConfig(n_shards=1))
    assert [path.name for path in shard_paths(built.handle.directory)] == ["letters-00000.parquet"]
    urls = [page["url"] for page in mill.pages(built)]
    assert urls == sorted(urls) and len(urls) == 7


def test_collect_larger_than_its_spool_gives_the_same_pages(mill, folder, monkeypatch, tmp_path):
    plain = mill.build(folder)
    monkeypatch.setattr("pipeline.corpus.collect.spool.SPOOL_BYTES", 3)
    monkeypatch.setattr("pipeline.corpus.collect.spool.ROW_GROUP_BYTES", 3)
    monkeypatch.setattr("pipeline.corpus.collect.parsing.INLINE_BYTES", 3)
    spooled = Mill(tmp_path / "other").build(folder)
    assert spooled.handle.digest == plain.handle.digest
    assert mill.dropped(spooled) == mill.dropped(plain) and len(mill.dropped(plain)) == 3
    assert [p["content"] for p in mill.pages(spooled)] == [p["content"] for p in mill.pages(plain)]
    assert not list(spooled.handle.directory.rglob(".*.part"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.html", b"", "empty"),
        ("blank.txt", b" \n\t", "empty"),
        ("photo.jpg", b"\xff\xd8\xff", "picture"),
        ("notes.pod", b"=pod\n", "unsupported"),
        ("big.html", b"x" * 3000, "too_large"),
        ("bad.txt.gz", b"no gzip", "unreadable"),
        ("cut.xml.bz2", bz2.compress(DUMP.encode())[:-30], "unreadable"),
        ("other.xml", b"<html><body/></html>", "unsupported"),
        ("notxml.xml", b"plain", "unreadable"),
        ("bad.jsonl", b'{"text": \n', "unreadable"),
        ("deep.jsonl", b"[" * 2500, "unreadable"),
        ("long.jsonl", b'{"text": "' + b"x" * 3000 + b'"}\n', "too_large"),
        ("empty.jsonl", b'{"text": ""}', "empty"),
    ],
)
def test_collect_bad_file_is_a_counted_drop_and_the_rest_goes_on(mill, tmp_path, name, content, reason):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text("good")
    (tmp_path / "in" / name).write_bytes(content)
    built = mill.build(tmp_path / "in", CollectConfig(max_page_mb=0.0026))
    assert set(mill.dropped(built).values()) == {reason}
    assert [page["content"] for page in mill.pages(built)] == [b"good"]


def test_collect_unreadable_folder_and_links_that_lead_outside_are_drops(mill, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.txt").write_text("far")
    (folder / "sub" / "good.txt").write_text("good")
    (folder / "leak.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "tree").symlink_to(tmp_path / "outside")
    (folder / "inside.txt").symlink_to(folder / "sub" / "good.txt")
    (folder / "again").symlink_to(folder / "sub")
    (folder / "gone.txt").symlink_to(folder / "missing.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / ".hidden.txt").write_text("hidden")
    built = mill.build(folder)
    assert mill.dropped(built) == {
        "leak.txt": "unsafe_member_name",
        "tree": "unsafe_member_name",
        "pipe.txt": "special_file",
        "gone.txt": "broken_link",
    }
    assert {page["url"].rpartition("/")[2] for page in mill.pages(built)} == {"good.txt", "inside.txt"}


@pytest.mark.parametrize("make", [zip_of, tar_of], ids=["zip", "tar.gz"])
def test_collect_archive_members_that_point_outside_are_drops(mill, tmp_path, make):
    names = ["../up.txt", "/etc/abs.txt", "a/../../b.txt", "C:/win.txt", "..\\back.txt", "fine/good.txt"]
    path = make(tmp_path / ("in.zip" if make is zip_of else "in.tar.gz"), dict.fromkeys(names, b"text"))
    built = mill.build(path)
    assert built.counts.dropped == {"unsafe_member_name": 5}
    assert [page["url"] for page in mill.pages(built)] == [f"{path.as_uri()}!/fine/good.txt"]


def test_collect_archive_links_and_devices_are_drops(mill, tmp_path):
    path = tmp_path / "in.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
        for name, kind in {"s.txt": tarfile.SYMTYPE, "h.txt": tarfile.LNKTYPE, "d.txt": tarfile.CHRTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.txt"
            archive.addfile(info)
    built = mill.build(path)
    assert mill.dropped(built) == dict.fromkeys(["s.txt", "h.txt", "d.txt"], "unsafe_member_name")
    assert built.counts.kept == 1


def test_collect_zip_link_and_encrypted_member_are_drops(mill, tmp_path):
    path = zip_of(tmp_path / "in.zip", {"good.txt": b"good", "locked.txt": b"locked"})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set the bit that says encrypted
        at = raw.find(b"locked.txt") - 30 if offset == 6 else raw.find(b"PK\x01\x02", raw.find(b"PK\x01\x02") + 4)
        assert raw[at : at + 4] == signature
        raw[at + offset] |= 1
    path.write_bytes(raw)
    assert mill.dropped(mill.build(path)) == {"locked.txt": "unreadable", "link.txt": "unsafe_member_name"}


def test_collect_member_twice_in_an_archive_is_kept_once(mill, tmp_path):
    path = tmp_path / "in.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("same.txt")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"same"))
    built = mill.build(path)
    assert built.counts.dropped == {"repeated_page": 1} and built.counts.kept == 1


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2"])
def test_collect_broken_archive_is_named_and_a_good_copy_goes_on(mill, tmp_path, suffix):
    members = {f"{i}.txt": os.urandom(2000).hex().encode() for i in range(20)}
    path = tmp_path / f"in.{suffix}"
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2"}.get(suffix)
    tar_of(path, members, mode) if mode else zip_of(path, members)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(
        ValueError, match=r"in\.[a-z0-9.]+ is damaged or not an archive .*; replace it with a good copy"
    ):
        mill.build(path)
    path.write_bytes(whole)
    assert mill.build(path).counts.kept == 20


@pytest.mark.parametrize(
    "entities",  # the last one is x
    [
        '<!ENTITY x SYSTEM "file:///etc/hostname">',
        '<!ENTITY x "secret">',
        '<!ENTITY l0 "lol">'
        + "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
        + '<!ENTITY x "&l11;">',
    ],
    ids=["file", "text", "bomb"],
)
def test_collect_entities_of_a_dump_are_not_expanded(mill, tmp_path, entities):
    (tmp_path / "in").mkdir()
    hostile = f"<!DOCTYPE mediawiki [{entities}]>" + DUMP.replace("A '''mill'''", "A &x; mill")
    (tmp_path / "in" / "hostile.xml").write_text(hostile)
    built = mill.build(tmp_path / "in")
    content = b"".join(page["content"] for page in mill.pages(built))
    for secret in (b"lol", b"secret", Path("/etc/hostname").read_bytes().strip()):
        assert secret not in content
    assert len(content) < 100


def test_collect_tar_cut_off_between_two_members_is_broken(mill, tmp_path):
    """tarfile takes it for a shorter archive, and pages would be lost in silence."""
    path = tar_of(tmp_path / "in.tar", {f"{i}.txt": b"x" * 512 for i in range(20)}, "w")
    path.write_bytes(path.read_bytes()[: 10 * 1024])
    with pytest.raises(ValueError, match=r"in\.tar is damaged or not an archive \(its end is missing\)"):
        mill.build(path)


def test_collect_dump_page_above_the_limit_ends_the_file_with_a_reason(mill, tmp_path):
    (tmp_path / "in").mkdir()
    huge = DUMP.replace(
        "<page><title>Maize", f"<page><title>Huge</title><id>{'9' * 400_000}</id></page><page><title>M"
    )
    (tmp_path / "in" / "dump.xml").write_text(huge)
    built = mill.build(tmp_path / "in", CollectConfig(max_page_mb=0.1))
    assert built.counts.kept == 1 and set(mill.dropped(built).values()) == {"too_large"}


def test_collect_jsonl_keys_come_from_the_source(mill, tmp_path):
    rows = [{"body": "one", "head": "First", "link": "https://example.org/1"}, {"body": "two", "head": 3}]
    path = tmp_path / "in.jsonl"
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)))
    built = mill.build(path, text_key="body", title_key="head", url_key="link")
    assert {(p["url"], p["title"], p["content"]) for p in mill.pages(built)} == {
        ("https://example.org/1", "First", b"one"),
        (path.as_uri() + "#line=2", None, b"two"),
    }


def test_collect_jsonl_without_the_key_anywhere_is_a_wrong_setting(mill, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"remark": "one"}\n{"remark": "two"}\n')
    with pytest.raises(ValueError, match=r"`letters`: none of its 2 records has a text under .*'text'.*text_key"):
        mill.build(path)
    path.write_text('{"remark": "one"}\n{"text": "two"}\n')
    assert mill.build(path).counts.dropped == {"no_text_key": 1}


def test_collect_media_type_of_the_source_wins_over_the_suffix(mill, tmp_path):
    (tmp_path / "a.txt").write_text("Title\n=====\n")
    built = mill.build(tmp_path / "a.txt", media_type="text/x-rst")
    assert [(p["media_type"], p["url"]) for p in mill.pages(built)] == [("text/x-rst", (tmp_path / "a.txt").as_uri())]


def test_collect_globs_take_and_leave(mill, folder):
    built = mill.build(folder, members=("**/*.rst", "*.txt", "*.md", "!read*"))
    assert {page["url"].rpartition("/")[2] for page in mill.pages(built)} == {"manual.rst", "note.txt"}


def test_collect_glob_without_a_match_says_what_is_there(mill, folder):
    with pytest.raises(ValueError) as caught:
        mill.build(folder, members=("*.txt", "*.htm"))
    for part in ("`letters`", "no file", "`*.htm`", "`*.txt` matches 1", "page.html"):
        assert part in str(caught.value)


def test_collect_missing_path_and_empty_folder_are_named(mill, tmp_path):
    with pytest.raises(ValueError, match=r"`letters`: path .*/nowhere does not exist"):
        mill.build(tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="contains no files"):
        mill.build(tmp_path / "in")


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("*.txt", "a.txt", True),
        ("*.txt", "a/b.txt", False),
        ("**/*.txt", "b.txt", True),
        ("**/*.txt", "a/b/c.txt", True),
        ("a/**", "a/b/c.txt", True),
        ("a?[0-9]/*", "ab1/x", True),
        ("a?[0-9]/*", "abc/x", False),
        ("[!a]*", "b", True),
        ("[!a]*", "a", False),
        ("a.txt", "abtxt", False),
    ],
)
def test_glob_matches_within_and_across_folders(glob, name, matches):
    assert bool(glob_regex(glob).fullmatch(name)) == matches


def test_snapshot_changes_when_a_file_comes_goes_or_changes(folder):
    source = FilesSource(name="letters", licence="mine", path=str(folder))
    seen = {source.snapshot()}
    assert source.snapshot() in seen
    (folder / "new.txt").write_text("new")
    seen.add(source.snapshot())
    os.utime(folder / "new.txt", (1, 1))
    seen.add(source.snapshot())
    (folder / "note.txt").unlink()
    seen.add(source.snapshot())
    assert len(seen) == 4


def test_collect_work_grows_with_rows_and_not_with_their_square(mill, tmp_path):
    """Each row once measured all rows of its row group again: a million short rows took most of an hour."""

    def calls(n_rows: int) -> int:
        path = tmp_path / f"{n_rows}.jsonl"
        path.write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(n_rows)))
        n_calls = 0

        def count(*event: object) -> None:
            nonlocal n_calls
            n_calls += 1

        sys.setprofile(count)
        try:
            built = mill.build(path, CollectConfig(n_shards=1))
        finally:
            sys.setprofile(None)
        assert built.counts.kept == n_rows
        return n_calls

    assert calls(1200) <= 2.5 * calls(600)


@pytest.mark.parametrize("values", [{"n_shards": 0}, {"n_shards": 100_000}, {"max_page_mb": 0}])
def test_collect_config_outside_its_range_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is {next(iter(values.values()))}, expected"):
        CollectConfig(**values)
