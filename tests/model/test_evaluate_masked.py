"""Masked evaluation against a loop that masks tokens one by one, and its independence of how texts are batched."""

import math

import numpy as np
import pytest
import torch

from model.cli import main
from model.data.masking import MaskVocabulary
from model.data.token_shards import read_token_shard, write_token_shard
from model.evaluate_masked import groups_of, masked_document_losses, pieces_of_documents
from model.network.encoder import new_masked_lm
from model.network.shape import EncoderConfig, switches_of
from model.training.draws import row_seeds

OPENING, MASK, N_VOCAB = 0, 30, 31
VOCABULARY = MaskVocabulary(mask_id=MASK, opening=OPENING, special=(OPENING,), vocab_size=N_VOCAB)


@pytest.fixture
def model():
    switches = {**switches_of("bert"), "tie_embeddings": True}
    cfg = EncoderConfig(
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        d_model=16,
        d_head=8,
        d_ff=32,
        max_seq_len=9,
        vocab_size=N_VOCAB,
        **switches,
    )
    model = new_masked_lm(cfg, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=generator)
    return model.eval()


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    texts = [np.concatenate([[OPENING], rng.integers(1, MASK, n)]) for n in (3, 20, 0, 8, 1, 9)]
    write_token_shard(tmp_path / "a.arrow", list("abcdef"), [len(text) for text in texts], texts, N_VOCAB)
    return [read_token_shard(tmp_path / "a.arrow")]


def test_with_a_group_for_each_token_it_is_the_pseudo_log_likelihood(model, shards):
    found = masked_document_losses(model, shards, VOCABULARY, n_groups=100)
    (shard,) = shards
    for i in range(6):
        text = shard.tokens[shard.offsets[i] + 1 : shard.offsets[i + 1]].tolist()
        nats, n_right = 0.0, 0
        for first in range(0, len(text), 8):
            piece = [OPENING, *text[first : first + 8]]
            for place in range(1, len(piece)):
                ids = torch.tensor([[*piece[:place], MASK, *piece[place + 1 :]]])
                logits = model(ids)[0, place].detach()
                nats -= float(logits.log_softmax(0)[piece[place]])
                n_right += int(logits.argmax()) == piece[place]
        assert found.nats[i] == pytest.approx(nats, abs=1e-4) and found.n_right[i] == n_right
        assert found.n_tokens[i] == len(text)


def test_losses_do_not_depend_on_the_tokens_that_pass_together(model, shards):
    one, other = (masked_document_losses(model, shards, VOCABULARY, tokens_per_pass=n) for n in (9, 1000))
    np.testing.assert_allclose(one.nats, other.nats, atol=1e-5)
    assert one.document_ids == other.document_ids == list("abcdef")
    assert one.perplexity == pytest.approx(math.exp(one.nats.sum() / 41))


def test_groups_divide_the_tokens_of_each_row_evenly():
    lengths_B = torch.tensor([1, 2, 9, 30])
    groups_BT = groups_of(row_seeds(0, 0, range(4)), lengths_B, 30, 7)
    for groups_T, length in zip(groups_BT.tolist(), lengths_B.tolist(), strict=True):
        assert groups_T[0] == -1 and all(group == -1 for group in groups_T[length:])
        counts = np.bincount(groups_T[1:length], minlength=7)
        assert counts.sum() == length - 1 and counts.max() - counts.min() <= 1


def test_pieces_have_every_token_but_the_first_once():
    lengths = np.array([0, 1, 2, 9, 10, 18, 19])
    document, start, end = pieces_of_documents(lengths, 10)
    assert (end - start).max() <= 9
    for number, n in enumerate(lengths):
        tokens = [token for d, s, e in zip(document, start, end, strict=True) if d == number for token in range(s, e)]
        assert tokens == list(range(1, n))


def test_evaluate_of_an_encoder_prints_accuracy_and_perplexity(trained_encoder, corpus, capsys):
    assert main(["evaluate", str(trained_encoder), str(corpus / "shards")]) == 0
    out = capsys.readouterr().out
    accuracy, perplexity = (float(line.split()[2]) for line in out.splitlines()[1:])
    assert 0 <= accuracy <= 1 and 1 < perplexity < 301
