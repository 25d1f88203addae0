"""What collecting makes of one file, by its suffix, its first bytes, and whatever is broken in it."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

from pipeline.corpus import csv_records
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.formats import (
    DOCX,
    EPUB,
    MAIL,
    NOTEBOOK,
    PDF,
    SOURCE_CODE,
    Found,
    Note,
    Refused,
    read_member,
)
from pipeline.corpus.collect.members import Member, members_of
from pipeline.corpus.collect.source import MediaType
from tests.pipeline.corpus.collect.reading import MB, read, reasons

CSV = b'title,text,link\nOne,"The first\ntext",https://a.example\nTwo,\nThree,third,\n\n'


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.pdf", PDF),
        ("a.epub", EPUB),
        ("a.DOCX", DOCX),
        ("a.eml", MAIL),
        ("a.csv", "text/csv"),
        ("a.tsv", "text/tab-separated-values"),
        ("a.ipynb", NOTEBOOK),
        ("a.py", SOURCE_CODE),
        ("Makefile", SOURCE_CODE),
        ("b/CMakeLists.txt", SOURCE_CODE),
        ("notes.txt", "text/plain"),
    ],
)
def test_formats_media_type_is_that_of_the_name(name, media_type):
    (page,) = read(name, b"some bytes")
    assert isinstance(page, Found) and (page.media_type, page.content) == (media_type, b"some bytes")
    assert media_type in get_args(MediaType)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(b"#!/bin/sh\nls\n", SOURCE_CODE), (b"%PDF-1.4 ...", PDF), (b"plain", None), (b"#!\xff\xfe", None)],
)
def test_formats_file_without_a_suffix_is_known_by_its_first_bytes(content, media_type):
    (page,) = read("run", content)
    assert (page.media_type if isinstance(page, Found) else None) == media_type
    assert isinstance(page, Found) or page.reason == "unsupported"


def test_formats_book_without_a_suffix_is_known_and_a_pdf_with_a_wrong_one(writers):
    book = writers.zip_file({"mimetype": "application/epub+zip", "a": "b"}, compression=zipfile.ZIP_STORED)
    assert [page.media_type for page in [*read("book", book), *read("saved.html", b"%PDF-1.7 ...")]] == [EPUB, PDF]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pa.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_formats_compressed_files_are_read_and_cut_ones_are_unreadable(suffix, pack):
    lines = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)).encode()
    pages = read("a.jsonl" + suffix, pack(lines))
    assert len(pages) == 3000 and reasons(pages) == ["found"] * 3000
    assert read("a.py" + suffix, pack(b"x = 1"))[0].content == b"x = 1"
    cut = read("a.jsonl" + suffix, pack(lines)[:-20])
    assert reasons(cut)[-1] == "unreadable" and isinstance(cut[-1], Refused)
    assert reasons(read("a.csv" + suffix, b"no such stream"))[-1] == "unreadable"
    assert reasons(read("a.txt" + suffix, pack(b"x" * (5 * MB)))) == ["too_large"]


def test_formats_csv_with_the_text_column_is_a_page_a_row():
    pages = read("a.csv", CSV, title_key="title", url_key="link")
    assert [(p.url, p.title, p.content, p.media_type) for p in pages if isinstance(p, Found)] == [
        ("https://a.example", "One", b"The first\ntext", "text/plain"),
        ("file:///a.csv#row=3", "Three", b"third", "text/plain"),
    ]
    assert reasons(pages) == ["found", "empty", "found"]


def test_formats_csv_without_the_text_column_is_one_page_and_refused_where_the_key_was_set():
    (page,) = read("a.csv", b"grain,kg\nrye,1\n")
    assert isinstance(page, Found) and (page.media_type, page.content) == ("text/csv", b"grain,kg\nrye,1\n")
    assert reasons(read("a.csv", b"grain,kg\nrye,1\n", text_key="body")) == ["no_text_key"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-8"])
def test_formats_csv_in_any_encoding_gives_the_same_pages(encoding):
    text = "n;text\n1;Die M\u00fchle mahlt das Korn.\n2;Das \u00fcbrige Mehl bleibt.\n"
    pages = read("a.csv", text.encode(encoding))
    assert [page.content.decode() for page in pages] == [
        "Die M\u00fchle mahlt das Korn.",
        "Das \u00fcbrige Mehl bleibt.",
    ]


def test_formats_csv_late_bytes_that_are_no_utf8_are_read_as_windows_1252():
    lines = b"text,n\n" + b"plain,1\n" * 100_000 + b"M\xfchle,2\n"
    assert read("a.csv", lines)[-1].content.decode() == "M\u00fchle"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["empty"]),
        (b"\n \n", ["empty"]),
        (b"text,n\n", ["empty"]),
        (b'text,n\n"open,1\nb,2\n', ["found", "found"]),
        (b"text,n\n\0\0\0,\0\nb\n", ["found"]),
        (b"text,n\na\nb,2,3\n,\n", ["found", "found"]),
        (b"text,n\n" + b"x" * 3000 + b",1\ny,2\n", ["too_large", "found"]),
        (b"text\n" + b"\xff\xfe\x80" * 10, ["found"]),
    ],
    ids=["empty", "blank", "header-only", "open-quote", "nul", "ragged", "too-large", "bad-bytes"],
)
def test_formats_csv_broken_in_any_way_gives_pages_or_reasons(content, expected):
    assert reasons(read("a.csv", content, max_bytes=2000)) == expected


def test_formats_parquet_is_a_page_a_row_with_title_and_address(writers):
    columns = {"text": ["one", None, " ", "four"], "head": ["1", "2", "3", None], "link": [None, None, None, "u:4"]}
    pages = read("a.parquet", writers.parquet(columns, row_group_size=2), title_key="head", url_key="link")
    assert [(p.url, p.title, p.content) for p in pages if isinstance(p, Found)] == [
        ("file:///a.parquet#row=1", "1", b"one"),
        ("u:4", "", b"four"),
    ]
    assert reasons(pages) == ["found", "empty", "empty", "found"]


def test_formats_parquet_from_a_folder_an_archive_and_a_compressed_file_are_the_same(writers, tmp_path):
    content = writers.parquet({"text": ["one", "two"], "n": [1, 2]})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(content)
    (tmp_path / "in.zip").write_bytes(writers.zip_file({"a.parquet": content}))
    with tarfile.open(tmp_path / "in.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "in" / "a.parquet", "a.parquet")
    source = FilesSource(name="s", licence="mine", path="/")
    found = [
        [item.content for member in members_of(tmp_path / name) for item in read_member(member, "u", source, MB)]
        for name in ("in", "in.zip", "in.tar.xz")
    ]
    found.append([item.content for item in read("a.parquet.gz", gzip.compress(content))])
    assert found == [[b"one", b"two"]] * 4


def test_formats_parquet_without_the_column_is_one_table_and_refused_where_the_key_was_set(writers):
    content = writers.parquet({"grain": ["rye", "a,b"], "kg": [1, None]})
    (page,) = read("a.parquet", content)
    assert isinstance(page, Found) and (page.media_type, page.content) == ("text/csv", b'grain,kg\nrye,1\n"a,b",\n')
    assert reasons(read("a.parquet", content, text_key="body")) == ["no_text_key"]
    assert reasons(read("a.parquet", writers.parquet({"text": [1, 2]}))) == ["no_text_key", "no_text_key"]
    assert reasons(read("a.parquet", writers.parquet({"text": pa.array([], pa.string())}))) == ["empty"]


def test_formats_parquet_rows_above_the_limit_are_refused_and_the_rest_goes_on(writers):
    content = writers.parquet({"text": ["a", "x" * 5000, "b"]})
    assert reasons(read("a.parquet", content, max_bytes=4000)) == ["found", "too_large", "found"]


def test_formats_parquet_of_equal_rows_that_expands_too_much_ends_as_too_large(writers, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.collect.unpacking.FREE_BYTES", 1_000_000)
    equal = writers.parquet({"text": ["x" * 500_000] * 120})
    nothing = writers.parquet({"text": pa.nulls(50_000, pa.string())})
    assert len(equal) < 50_000 and len(nothing) < 2000
    for content, reason in ((equal, "found"), (nothing, "empty")):
        (*rows, last) = reasons(read("a.parquet", content))
        assert set(rows) == {reason} and last == "too_large"


@pytest.mark.parametrize("damage", ["tail", "half", "magic", "empty", "text", "zeros", "checksum"])
def test_formats_parquet_broken_is_unreadable(writers, damage):
    whole = writers.parquet(
        {"text": [f"text {i}" * 20 for i in range(100)]}, compression="none", write_page_checksum=True
    )
    broken = {
        "tail": whole[:-30],
        "half": whole[: len(whole) // 2],
        "magic": whole[:-4] + b"PARX",
        "empty": b"",
        "text": b"no parquet",
        "zeros": b"PAR1" + b"\0" * 200 + whole[204:],
        "checksum": whole[:100].replace(b"text", b"tixt") + whole[100:],
    }[damage]
    items = read("a.parquet", broken)
    assert set(reasons(items)) <= {"found", "unreadable", "empty"} and reasons(items)[-1] == "unreadable"


def test_formats_json_is_a_page_a_record_or_one_record():
    records = [{"text": "one", "title": "T"}, {"text": 3}, "no record", {"text": "\ud800"}]
    pages = read("a.json", json.dumps(records).encode(), title_key="title")
    assert reasons(pages) == ["found", "no_text_key", "no_text_key", "found"]
    assert [p.url for p in pages if isinstance(p, Found)] == ["file:///a.json#record=1", "file:///a.json#record=4"]
    assert read("a.json", b'{"text": "alone"}')[0].content == b"alone"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"[]", "empty"),
        (b"[1", "unreadable"),
        (b"[" * 100_000, "unreadable"),
        (b"\xff", "unreadable"),
    ],
)
def test_formats_json_broken_is_a_reason(content, reason):
    assert reasons(read("a.json", content)) == [reason]


def test_formats_mailbox_is_a_page_a_message_with_its_lines_unmarked(writers):
    first, second = writers.mail("One", "He wrote:\n\nFrom here on it grinds.\n").as_bytes(), b"Subject: Two\n\nB"
    pages = read("a.mbox", writers.mbox([first, second]))
    assert [(p.url, p.media_type) for p in pages] == [
        ("file:///a.mbox#message=1", MAIL),
        ("file:///a.mbox#message=2", MAIL),
    ]
    assert pages[0].content.strip() == first.strip() and pages[1].content.strip() == second
    assert reasons(read("inbox", writers.mbox([first, second]))) == ["found", "found"]


def test_formats_mailbox_message_above_the_limit_is_refused_and_the_rest_goes_on(writers):
    content = writers.mbox([b"Subject: x\n\n" + b"line\n" * 3000, b"Subject: y\n\nB"])
    assert reasons(read("a.mbox", content, max_bytes=5000)) == ["too_large", "found"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"Subject: x\n\nno From line", b"From nobody\n", b"\0" * 1000])
def test_formats_mailbox_without_a_from_line_is_unreadable(content):
    assert reasons(read("a.mbox", content)) == ["unreadable"]


def test_formats_archives_inside_archives_are_not_opened(writers, tmp_path):
    inner = writers.zip_file({"a.txt": "inner"})
    (tmp_path / "in.zip").write_bytes(writers.zip_file({"inner.zip": inner, "inner.tar.gz": inner, "a.txt": "A"}))
    source = FilesSource(name="s", licence="mine", path="/")
    items = [i for m in members_of(tmp_path / "in.zip") for i in read_member(m, m.name, source, MB)]
    assert [(item.url, reason) for item, reason in zip(items, reasons(items), strict=True)] == [
        ("inner.zip", "archive_in_archive"),
        ("inner.tar.gz", "archive_in_archive"),
        ("a.txt", "found"),
    ]


def test_formats_bomb_inside_a_compressed_file_costs_no_memory(tmp_path: Path):
    bomb = bz2.compress(b"\0" * (60 * MB))
    assert len(bomb) < 1000
    for name in ("a.txt.bz2", "a.csv.bz2", "a.json.bz2", "a.parquet.bz2", "a.mbox.bz2", "a.jsonl.bz2"):
        assert set(reasons(read(name, bomb))) <= {"too_large", "unreadable", "empty"}, name


def test_formats_csv_whose_quotes_never_close_is_read_in_linear_time_and_says_so(monkeypatch):
    """Each open quote took the rest of the file with it, up to a thousand times: 10 MB did not end in minutes."""
    monkeypatch.setattr("pipeline.corpus.csv_records.MAX_READ_AGAIN", 1_000_000)
    n_rows, n_lines = 20_000, 0
    content = b"n,text\n" + b'1,"A wheel turns\n2,and turns\n' * (n_rows // 2)

    real = csv_records._Lines.__next__

    def counted(self):
        nonlocal n_lines
        n_lines += 1
        return real(self)

    monkeypatch.setattr(csv_records._Lines, "__next__", counted)
    items = list(read_member(Member("a.csv", lambda: io.BytesIO(content)), "u", FilesSource(name="s", path="/"), MB))
    pages, notes = items[:-1], items[-1:]
    assert len(pages) == n_rows and all(isinstance(page, Found) for page in pages)
    assert isinstance(notes[0], Note) and "not closed as csv requires" in notes[0].text
    assert n_lines < 5 * n_rows


def test_formats_csv_separators_that_nobody_quoted_lose_no_text():
    """In a file with one column, everything behind the first comma of a text was lost without a word."""
    assert [page.content for page in read("a.csv", b"text\nThe mill, old, stands\n")] == [b"The mill, old, stands"]
    member = Member("a.csv", lambda: io.BytesIO(b"text,id\nThe mill, old,1\nIt grinds,2\n"))
    *rows, note = read_member(member, "u", FilesSource(name="s", path="/"), MB)
    assert [row.content for row in rows if isinstance(row, Found)] == [b"The mill", b"It grinds"]
    assert isinstance(note, Note) and "1 row has more cells than there are columns" in note.text
