"""The order of the data: a pure function that reads every row once per epoch, and is inverted without reading it."""

import copy
import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.data.batch_layout import IGNORE_INDEX
from model.data.batches import TokenBatches, token_batches
from model.data.token_shards import TokenShard, read_token_shard, write_token_shard
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.loop import fit
from model.training.loss import language_model_loss
from model.training.step import new_state

LENGTHS = [[5, 1, 30], [17], [2, 2, 9, 40], [3]]  # 109 tokens
OWNERS = np.repeat(np.arange(9), [5, 1, 30, 17, 2, 2, 9, 40, 3])  # of each token the number of its document
ORDERS = [(packing, mask) for packing in ("concatenated", "documents") for mask in (False, True)]


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
    return write_shards(tmp_path, LENGTHS)


def test_batches_cover_every_window_once_an_epoch_over_the_wrap(shards):
    batches = TokenBatches(shards, rows=3, seq_len=10, seed=0)
    assert batches.rows_per_epoch == 10
    windows = np.concatenate([batches.rows_of_batches(k, k + 1) for k in range(10)])
    for epoch in range(3):
        assert sorted(windows[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert not np.array_equal(windows[:10], windows[10:20])


def test_batch_larger_than_an_epoch_wraps_more_than_once(shards):
    windows = TokenBatches(shards, rows=25, seq_len=10, seed=0).rows_of_batches(0, 1)
    assert np.bincount(windows, minlength=10).tolist() == [2 if c == 2 else 3 for c in np.bincount(windows)]
    assert len(windows) == 25


def test_every_token_but_the_first_is_a_target_once(shards):
    batches = TokenBatches(shards, rows=2, seq_len=9, seed=1)
    assert batches.rows_per_epoch * 9 == 108
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


def test_order_of_a_corpus_of_one_row_takes_no_time(tmp_path):
    """The order of 4,096 epochs of one row was computed before the first batch, in 4 seconds of processor time."""
    batches = TokenBatches(write_shards(tmp_path, [[12]]), rows=1, seq_len=11, seed=0)
    start = time.process_time()
    assert batches.batch(0)["ids_BT"].tolist() == [list(range(11))]
    assert batches.steps_of_tokens(3, 4, 2000).tolist() == list(range(1, 2001))
    assert time.process_time() - start < 0.5


def test_documents_of_batch_are_those_whose_tokens_lie_in_it(shards):
    owner = np.array([f"doc{i}" for i in OWNERS])
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
    owner, borders = OWNERS, np.concatenate([[0], np.cumsum(np.bincount(OWNERS))])
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
    masked = TokenBatches(batches.stream.shards, rows=1, seq_len=15, seed=0, document_mask=True).batch(0)
    assert masked["documents_BT"].tolist() == [[0] * 6 + [1] * 6 + [2] * 3]


def test_too_few_tokens_for_a_window_are_refused(shards):
    with pytest.raises(ValueError, match=r"109 tokens .* seq_len=109"):
        TokenBatches(shards, rows=1, seq_len=109, seed=0)


@pytest.mark.parametrize("seq_len", [7, 10, 50])
def test_packed_documents_have_every_token_but_the_first_as_target_once(shards, seq_len):
    batches = TokenBatches(shards, rows=1, seq_len=seq_len, seed=1, packing="documents")
    epoch = [batches.batch(k) for k in range(batches.rows_per_epoch)]
    targets = torch.cat([batch["targets_BT"].flatten() for batch in epoch])
    assert sorted(targets[targets != IGNORE_INDEX].tolist()) == list(range(1, 109))
    for batch in epoch:
        is_cell = batch["targets_BT"] != IGNORE_INDEX
        assert torch.equal(batch["targets_BT"][is_cell], batch["ids_BT"][is_cell] + 1)
        assert is_cell[0, 0] and not torch.any(is_cell[0, 1:] & ~is_cell[0, :-1])  # what is empty lies at the end


@pytest.mark.parametrize("packing", ["concatenated", "documents"])
def test_document_mask_numbers_documents_and_counts_their_positions_anew(shards, packing):
    batches = TokenBatches(shards, rows=3, seq_len=10, seed=0, packing=packing, document_mask=True)
    plain = TokenBatches(shards, rows=3, seq_len=10, seed=0, packing=packing)
    for k in range(5):
        batch = batches.batch(k)
        assert all(torch.equal(batch[name], tensor) for name, tensor in plain.batch(k).items())
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        for row in range(3):
            ids, targets, documents, positions = (
                batch[f"{name}_BT"][row] for name in ("ids", "targets", "documents", "positions")
            )
            is_cell = targets != IGNORE_INDEX
            assert torch.equal(documents == -1, ~is_cell)
            owner = OWNERS[ids[is_cell]]
            numbers = documents[is_cell].numpy()
            assert numbers[0] == 0
            assert np.array_equal(numbers[:, None] == numbers[None], owner[:, None] == owner[None])
            for number in set(numbers.tolist()):
                assert positions[documents == number].tolist() == list(range((numbers == number).sum()))


@pytest.mark.parametrize(("packing", "mask"), ORDERS)
def test_rows_of_all_ranks_are_the_whole_batch(shards, packing, mask):
    batches = TokenBatches(shards, rows=6, seq_len=10, seed=0, packing=packing, document_mask=mask)
    for k in range(4):
        whole = batches.batch(k)
        for n_ranks in (1, 2, 3, 4, 6):
            parts = [batches.batch(k, r, n_ranks) for r in range(n_ranks)]
            for name, tensor in whole.items():
                assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


@pytest.mark.parametrize("packing", ["concatenated", "documents"])
def test_warmup_rows_shorten_the_first_batches_and_leave_the_order(shards, packing):
    plain = TokenBatches(shards, rows=4, seq_len=7, seed=2, packing=packing)
    warm = TokenBatches(shards, rows=4, seq_len=7, seed=2, packing=packing, warmup_rows=(1, 2, 3))
    assert [warm.first_row(k) for k in range(7)] == [0, 1, 3, 6, 10, 14, 18]
    ids = torch.cat([warm.batch(k)["ids_BT"] for k in range(8)])
    assert torch.equal(ids[:20], torch.cat([plain.batch(k)["ids_BT"] for k in range(5)]))


@pytest.mark.parametrize("packing", ["concatenated", "documents"])
@pytest.mark.parametrize("warmup_rows", [(), (1, 1, 2, 3)])
@pytest.mark.parametrize("seq_len", [7, 20])
def test_steps_of_a_document_are_those_whose_batches_hold_it(shards, packing, warmup_rows, seq_len):
    batches = TokenBatches(shards, rows=4, seq_len=seq_len, seed=4, packing=packing, warmup_rows=warmup_rows)
    n_steps, borders = 25, batches.stream.borders.tolist()
    holding = {k + 1: batches.documents_of_batch(k) for k in range(n_steps)}
    for document in range(9):
        steps = batches.steps_of_tokens(borders[document], borders[document + 1], n_steps).tolist()
        assert steps == [step for step, ids in holding.items() if f"doc{document}" in ids]


@pytest.mark.parametrize("packing", ["concatenated", "documents"])
def test_changed_document_changes_the_rows_that_hold_it_and_no_others(tmp_path, shards, packing):
    (tmp_path / "changed").mkdir()
    before = TokenBatches(shards, rows=1, seq_len=10, seed=3, packing=packing)
    for document in range(9):
        changed = [shard.tokens.copy() for shard in shards]
        start, end = before.stream.borders[document : document + 2].tolist()
        shard = int(np.searchsorted(before.stream.starts, start, side="right")) - 1
        first = before.stream.starts[shard]
        changed[shard][start - first + 1 : end - first] += 500  # all but the end-of-text token that opens it
        shards_after = [dataclasses.replace(old, tokens=tokens) for old, tokens in zip(shards, changed, strict=True)]
        after = TokenBatches(shards_after, rows=1, seq_len=10, seed=3, packing=packing)
        differing = [
            k + 1
            for k in range(before.rows_per_epoch)
            if any(not torch.equal(tensor, after.batch(k)[name]) for name, tensor in before.batch(k).items())
        ]
        assert differing == before.steps_of_tokens(start + 1, end, before.rows_per_epoch).tolist()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("packing", ["concatenated", "documents"])
def test_loss_of_masked_rows_is_the_sum_over_their_documents_read_alone(shards, packing, positions):
    model = tiny_decoder(positions)
    batches = TokenBatches(shards, rows=4, seq_len=24, seed=3, packing=packing, document_mask=True)
    for k in range(2):
        batch, alone = batches.batch(k), []
        loss, n_targets = language_model_loss(model, batch)
        for row in range(4):
            cells = {name: tensor[row] for name, tensor in batch.items()}
            for number in set(cells["documents_BT"].tolist()) - {-1}:
                own = cells["documents_BT"] == number
                logits_TV = model(cells["ids_BT"][own][None])[0]
                alone.append(F.cross_entropy(logits_TV, cells["targets_BT"][own], reduction="sum"))
        assert n_targets == (batch["targets_BT"] != IGNORE_INDEX).sum()
        torch.testing.assert_close(loss, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)
        without_mask = {name: batch[name] for name in ("ids_BT", "targets_BT")}
        assert abs(language_model_loss(model, without_mask)[0] - loss) > 1e-2


@pytest.mark.parametrize(("packing", "mask"), ORDERS)
def test_loss_weights_belong_to_the_targets_and_weight_0_is_no_target(tmp_path, packing, mask):
    """Token i has the weight i % 3; the second shard has no weights, so that all of its tokens have weight 1."""
    weights = [np.arange(36) % 3.0 * (np.arange(36) > 0)]
    weighted = write_weighted(tmp_path, [[36], [30]], [weights, None])
    plain = TokenBatches(write_shards(tmp_path, [[36], [30]]), rows=4, seq_len=9, seed=1, packing=packing)
    batches = TokenBatches(weighted, rows=4, seq_len=9, seed=1, packing=packing, document_mask=mask)
    expected = np.concatenate([weights[0], np.ones(30)])
    for k in range(3):
        batch, before = batches.batch(k), plain.batch(k)
        is_cell = before["targets_BT"] != IGNORE_INDEX
        own = torch.where(is_cell, torch.from_numpy(expected)[before["targets_BT"].clamp(min=0)], 0.0)
        assert torch.equal(batch["weights_BT"], own.float()) and torch.equal(batch["ids_BT"], before["ids_BT"])
        assert torch.equal(batch["targets_BT"], before["targets_BT"].masked_fill(own == 0, IGNORE_INDEX))


def test_document_of_weight_0_trains_nothing_of_its_own(tmp_path):
    """The gradient of a masked row equals that of its other documents alone."""
    lengths = [8, 7, 9]
    zero = [np.ones(8), np.zeros(7), np.ones(9)]
    zero[2][0] = 0.0  # the end-of-text token behind the second document is its last target
    weighted = write_weighted(tmp_path, [lengths], [zero])
    batch = TokenBatches(weighted, rows=1, seq_len=23, seed=0, document_mask=True).batch(0)
    model = tiny_decoder("rotary")
    alone = copy.deepcopy(model)
    loss, n_targets = language_model_loss(model, batch)
    loss.backward()
    ids_T, losses = batch["ids_BT"][0], []
    for own, targets_T in ((ids_T[:8], torch.tensor([*range(1, 8), -100])), (ids_T[15:], torch.arange(16, 24))):
        losses.append(F.cross_entropy(alone(own[None])[0], targets_T, reduction="sum"))
    torch.stack(losses).sum().backward()
    assert n_targets == 7 + 8
    torch.testing.assert_close(loss, torch.stack(losses).sum())
    for weight, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=5e-5)


def test_training_on_weighted_shards_is_training_without_the_targets_of_weight_0(tmp_path):
    class Without(TokenBatches):
        def batch(self, k, rank=0, n_ranks=1):
            batch = super().batch(k, rank, n_ranks)
            is_second = (batch["targets_BT"] >= 20) & (batch["targets_BT"] < 38)
            return batch | {"targets_BT": batch["targets_BT"].masked_fill(is_second, IGNORE_INDEX)}

    cfg = TrainConfig(n_steps=6, rows=2, seq_len=12, micro_batch=1, checkpoint_every=6)
    shards = write_shards(tmp_path, [[20, 18, 35]])
    zero = [np.ones(20), np.zeros(18), np.ones(35)]
    start, found = tiny_decoder("rotary"), []
    for batches in (
        token_batches(write_weighted(tmp_path, [[20, 18, 35]], [zero]), cfg),
        Without(shards, rows=2, seq_len=12, seed=0),
    ):
        model, losses = copy.deepcopy(start), []
        state, note = new_state(model, cfg), lambda _, values, losses=losses: losses.append(values["loss"])
        fit(state, batches, cfg, report=note, save=lambda: tmp_path)
        found.append((losses, model.state_dict()))
    (weighted, weights), (without, expected) = found
    np.testing.assert_allclose(weighted, without, rtol=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


def test_loss_of_weighted_shards_is_the_weighted_sum(tmp_path):
    weights = [np.arange(25) % 4.0]
    batch = TokenBatches(write_weighted(tmp_path, [[25]], [weights]), rows=1, seq_len=24, seed=0).batch(0)
    model = tiny_decoder("rotary")
    loss, n_targets = language_model_loss(model, batch)
    own = torch.from_numpy(weights[0][1:]).float()
    losses_T = F.cross_entropy(model(batch["ids_BT"])[0], torch.arange(1, 25), reduction="none")
    torch.testing.assert_close(loss, (losses_T * own).sum())
    assert float(n_targets) == own.sum()


def write_weighted(directory: Path, shards, weights) -> list[TokenShard]:
    """As `write_shards`, with loss weights per shard and document."""
    token, read = 0, []
    for number, (lengths, own) in enumerate(zip(shards, weights, strict=True)):
        texts = [np.arange(token + sum(lengths[:i]), token + sum(lengths[: i + 1])) for i in range(len(lengths))]
        path = directory / f"weighted-{number}.arrow"
        write_token_shard(path, [f"doc{i}" for i in range(len(lengths))], lengths, texts, 60_000, own)
        read.append(read_token_shard(path))
        token += sum(lengths)
    return read


def tiny_decoder(positions) -> Decoder:
    """A decoder whose weights are large enough that a token's context moves its loss."""
    cfg = DecoderConfig(
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_model=16,
        d_head=8,
        d_ff=32,
        max_seq_len=24,
        vocab_size=120,
        positions=positions,
    )
    model, generator = Decoder(cfg), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def test_token_batches_of_a_config_read_as_it_says(shards):
    cfg = TrainConfig(n_steps=1, rows=2, seq_len=10, micro_batch=2, seed=7, packing="documents", document_mask=True)
    expected = TokenBatches(shards, rows=2, seq_len=10, seed=7, packing="documents", document_mask=True)
    batch = token_batches(shards, cfg).batch(3)
    assert batch.keys() == expected.batch(3).keys()
    assert all(torch.equal(tensor, batch[name]) for name, tensor in expected.batch(3).items())
