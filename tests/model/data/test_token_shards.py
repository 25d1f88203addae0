"""token_shards: what is written reads back, and what is not a whole shard is named."""

import numpy as np
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
