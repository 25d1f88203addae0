"""Digests of content: equal for equal values however they were written, different for different values."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.digests import batches_digest, content_digest
from pipeline.store.errors import CorruptShard

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("n", pa.int32()),
        pa.field("ratio", pa.float64()),
        pa.field("is_kept", pa.bool_()),
        pa.field("at", pa.timestamp("ms", tz="UTC")),
        pa.field("content", pa.binary()),
        pa.field("spans", pa.list_(pa.struct([("start", pa.int64()), ("kind", pa.string())]))),
        pa.field("sides", pa.list_(pa.float32(), 2)),
        pa.field("price", pa.decimal128(10, 2)),
        pa.field("tags", pa.map_(pa.string(), pa.int8())),
        pa.field("nothing", pa.null()),
    ]
)
ROWS = [
    {
        "id": f"page {i}" if i % 7 else None,
        "text": "Mühle " * (i % 4),
        "n": i if i % 5 else None,
        "ratio": i / 3 if i % 3 else None,
        "is_kept": [True, False, None][i % 3],
        "at": i * 1000,
        "content": bytes([i]) * (i % 3) if i % 11 else None,
        "spans": [{"start": j if j % 2 else None, "kind": "email"} for j in range(i % 4)] if i % 6 else None,
        "sides": [i, -i],
        "price": None,
        "tags": [("a", i % 100)] * (i % 2),
        "nothing": None,
    }
    for i in range(200)
]
TABLE = pa.Table.from_pylist(ROWS, schema=SCHEMA)


def digest(table: pa.Table, path, **how) -> str:
    pq.write_table(table, path, **how)
    return content_digest(path)


@pytest.mark.parametrize(
    "how",
    [
        {"row_group_size": 7},
        {"compression": "none"},
        {"compression": "gzip", "use_dictionary": False},
        {"data_page_version": "2.0"},
        {"write_statistics": False, "data_page_size": 64},
        {"store_schema": False},
    ],
)
def test_content_digest_how_a_parquet_file_was_written_does_not_count(tmp_path, how):
    """A digest of a file's bytes changes with pyarrow, whose version is in every footer: all was rebuilt after an
    upgrade (review 3.5)."""
    table = TABLE.select(["id", "text", "n", "content"]) if "store_schema" in how else TABLE
    plain, other = tmp_path / "plain.parquet", tmp_path / "other.parquet"
    assert digest(table, plain) == digest(table, other, **how)
    assert plain.read_bytes() != other.read_bytes()


def test_content_digest_other_footer_metadata_does_not_count(tmp_path):
    noted = TABLE.replace_schema_metadata({"written_by": "another version"})
    assert digest(noted, tmp_path / "a.parquet") == digest(TABLE, tmp_path / "b.parquet")


def test_content_digest_is_that_of_the_values_in_parquet_and_in_arrow_files(tmp_path):
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(TABLE, max_chunksize=13)
    assert content_digest(path) == digest(TABLE, tmp_path / "a.parquet")


@given(cuts=st.lists(st.integers(0, 200), max_size=5), start=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_content_digest_batches_and_slices_do_not_count(cuts, start):
    edges = [start, *sorted(max(start, cut) for cut in cuts), 200]
    pieces = [TABLE.slice(a, b - a) for a, b in pairwise(edges)]
    batches = [batch for piece in pieces for batch in piece.to_batches()]
    copied = pa.Table.from_pylist(ROWS[start:], schema=SCHEMA)
    assert batches_digest(SCHEMA, batches) == batches_digest(SCHEMA, copied.to_batches())


def test_content_digest_layout_in_memory_does_not_count():
    texts = ["a", "bb", None, "a"]
    plain = pa.array(texts, pa.string())
    others = [
        plain.cast(pa.large_string()),
        plain.cast(pa.string_view()),
        plain.dictionary_encode(),
        pa.concat_arrays([pa.array(["x"], pa.string()), plain]).slice(1),
    ]
    expected = batch_digest(plain)
    assert [batch_digest(one) for one in others] == [expected] * len(others)
    hidden = pa.Array.from_buffers(  # 9 is below a null
        pa.int8(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(bytes([5, 9]))]
    )
    assert batch_digest(hidden) == batch_digest(pa.array([5, None], pa.int8()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["ab", "c"]), pa.array(["a", "bc"])),
        (pa.array([None, ""]), pa.array(["", None])),
        (pa.array([[1], [2, 3]]), pa.array([[1, 2], [3]])),
        (pa.array([[], None], pa.list_(pa.int64())), pa.array([None, []], pa.list_(pa.int64()))),
        (pa.array([1, 0], pa.int8()), pa.array([1, None], pa.int8())),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2], pa.int16())),
        (pa.array([1, 2]), pa.array([2, 1])),
        (pa.array([None], pa.null()), pa.array([None, None], pa.null())),
        (pa.array([True, False]), pa.array([False, True])),
        (pa.array([{"a": 1}]), pa.array([{"b": 1}])),
        (pa.array([None], pa.struct([("a", pa.int8())])), pa.array([{"a": None}], pa.struct([("a", pa.int8())]))),
        (pa.array([0.0]), pa.array([-0.0])),
    ],
)
def test_content_digest_other_values_types_or_borders_count(one, other):
    assert batch_digest(one) != batch_digest(other)


def test_content_digest_names_and_order_of_columns_count_and_volatile_ones_do_not(tmp_path):
    table = pa.table({"a": [1], "b": [1]})
    swapped = table.select(["b", "a"])
    renamed = table.rename_columns(["a", "c"])
    paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    assert len({digest(one, path) for one, path in zip((table, swapped, renamed), paths, strict=True)}) == 3
    later = pa.table({"a": [1], "b": [2]})
    pq.write_table(later, paths[1])
    assert content_digest(paths[0], without=["b"]) == content_digest(paths[1], without=["b"])


def test_content_digest_of_another_file_is_that_of_its_bytes_and_a_broken_table_is_named(tmp_path):
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text("{}")
    other.write_text("{} ")
    assert content_digest(one) != content_digest(other)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptShard, match=r"c\.parquet: not a readable table"):
        content_digest(tmp_path / "c.parquet")


def batch_digest(array: pa.Array) -> str:
    batch = pa.RecordBatch.from_arrays([array], names=["x"])
    return batches_digest(batch.schema, [batch])
