"""token_shards: what is written reads back, and what is not a whole shard is named."""

import numpy as np
import pyarrow as pa
import pytest

from model.data.token_shards import read_description, read_token_shard, write_token_shard


def test_token_shard_reads_back_as_written(tmp_path):
    documents = [np.array([5, 1, 2]), np.array([5]), np.array([5, 4])]
    write_token_shard(tmp_path / "a.arrow", ["x", "y", "x"], [9, 0, 7], documents, 6)
    shard = read_token_shard(tmp_path / "a.arrow")
    assert shard.document_ids.to_pylist() == ["x", "y", "x"] and shard.n_bytes.tolist() == [9, 0, 7]
    assert shard.tokens.tolist() == [5, 1, 2, 5, 5, 4] and shard.offsets.tolist() == [0, 3, 4, 6]
    assert shard.tokens.dtype == np.uint16


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_token_shard_is_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype):
    write_token_shard(tmp_path / "a.arrow", ["x"], [1], [np.array([0, vocab_size - 1])], vocab_size)
    tokens = read_token_shard(tmp_path / "a.arrow").tokens
    assert tokens.dtype == dtype and tokens.tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize("wrong", [-1, 300, 1 << 16, 1 << 40])
def test_token_shard_id_out_of_range_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"token id {wrong} is outside 0 to 299"):
        write_token_shard(tmp_path / "a.arrow", ["x"], [1], [np.array([299, wrong])], 300)
    assert not (tmp_path / "a.arrow").exists()


def test_token_shard_with_loss_weights_reads_back_as_written(tmp_path):
    documents, weights = [np.array([5, 1, 2]), np.array([5])], [np.array([0, 0.5, 2048]), np.array([1])]
    write_token_shard(tmp_path / "a.arrow", ["x", "y"], [9, 0], documents, 6, weights)
    shard = read_token_shard(tmp_path / "a.arrow")
    assert (
        shard.weights is not None
        and shard.weights.dtype == np.float16
        and shard.weights.tolist() == [0, 0.5, 2048, 1]
    )
    assert shard.tokens.tolist() == [5, 1, 2, 5]
    write_token_shard(tmp_path / "b.arrow", ["x", "y"], [9, 0], documents, 6)
    assert read_token_shard(tmp_path / "b.arrow").weights is None


def test_token_shard_with_sources_reads_back_as_written(tmp_path):
    documents, weights = [np.array([5, 1]), np.array([5]), np.array([5, 4])], [np.ones(2), np.ones(1), np.zeros(2)]
    names = ["wiki", "books", "wiki"]
    write_token_shard(tmp_path / "a.arrow", ["x", "y", "z"], [9, 0, 7], documents, 6, weights, names)
    shard = read_token_shard(tmp_path / "a.arrow")
    assert shard.sources is not None and shard.sources.to_pylist() == names and len(shard.sources.dictionary) == 2
    assert shard.tokens.tolist() == [5, 1, 5, 5, 4]
    assert shard.weights is not None and shard.weights.tolist() == [1, 1, 1, 0, 0]
    write_token_shard(tmp_path / "b.arrow", ["x"], [9], documents[:1], 6)
    assert read_token_shard(tmp_path / "b.arrow").sources is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([np.array([1, -1.0])], r"loss weight -1\.0 is outside 0 to 2,048"),
        ([np.array([1, np.nan])], "loss weight nan is outside 0 to 2,048"),
        ([np.array([1, np.inf])], "loss weight inf is outside 0 to 2,048"),
        ([np.array([1])], "1 loss weights for 2 tokens"),
    ],
)
def test_token_shard_wrong_loss_weights_are_refused(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        write_token_shard(tmp_path / "a.arrow", ["x"], [1], [np.array([2, 3])], 6, weights)
    assert not (tmp_path / "a.arrow").exists()


@pytest.mark.parametrize(("name", "kind"), [("loss_masks", pa.float16()), ("loss_weights", pa.float32())])
def test_token_shard_with_an_unknown_column_is_refused(tmp_path, name, kind):
    write_token_shard(tmp_path / "a.arrow", ["x"], [1], [np.array([2, 3])], 6)
    table = pa.ipc.open_file(str(tmp_path / "a.arrow")).read_all()
    column = pa.array([np.ones(2, np.float16 if kind == pa.float16() else np.float32)], pa.large_list(kind))
    table = table.append_column(name, column)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(
        ValueError, match=r"b\.arrow.*" + ("columns are .*loss_masks" if name == "loss_masks" else "float")
    ):
        read_token_shard(tmp_path / "b.arrow")


@pytest.mark.parametrize("kept", [0, 7, 0.5, -1])
def test_token_shard_that_lost_its_tail_is_named(tmp_path, kept):
    path = tmp_path / "a.arrow"
    write_token_shard(path, ["x"] * 100, [1] * 100, [np.arange(50)] * 100, 50)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"a\.arrow"):
        read_token_shard(path)


def test_token_shards_a_folder_without_description_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokens\.json"):
        read_description(tmp_path)
