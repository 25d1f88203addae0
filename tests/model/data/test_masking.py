"""Masks: their shares, their independence of everything but (seed, batch, row), and what they never touch."""

import itertools

import numpy as np
import pytest
import torch

from model.data.batch_layout import IGNORE_INDEX
from model.data.batches import TokenBatches
from model.data.masking import MaskedBatches, MaskVocabulary, hidden_positions, mask_vocabulary, word_tables
from model.data.token_shards import TokenShard, read_token_shard, write_token_shard
from model.data.tokenizer import load_tokenizer
from model.training.config import Packing

N_VOCAB, OPENING, MASK = 203, 0, 202  # ids 1 to 201 are ordinary
VOCABULARY = MaskVocabulary(mask_id=MASK, opening=OPENING, special=(OPENING,), vocab_size=N_VOCAB)


@pytest.fixture
def shards(tmp_path) -> list[TokenShard]:
    """60 documents of 20 to 200 tokens, each opened by OPENING."""
    rng = np.random.default_rng(0)
    texts = [np.concatenate([[OPENING], rng.integers(1, 202, rng.integers(20, 200))]) for _ in range(60)]
    path = tmp_path / "00000.arrow"
    write_token_shard(path, [str(i) for i in range(60)], [len(text) for text in texts], texts, N_VOCAB - 1)
    return [read_token_shard(path)]


def batches_of(
    shards: list[TokenShard], *, rows: int = 8, packing: Packing = "documents", mask: bool = True, **changes
):
    plain = TokenBatches(shards, rows=rows, seq_len=64, seed=1, packing=packing, document_mask=mask)
    return plain, MaskedBatches(plain, **({"vocabulary": VOCABULARY, "fraction": 0.15, "seed": 1} | changes))


def is_hidden(batch) -> torch.Tensor:
    """(B, T) bool from supervised_BP."""
    hidden_BT = torch.zeros_like(batch["ids_BT"], dtype=torch.bool)
    for row, positions in enumerate(batch["supervised_BP"].tolist()):
        hidden_BT[row, [p for p in positions if p >= 0]] = True
    return hidden_BT


def test_shares_of_mask_random_and_own_tokens_are_those_of_the_paper(shards):
    plain, masked = batches_of(shards)
    counts = dict.fromkeys(("able", "hidden", "masked", "kept"), 0)
    for k in range(60):
        before, after = plain.batch(k), masked.batch(k)
        hidden_BT, targets_BT = is_hidden(after), after["targets_BT"]
        able_BT = (before["documents_BT"] >= 0) & (before["ids_BT"] != OPENING) & (before["positions_BT"] > 0)
        assert torch.equal(targets_BT >= 0, hidden_BT) and (targets_BT[~hidden_BT] == IGNORE_INDEX).all()
        assert torch.equal(targets_BT[hidden_BT], before["ids_BT"][hidden_BT]) and (able_BT | ~hidden_BT).all()
        unhidden_BT = ~hidden_BT & able_BT
        assert torch.equal(after["ids_BT"][unhidden_BT], before["ids_BT"][unhidden_BT])
        per_row_B, n_able_B = hidden_BT.sum(1), able_BT.sum(1)
        assert ((per_row_B - 0.15 * n_able_B).abs() < 1).all()
        counts["able"] += int(n_able_B.sum())
        counts["hidden"] += int(per_row_B.sum())
        counts["masked"] += int((after["ids_BT"] == MASK).sum())
        counts["kept"] += int((after["ids_BT"] == targets_BT).sum())
    n = counts["hidden"]
    assert n > 3000 and abs(n / counts["able"] - 0.15) < 0.002
    for share, found in ((0.8, counts["masked"]), (0.1 + 0.1 / 201, counts["kept"])):
        assert abs(found / n - share) < 4 * (share * (1 - share) / n) ** 0.5  # four standard deviations


def test_random_tokens_are_ordinary_and_positions_uniform(shards):
    _, masked = batches_of(shards, packing="concatenated", mask=False, fraction=0.5)
    random, at = [], np.zeros(64)
    for k in range(150):
        batch = masked.batch(k)
        changed_BT = (batch["targets_BT"] >= 0) & (batch["ids_BT"] != MASK) & (batch["ids_BT"] != batch["targets_BT"])
        random.extend(batch["ids_BT"][changed_BT].tolist())
        at += is_hidden(batch).sum(0).numpy()
    assert min(random) >= 1 and max(random) <= 201 and len(set(random)) == 201
    assert at[0] == 0  # the opening token of the row
    assert abs(at[1:] / at[1:].mean() - 1).max() < 0.2


def test_spans_open_with_the_opening_token(shards):
    plain, masked = batches_of(shards)
    for k in range(8):
        before, after = plain.batch(k), masked.batch(k)
        is_first_BT = (before["positions_BT"] == 0) & (before["documents_BT"] >= 0)
        assert (after["ids_BT"][is_first_BT] == OPENING).all() and is_first_BT[:, 0].all()
        assert (before["ids_BT"][is_first_BT] != OPENING).any()  # pieces of long documents begin with another token


def test_masks_are_a_function_of_seed_batch_and_row_alone(shards):
    _, masked = batches_of(shards)
    _, again = batches_of(shards)
    again.batch(7)
    whole = masked.batch(3)
    for name, tensor in again.batch(3).items():
        assert torch.equal(tensor, whole[name])
    for n_ranks in (2, 3, 8):
        parts = [again.batch(3, rank, n_ranks) for rank in range(n_ranks)]
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), (n_ranks, name)


def test_masks_differ_between_epochs_seeds_and_rows(shards):
    plain, masked = batches_of(shards, rows=1)
    n_rows, (_, other) = plain.rows_per_epoch, batches_of(shards, rows=1, seed=2)
    row = plain.rows_of_batches(0, 1)[0]
    later = next(k for k in range(n_rows, 2 * n_rows) if plain.rows_of_batches(k, k + 1)[0] == row)
    first, second = masked.batch(0), masked.batch(later)
    assert torch.equal(plain.batch(0)["ids_BT"], plain.batch(later)["ids_BT"])
    assert not torch.equal(first["supervised_BP"], second["supervised_BP"])
    assert not torch.equal(first["supervised_BP"], other.batch(0)["supervised_BP"])
    together = batches_of(shards, rows=8)[1].batch(0)["supervised_BP"]
    assert len({tuple(row) for row in together.tolist()}) == 8


def test_hidden_positions_of_words_are_whole_words():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        begins_BT = torch.rand(4, 40, generator=generator) < 0.5
        begins_BT[:, 0] = True
        words_BT = begins_BT.cumsum(1) - 1
        may_BT = words_BT % 5 != 0
        may_BT[3] = False  # an empty row
        hidden_BP = hidden_positions(
            may_BT, torch.rand(4, 40, generator=generator), 0.15, torch.rand(4, generator=generator), words_BT
        )
        for row, positions in enumerate(hidden_BP.tolist()):
            positions = [p for p in positions if p >= 0]
            n_able = int(may_BT[row].sum())
            assert len(positions) <= max(1, int(0.15 * n_able) + 1) and bool(positions) == (row < 3)
            assert all(may_BT[row, p] for p in positions) and positions == sorted(positions)
            of_words = {int(words_BT[row, p]) for p in positions}
            whole = [p for p in range(40) if int(words_BT[row, p]) in of_words]
            assert positions == whole or len(of_words) == 1  # a single word may be longer than the share


def test_whole_words_follow_the_tokenizer(corpus):
    tokenizer = load_tokenizer(corpus / "tokenizer")
    ids = [tokenizer.end_of_text, *tokenizer.encode("kalomi turesha\nbeldor fingra  hup")]
    vocabulary = mask_vocabulary(corpus / "shards", tokenizer.vocab_size + 1, corpus / "tokenizer", knows_words=True)
    begins_V, ends_V = word_tables(tokenizer, tokenizer.vocab_size + 1)
    assert vocabulary.begins_word_V is not None and torch.equal(vocabulary.begins_word_V, begins_V)
    assert vocabulary.mask_id == tokenizer.vocab_size
    words = [""]
    for before, token in itertools.pairwise(ids):
        if begins_V[token] or ends_V[before] or before == tokenizer.end_of_text:
            words.append("")
        words[-1] += tokenizer.decode([token])
    assert [word.strip() for word in words if word.strip()] == ["kalomi", "turesha", "beldor", "fingra", "hup"]


def test_mask_vocabulary_without_a_mask_token_is_refused(corpus):
    n_tokens = load_tokenizer(corpus / "tokenizer").vocab_size
    for vocab_size in (n_tokens, n_tokens + 2):
        with pytest.raises(ValueError, match=f"expected {n_tokens + 1}"):
            mask_vocabulary(corpus / "shards", vocab_size)
    with pytest.raises(ValueError, match="needs the tokenizer"):
        mask_vocabulary(corpus / "shards", n_tokens + 1, knows_words=True)
