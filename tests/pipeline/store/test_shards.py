"""Shards: files that are whole or not there, names that spread pages, digests that tell apart."""

import os

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.errors import CorruptShard
from pipeline.store.shards import (
    file_digest,
    link_or_copy,
    read_table,
    replacing,
    shard_name,
    shard_number,
    shard_paths,
    text_digest,
    write_bytes,
    write_rows,
    write_table,
)

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("n", pa.int64())])


def test_replacing_fault_inside_keeps_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyError), replacing(path) as part:
        part.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_replacing_shows_the_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as part:
        part.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_table_written_and_read_is_equal_whatever_its_folder_is_called(tmp_path):
    path = tmp_path / "n=3" / "id=x" / "a.parquet"
    table = pa.table({"id": ["a", "b"], "n": [1, None]}, schema=SCHEMA)
    write_table(path, table)
    assert read_table(path, SCHEMA).equals(table)
    assert read_table(path, columns=["n"]).column_names == ["n"]


def test_table_without_rows_keeps_its_schema(tmp_path):
    write_rows(tmp_path / "a.parquet", [], SCHEMA)
    assert read_table(tmp_path / "a.parquet").schema == SCHEMA


def test_table_cut_off_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, [{"id": str(i), "n": i} for i in range(1000)], SCHEMA)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptShard, match=r"a\.parquet: not a readable Parquet shard"):
        read_table(path)
    with pytest.raises(CorruptShard, match=r"b\.parquet"):
        read_table(tmp_path / "b.parquet")


@pytest.mark.parametrize("asked", [{"schema": SCHEMA}, {"columns": ["id", "n"]}])
def test_table_without_an_expected_column_is_named(tmp_path, asked):
    write_table(tmp_path / "a.parquet", pa.table({"id": ["a"]}))
    with pytest.raises(CorruptShard, match=r"a\.parquet: columns \['n'\] are missing, got \['id'\]"):
        read_table(tmp_path / "a.parquet", **asked)


def test_shard_paths_lists_shards_of_the_folder_in_order(tmp_path):
    for name in ("b.parquet", "a.parquet", "dropped/c.parquet", "record.json"):
        write_bytes(tmp_path / name, b"")
    assert [path.name for path in shard_paths(tmp_path)] == ["a.parquet", "b.parquet"]
    assert [path.name for path in shard_paths(tmp_path, "dropped")] == ["c.parquet"]


def test_shard_name_spreads_evenly_and_never_changes():
    names = [shard_name("web", shard_number(f"https://example.org/{i}", 4)) for i in range(4000)]
    assert {names.count(name) // 100 for name in set(names)} <= {9, 10}
    assert len(set(names)) == 4
    assert shard_name("web", shard_number("https://example.org/\u00e4", 16)) == "web-00006.parquet"


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_text_digest_differs_where_the_parts_differ(one, other):
    assert (text_digest(*one) == text_digest(*other)) == (one == other)


def test_text_digest_is_fixed():
    """Ids lie in stored data: they must never change."""
    assert text_digest("ab", "c") == text_digest(b"ab", b"c")
    assert text_digest("mill") == "62ea70de07bc8cc353a239bd126b7f49"


def test_text_digest_takes_lone_surrogates():
    assert text_digest("\ud800") != text_digest("?")


def test_file_digest_depends_on_bytes_only(tmp_path):
    write_bytes(tmp_path / "a", b"x" * 3_000_000)
    write_bytes(tmp_path / "b", b"x" * 3_000_000)
    write_bytes(tmp_path / "c", b"x" * 2_999_999 + b"y")
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c


def test_link_shares_bytes_and_replaces_what_was_there(tmp_path):
    write_bytes(tmp_path / "a", b"new")
    write_bytes(tmp_path / "b", b"old")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new" and (tmp_path / "b").samefile(tmp_path / "a")


def test_link_copies_where_the_file_system_cannot_link(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_bytes(tmp_path / "a", b"new")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new" and not (tmp_path / "b").samefile(tmp_path / "a")
