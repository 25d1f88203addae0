"""Files of which no page is made are dropped with a reason that says what they are, and without their bytes."""

import gzip
import io
import tarfile

import pytest

from pipeline.corpus.collect.formats import read_member
from pipeline.corpus.collect.members import Member, members_of
from pipeline.store.records import preview_of
from tests.pipeline.corpus.collect.reading import MB, read, reasons
from tests.pipeline.corpus.collect.test_members import source_of


def tar_bytes(content: bytes = b"x" * 3000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0", "picture"),
        ("a.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF", "picture"),
        ("a.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "picture"),
        ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "picture"),
        ("a.mp3", b"ID3\4\0", "audio_or_video"),
        ("a.mp4", b"\0\0\0\x18ftypisom", "audio_or_video"),
        ("a.heic", b"\0\0\0\x18ftypheic", "picture"),
        ("a.bin", b"\x7fELF\2\1", "executable"),
        ("a.exe", b"MZ\x90\0", "executable"),
        ("a.woff2", b"wOF2\0", "font"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "office_file"),
        ("a.db", b"SQLite format 3\0", "database"),
        ("a.npy", b"\x93NUMPY\1\0", "binary_data"),
        ("a.unknown", b"abc\0\1\2", "binary_data"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "archive_in_archive"),
        ("a.zip", b"PK\3\4" + b"\0" * 100, "broken_archive"),
        ("a.tar", tar_bytes(), "archive_in_archive"),
        ("a.tar", tar_bytes()[:2000], "broken_archive"),
        ("a.tar.gz", gzip.compress(tar_bytes(), mtime=0), "archive_in_archive"),
        ("a.tgz", gzip.compress(tar_bytes(bytes(range(256)) * 30), mtime=0)[:150], "broken_archive"),
        ("a.zip", b"not an archive", "broken_archive"),
        ("a.pod", b"=head1 A text of a format that is not read\n", "unsupported"),
    ],
)
def test_kind_of_a_file_is_its_reason_and_none_of_its_bytes_are_shown(name, content, reason):
    """Every file that is not read was `unsupported`, an archive like a picture, and trace printed its bytes."""
    (item,) = read(name, content)
    assert item.reason == reason
    assert item.preview.isascii() and all(byte >= 32 or byte == 10 for byte in item.preview)


def test_kind_of_an_archive_in_a_folder_says_how_to_read_it(writers, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.zip").write_bytes(writers.zip_file({"a.txt": "A"}))
    (member,) = members_of(folder)
    (item,) = read_member(member, "u", source_of(folder), MB)
    assert item.reason == "archive_in_folder" and b"a zip archive inside a folder; unpack it" in item.preview


def test_kind_of_an_office_file_by_its_first_part(writers):
    assert reasons(read("a.xlsx", writers.zip_file({"[Content_Types].xml": "<x/>", "xl/a.xml": ""}))) == [
        "office_file"
    ]


def test_kind_of_a_member_that_is_refused_is_in_its_preview():
    (item,) = read_member(Member("a", io.BytesIO, "special_file", "a FIFO"), "u", source_of(io), MB)
    assert (item.reason, item.preview) == ("special_file", b"a FIFO")


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", b"\0\1\2" * 99]
)
def test_preview_of_bytes_that_are_no_text_is_empty(content):
    """A picture named .txt, or a broken PDF, was printed as rubbish by trace."""
    assert preview_of(content.decode("utf-8", "replace")) == ""
    assert preview_of("Die M\u00fchle\tam Bach\n" * 20).startswith("Die M\u00fchle")
    assert preview_of("one \ufffd stray sign in a text") == "one \ufffd stray sign in a text"
