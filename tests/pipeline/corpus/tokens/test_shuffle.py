"""shuffle: any number of documents in the order of their keys, whatever memory allows."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.token_shards import read_token_shard
from pipeline.corpus.tokens.shuffle import Documents, TokenFiles, in_order, order_keys
from pipeline.store.errors import CorruptShard

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


def chunk_of(names, lengths, seed=1):
    """Documents whose tokens tell which one they are."""
    tokens = [np.full(length, i % 1000, np.uint16) for i, length in zip(names, lengths, strict=True)]
    ids = pa.array([str(i) for i in names], pa.string())
    sources = pa.array([source_of(i) for i in names], pa.string())
    keys = order_keys([f"p{i}" for i in names], [0] * len(names), seed)
    return Documents(keys, ids, sources, np.array(lengths), tokens)


def source_of(i):
    return f"s{i % 3}"


def given_by(documents, limit, folder):
    """(id, tokens) in the order in which they come, and bytes of the largest bucket."""
    size = sum(one.size for one in documents)
    found, largest = [], 0
    for one in in_order(iter(documents), size, limit, folder / "scratch"):
        largest = max(largest, one.size)
        found += zip(one.ids.to_pylist(), [tokens.tolist() for tokens in one.tokens], strict=True)
        assert one.sources.to_pylist() == [source_of(int(name)) for name in one.ids.to_pylist()]
    assert not (folder / "scratch").exists()
    return found, largest


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 7), st.integers(2000, 40_000))
def test_in_order_gives_every_document_once_in_the_order_of_its_key(lengths, n_chunks, limit):
    chunks = [chunk_of(range(i, len(lengths), n_chunks), lengths[i::n_chunks]) for i in range(n_chunks)]
    chunks = [chunk for chunk in chunks if len(chunk.tokens)]
    whole = chunk_of(range(len(lengths)), lengths)
    keys = [tuple(key) for key in whole.keys.tolist()]
    expected = [(str(i), whole.tokens[i].tolist()) for i in sorted(range(len(lengths)), key=keys.__getitem__)]
    with tempfile.TemporaryDirectory() as folder:
        assert given_by(chunks, limit, Path(folder))[0] == expected
        assert given_by(chunks, 1 << 40, Path(folder))[0] == expected


def test_in_order_buckets_stay_below_the_limit(tmp_path):
    chunks = [chunk_of(range(i, i + 100), [200] * 100) for i in range(0, 5000, 100)]
    found, largest = given_by(chunks, 300_000, tmp_path)
    assert len(found) == 5000 and largest < 300_000 < sum(chunk.size for chunk in chunks) / 10


def test_in_order_a_bucket_that_vanishes_is_told(tmp_path):
    chunks = [chunk_of(range(i, i + 10), [200] * 10) for i in range(0, 100, 10)]
    with pytest.raises(CorruptShard, match="documents of the shuffle are lost"):
        for n_buckets, _ in enumerate(in_order(iter(chunks), 100_000, 10_000, tmp_path / "scratch")):
            if not n_buckets:
                (tmp_path / "scratch" / "5").unlink()


def test_in_order_a_bucket_that_lost_its_tail_is_named(tmp_path):
    chunks = [chunk_of(range(i, i + 10), [200] * 10) for i in range(0, 100, 10)]
    buckets = in_order(iter(chunks), 100_000, 10_000, tmp_path / "scratch")
    next(buckets)
    path = tmp_path / "scratch" / "5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptShard, match="scratch/5"):
        list(buckets)


def test_order_keys_depend_on_seed_copy_and_page_alone():
    keys = order_keys(["a", "b", "a"], [0, 0, 1], 1).tolist()
    assert keys == [order_keys([page], [copy], 1)[0].tolist() for page, copy in [("a", 0), ("b", 0), ("a", 1)]]
    assert len({tuple(key) for key in [*keys, *order_keys(["a"], [0], 2).tolist()]}) == 4


def greedy(lengths, most):
    """Lengths by file, as a loop over documents fills them."""
    files = []
    for length in lengths:
        if not files or sum(files[-1]) + length > most:
            files.append([])
        files[-1].append(length)
    return files


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 900), st.integers(1, 20))
def test_token_files_hold_what_fits_whatever_the_pieces_are(lengths, most, piece):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = TokenFiles(folder, most, 1000)
        for i in range(0, len(lengths), piece):
            files.write(chunk_of(range(i, min(i + piece, len(lengths))), lengths[i : i + piece]))
        files.close()
        shards = [read_token_shard(path) for path in sorted(folder.iterdir())]
        assert [np.diff(shard.offsets).tolist() for shard in shards] == greedy(lengths, most)
        names = [one for shard in shards for one in shard.document_ids.to_pylist()]
        assert names == [str(i) for i in range(len(lengths))]
        sources = [one for shard in shards for one in shard.sources.to_pylist()]
        assert sources == [source_of(i) for i in range(len(lengths))]
        tokens = np.concatenate([shard.tokens for shard in shards]).tolist()
        assert tokens == np.repeat(np.arange(len(lengths)), lengths).tolist()
        n_bytes = sum(int(shard.n_bytes.sum()) for shard in shards)
        assert files.totals == {"documents": len(lengths), "tokens": len(tokens), "bytes": n_bytes}
