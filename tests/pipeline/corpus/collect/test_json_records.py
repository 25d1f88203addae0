"""Records of JSON are recognised by content, whatever the suffix, the layout or the compression of the file."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.formats import Found, Refused, read_member
from pipeline.corpus.collect.members import Member
from tests.pipeline.corpus.collect.reading import read, reasons

RECORDS = [{"id": i, "text": f"Sack {i} of rye went through the stones."} for i in range(3)]
LINES = "\n".join(map(json.dumps, RECORDS)) + "\n"
TEXTS = [record["text"].encode() for record in RECORDS]
FORMS = {
    "lines": LINES,
    "blank-lines": "\n\n" + LINES.replace("\n", "\n\n"),
    "windows-lines": LINES.replace("\n", "\r\n"),
    "old-mac-lines": LINES.replace("\n", "\r"),
    "mark": "\ufeff" + LINES,
    "separators": "".join(f"\x1e{json.dumps(record)}\n" for record in RECORDS),
    "spread-separators": "".join(f"\x1e{json.dumps(record, indent=1)}\n" for record in RECORDS),
    "comma-lines": LINES.replace("}\n", "},\n"),
    "list": json.dumps(RECORDS),
    "spread-list": json.dumps(RECORDS, indent=2),
    "list-of-lines": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "comma-too-many": json.dumps(RECORDS)[:-1] + ",]",
    "values": "".join(map(json.dumps, RECORDS)),
    "spread-values": "\n".join(json.dumps(record, indent=4) for record in RECORDS),
    "data": json.dumps({"version": "1.1", "data": RECORDS}),
    "spread-data": json.dumps({"version": "1.1", "data": RECORDS}, indent=1),
    "train-and-test": json.dumps({"train": RECORDS[:2], "test": RECORDS[2:]}),
    "nested": json.dumps({"data": {"train": RECORDS[:2], "test": RECORDS[2:]}}),
    "rows": json.dumps({"features": [{"name": "text"}], "rows": [{"row_idx": 0, "row": r} for r in RECORDS]}),
    "by-key": json.dumps({f"sack-{record['id']}": record for record in RECORDS}),
    "paragraphs": json.dumps({"data": [{"title": "Sacks", "paragraphs": [{"context": r["text"]}]} for r in RECORDS]}),
    "columns": json.dumps({"id": [0, 1, 2], "text": [record["text"] for record in RECORDS]}),
    "pandas": json.dumps({"id": {"0": 0, "1": 1, "2": 2}, "text": {str(r["id"]): r["text"] for r in RECORDS}}),
    "split": json.dumps({"columns": ["id", "text"], "index": [0, 1, 2], "data": [[*r.values()] for r in RECORDS]}),
}
PACKED = {
    "plain": lambda content: content,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson"])
def test_json_lines_in_any_layout_and_under_any_suffix_give_all_records(form, suffix):
    """A file train.json with a record per line was refused as a whole: the suffix chose the syntax
    (huggingface/datasets#6891, #1784, lil-lab/nlvr#1)."""
    pages = read(f"train.{suffix}", FORMS[form].encode())
    assert [page.content for page in pages if isinstance(page, Found)] == TEXTS
    assert len({page.url for page in pages}) == 3 == len(pages)


@pytest.mark.parametrize("name", ["train.txt", "train.data", "train", "train.csv", "train.md"])
@pytest.mark.parametrize("form", ["lines", "list", "spread-list", "mark", "spread-values"])
def test_json_records_under_a_name_of_another_format_are_read(name, form):
    assert [page.content for page in read(name, FORMS[form].encode()) if isinstance(page, Found)] == TEXTS


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("name", ["train.json", "train.jsonl.gz", "train.json.zst", "train.data", "train.ndjson.bz2"])
def test_json_lines_are_unpacked_by_content_whatever_their_suffix(pack, name):
    assert [page.content for page in read(name, PACKED[pack](LINES.encode())) if isinstance(page, Found)] == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_json_lines_in_another_encoding_are_read(encoding):
    lines = json.dumps({"text": "Die M\u00fchle steht am Flu\u00df."}, ensure_ascii=False) + "\n"
    assert [page.content.decode() for page in read("a.json", (lines * 2).encode(encoding))] == [
        "Die M\u00fchle steht am Flu\u00df."
    ] * 2


def test_json_text_that_only_looks_like_json_stays_a_text():
    for content in (
        b"[1] A mill.\n[2] A wheel.\n",
        b'{"text": "one"}\nand prose\n',
        b"{{template}}\n",
        b"[link](a)\n",
    ):
        (page,) = read("notes.txt", content)
        assert isinstance(page, Found) and page.content == content


def test_json_bad_lines_are_refused_alone_even_the_first():
    assert reasons(read("a.jsonl", b'{"text": "a\ttab"}\n{"text": "b"}\n')) == ["found", "found"]
    lines = b'{"text": "cut\n' + LINES.encode() + b"nonsense\n"
    for name in ("a.json", "a.jsonl"):
        items = read(name, lines)
        assert reasons(items) == ["unreadable", "found", "found", "found", "unreadable"]
        assert [item.url.rpartition("#")[2] for item in items] == [f"line={n}" for n in range(1, 6)]


def test_json_values_are_read_up_to_the_first_error_which_is_described():
    items = read("a.json", json.dumps(RECORDS, indent=1).encode()[:-40])
    assert reasons(items) == ["found", "found", "unreadable"]
    assert b"after 2 records" in items[-1].preview
    (item,) = read("a.json", b'{\n "text": "one"\n "id": 3\n}')
    assert item.reason == "unreadable" and b'found \'"id": 3' in item.preview


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "Why?", "n": 3}, "found the keys question (text), n (number)"),
        (
            {"data": [{"story": "x", "tags": ["a"]}]},
            "the first record below them has the keys story (text), tags (list",
        ),
        ([1, 2], "found number instead of a record"),
    ],
)
def test_json_without_a_text_says_what_was_found(record, said):
    items = read("a.json", json.dumps(record).encode())
    assert set(reasons(items)) == {"no_text_key"} and said in items[0].preview.decode()


@pytest.mark.parametrize("key", ["content", "Text", "body", "page_content", " TEXT "])
def test_json_text_under_a_usual_name_is_found_unless_a_key_is_set(key):
    content = json.dumps([{key: "The wheel turns.", "n": 1}]).encode()
    assert reasons(read("a.json", content)) == ["found"]
    assert reasons(read("a.json", content, text_key="story")) == ["no_text_key"]


def test_json_list_larger_than_a_page_is_read_element_by_element():
    records = json.dumps([{"text": "x" * 900}] * 500).encode()
    pages = read("a.json", records, max_bytes=5000)
    assert reasons(pages) == ["found"] * 500
    long = json.dumps([{"text": "a"}, {"text": "x" * 300_000}]).encode()
    assert reasons(read("a.json", long, max_bytes=5000)) == ["found", "too_large"]


def test_json_unpacking_is_bounded_by_the_size_of_the_file_and_not_below(monkeypatch):
    """85 bytes of bz2 may be 20,000 pages, but a few kB must not be millions."""
    monkeypatch.setattr("pipeline.corpus.collect.unpacking.FREE_BYTES", 3_000_000)
    source = FilesSource(name="s", path="/")
    for n_rows, end in ((20_000, "found"), (200_000, "too_large")):
        packed = bz2.compress(b'{"text": "a"}\n' * n_rows)
        member = Member("a.jsonl.bz2", lambda packed=packed: __import__("io").BytesIO(packed), size=len(packed))
        items = list(read_member(member, "u", source, 1_000_000))
        assert reasons(items[-1:]) == [end]
    assert isinstance(items[-1], Refused) and b"unpacks to more than" in items[-1].preview


def test_csv_with_another_separator_than_its_suffix_says_is_read_by_content():
    rows = [["id", "text"], ["1", "First, the wheel turns."], ["2", "Then the stones."]]
    for name in ("a.csv", "a.tsv", "a.tab"):
        for separator in ("\t", ";", "|"):
            content = "\n".join(separator.join(row) for row in rows).encode()
            assert [page.content.decode() for page in read(name, content)] == [row[1] for row in rows[1:]]
    assert [page.content for page in read("a.tsv", b'id,text\n1,"a, b"\n2,c\n')] == [b"a, b", b"c"]
    assert [page.content for page in read("a.csv", b"sep=;\r\nid;text\r\n1;a, b\r\n")] == [b"a, b"]
    assert [page.content for page in read("a.tsv", b"text\nOne, two, three.\nFour, five, six.\n")] == [
        b"One, two, three.",
        b"Four, five, six.",
    ]


def test_csv_without_a_text_column_is_one_table_of_the_separator_that_it_has():
    for content, media_type in (
        (b"grain\tkg\nrye\t1\n", "text/tab-separated-values"),
        (b"grain;kg\nrye;1\n", "text/csv"),
    ):
        for name in ("a.csv", "a.tsv"):
            (page,) = read(name, content)
            assert (page.media_type, page.content) == (media_type, content)


def test_csv_column_of_texts_under_a_usual_name_is_found_and_one_of_words_is_not(writers):
    texts = b"id,Content\n1,The first of the long texts about mills.\n2,And the second one of them.\n"
    assert reasons(read("a.csv", texts)) == ["found", "found"]
    (table,) = read("a.csv", b"body,mass\nMars,6.4e23\nVenus,4.9e24\n")
    assert table.media_type == "text/csv"
    assert reasons(read("a.parquet", writers.parquet({"content": ["A long text about the stones of a mill."]}))) == [
        "found"
    ]
    (refused,) = read("a.csv", b"grain,kg\nrye,1\n", text_key="story")
    assert b"found the columns grain, kg" in refused.preview


def test_parquet_is_recognised_by_content(writers):
    content = writers.parquet({"text": ["one", "two"]})
    assert [page.content for page in read("train-00000-of-00001", content)] == [b"one", b"two"]
