"""The order of the data: a pure function that covers every window once an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import TokenBatches, permuted, places_in_permutation
from model.token_shards import TokenShard, read_token_shard, write_token_shard


def write_shards(directory: Path, shards: list[list[int]]) -> list[TokenShard]:
    """Documents of the given lengths; token i of the whole stream is i."""
    token, document, read = 0, 0, []
    for number, lengths in enumerate(shards):
        texts, ids = [], []
        for length in lengths:
            texts.append(np.arange(token, token + length))
            ids.append(f"doc{document}")
            token, document = token + length, document + 1
        path = directory / f"{number:05d}.arrow"
        write_token_shard(path, ids, [length * 4 for length in lengths], texts, vocab_size=60_000)
        read.append(read_token_shard(path))
    return read


@pytest.fixture
def shards(tmp_path) -> list[TokenShard]:
    return write_shards(tmp_path, [[5, 1, 30], [17], [2, 2, 9, 40], [3]])  # 109 tokens, 8 + 1 documents


@given(n=st.integers(1, 3000), seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_permutation(n, seed, epoch):
    assert sorted(permuted(np.arange(n), n, seed, epoch)) == list(range(n))


@given(n=st.integers(1, 3000), seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_places_in_permutation_turn_permuted_round(n, seed, epoch):
    indices = np.arange(n)
    assert np.array_equal(places_in_permutation(permuted(indices, n, seed, epoch), n, seed, epoch), indices)


def test_permuted_differs_by_seed_and_epoch_and_is_far_from_the_identity():
    orders = [permuted(np.arange(1000), 1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert (order == np.arange(1000)).sum() < 20
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


def test_permuted_never_changes_between_versions():
    """A checkpoint of an earlier version resumes on the same data."""
    assert permuted(np.arange(10), 10, seed=0, epoch=0).tolist() == [2, 1, 7, 9, 0, 4, 3, 5, 8, 6]


def test_batches_cover_every_window_once_an_epoch_over_the_wrap(shards):
    batches = TokenBatches(shards, rows=3, seq_len=10, seed=0)
    assert batches.n_windows == 10
    windows = np.concatenate([batches.windows_of_batch(k) for k in range(10)])
    for epoch in range(3):
        assert sorted(windows[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert not np.array_equal(windows[:10], windows[10:20])


def test_batch_larger_than_an_epoch_wraps_more_than_once(shards):
    windows = TokenBatches(shards, rows=25, seq_len=10, seed=0).windows_of_batch(0)
    assert np.bincount(windows, minlength=10).tolist() == [2 if c == 2 else 3 for c in np.bincount(windows)]
    assert len(windows) == 25


def test_every_token_but_the_first_is_a_target_once(shards):
    batches = TokenBatches(shards, rows=2, seq_len=9, seed=1)
    assert batches.n_windows * 9 == 108
    targets = torch.cat([batches.batch(k)["targets_BT"].flatten() for k in range(6)])
    assert sorted(targets.tolist()) == list(range(1, 109))


def test_targets_follow_their_inputs_across_documents_and_shards(shards):
    batch = TokenBatches(shards, rows=5, seq_len=20, seed=0).batch(0)
    assert torch.equal(batch["targets_BT"], batch["ids_BT"] + 1)
    assert batch["ids_BT"].dtype == torch.int64


def test_batch_is_a_pure_function_of_its_number(shards):
    first, again = (TokenBatches(shards, rows=4, seq_len=7, seed=3) for _ in range(2))
    for k in (5, 0, 17):
        again.batch(k + 1)
        assert torch.equal(first.batch(k)["ids_BT"], again.batch(k)["ids_BT"])


def test_rows_of_consecutive_batches_do_not_depend_on_the_rows_a_batch(shards):
    wide, narrow = (TokenBatches(shards, rows=rows, seq_len=10, seed=0) for rows in (6, 2))
    together = torch.cat([narrow.batch(k)["ids_BT"] for k in range(3)])
    assert torch.equal(wide.batch(0)["ids_BT"], together)


def test_documents_of_batch_are_those_whose_tokens_lie_in_it(shards):
    owner = np.repeat([f"doc{i}" for i in range(9)], [5, 1, 30, 17, 2, 2, 9, 40, 3])
    batches = TokenBatches(shards, rows=2, seq_len=10, seed=0)
    for k in range(8):
        rows = batches.batch(k)
        tokens = torch.cat([rows["ids_BT"], rows["targets_BT"]], dim=1).flatten().numpy()
        assert sorted(batches.documents_of_batch(k)) == sorted(set(owner[tokens]))


@pytest.mark.parametrize(
    ("rows", "seq_len", "n_steps"), [(2, 10, 3), (3, 7, 40), (25, 10, 2), (1, 108, 5), (4, 1, 9)]
)
def test_steps_of_tokens_are_those_that_reading_every_batch_finds(shards, rows, seq_len, n_steps):
    batches = TokenBatches(shards, rows=rows, seq_len=seq_len, seed=4)
    owner = np.repeat(np.arange(9), [5, 1, 30, 17, 2, 2, 9, 40, 3])
    borders = np.concatenate([[0], np.cumsum(np.bincount(owner))])
    for document in range(9):
        seen = []
        for step in range(1, n_steps + 1):
            batch = batches.batch(step - 1)
            tokens = torch.cat([batch["ids_BT"], batch["targets_BT"]], dim=1).flatten().numpy()
            if document in owner[tokens]:
                seen.append(step)
        start, end = borders[document : document + 2].tolist()
        assert batches.steps_of_tokens(start, end, n_steps).tolist() == seen


def test_steps_of_tokens_of_nothing_are_none(shards):
    assert TokenBatches(shards, rows=2, seq_len=10, seed=0).steps_of_tokens(10, 10, 50).tolist() == []


def test_steps_of_tokens_behind_the_last_window_are_none(shards):
    """109 tokens hold 7 windows of 15 and the target of the last: tokens 106 to 108 are never read."""
    batches = TokenBatches(shards, rows=2, seq_len=15, seed=0)
    assert batches.steps_of_tokens(106, 109, 50).tolist() == []
    assert batches.steps_of_tokens(105, 109, 50).tolist() != []


def test_empty_document_belongs_to_no_batch(tmp_path):
    batches = TokenBatches(write_shards(tmp_path, [[6, 0, 6], [], [4]]), rows=1, seq_len=15, seed=0)
    assert batches.documents_of_batch(0) == ["doc0", "doc2", "doc3"]


def test_too_few_tokens_for_a_window_are_refused(shards):
    with pytest.raises(ValueError, match=r"109 tokens .* seq_len=109"):
        TokenBatches(shards, rows=1, seq_len=109, seed=0)
