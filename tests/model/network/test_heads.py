"""Heads of tasks: what a row gets depends on that row alone, over either trunk."""

import dataclasses
from functools import partial

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.encoder import Encoder, new_masked_lm
from model.network.heads import (
    SequenceClassifier,
    SpanClassifier,
    TokenClassifier,
    classifier_from,
    new_classifier,
    new_span_classifier,
    new_token_classifier,
    span_classifier_from,
    token_classifier_from,
)
from model.network.shape import DecoderConfig, EncoderConfig, switches_of

SIZES = {"vocab_size": 31, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 24}
DECODER = DecoderConfig(**SIZES, n_kv_heads=1)
ENCODERS = {
    name: EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of(name))
    for name in ("bert", "roberta", "modernbert")
}
TRUNKS = {"decoder": DECODER, **ENCODERS, "mean": dataclasses.replace(ENCODERS["modernbert"], pooling="mean")}
HEADS = {
    "text": partial(SequenceClassifier, n_classes=3),
    "token": partial(TokenClassifier, n_classes=5),
    "span": SpanClassifier,
}


@pytest.fixture(params=[(trunk, head) for trunk in TRUNKS for head in HEADS], ids="-".join)
def model(request):
    trunk, head = request.param
    model = HEADS[head](TRUNKS[trunk])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.empty(weight.shape).normal_(std=0.3, generator=generator))
    return model.eval()


def rows(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 31, (n,), generator=generator) for n in (5, 1, 24, 9, 9)]


def batch_of(texts, width: int, filler: int = 7):
    ids = torch.full((len(texts), width), filler)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids, torch.tensor([len(text) for text in texts])


@torch.no_grad()
def test_logits_of_a_row_do_not_depend_on_padding_or_neighbours(model):
    texts = rows()
    alone = [model(text[None], torch.tensor([len(text)]))[0] for text in texts]
    for filler in (0, 7, 30):
        together = model(*batch_of(texts, 24, filler))
        for row, text in enumerate(texts):
            found = together[row] if together.ndim == 2 else together[row, : len(text)]
            torch.testing.assert_close(found, alone[row], atol=1e-5, rtol=1e-5)
    order = [3, 0, 4, 2, 1]
    permuted = model(*batch_of([texts[i] for i in order], 24))
    torch.testing.assert_close(permuted, model(*batch_of(texts, 24))[order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_types_of_tokens_reach_a_trunk_that_knows_them_and_no_other(head):
    for name, cfg in TRUNKS.items():
        torch.manual_seed(0)
        model = HEADS[head](cfg).eval()
        torch.nn.init.normal_(model.score.weight)
        ids, lengths = batch_of(rows(), 24)
        types = (torch.arange(24) > 3).long().expand(5, 24)
        is_read = not torch.allclose(model(ids, lengths, types), model(ids, lengths))
        assert is_read == (name == "bert")
        assert torch.equal(model(ids, lengths, torch.zeros_like(types)), model(ids, lengths))


@torch.no_grad()
def test_a_decoders_tokens_see_only_what_precedes_them():
    model = new_token_classifier(DECODER, 3, seed=0)
    torch.nn.init.normal_(model.score.weight)
    (text,) = rows()[2:3]
    changed = text.clone()
    changed[10] = (changed[10] + 1) % 31
    before, after = (model(one[None], torch.tensor([24]))[0] for one in (text, changed))
    assert torch.equal(before[:10], after[:10]) and not torch.equal(before[10:], after[10:])


@pytest.mark.parametrize("trunk", TRUNKS)
def test_new_models_depend_on_the_seed_alone_and_texts_have_equal_chances(trunk):
    """A head of tokens that started at zero moved the whole trunk to the most frequent tag, and learned no other."""
    cfg, (ids, lengths) = TRUNKS[trunk], batch_of(rows(), 24)
    makers = (
        lambda seed: new_classifier(cfg, 3, seed),
        lambda seed: new_token_classifier(cfg, 3, seed),
        lambda seed: new_span_classifier(cfg, seed),
    )
    for make in makers:
        torch.manual_seed(1)
        one = make(5)
        torch.manual_seed(2)
        same, other = make(5), make(6)
        assert one(ids, lengths).any() == (type(one) is not SequenceClassifier)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        embeddings = [model.model.embed_tokens.weight for model in (one, other)]
        assert not torch.equal(*embeddings)


def test_a_head_on_a_base_has_its_trunk_and_the_hidden_layer_of_its_kind():
    bert = Encoder(dataclasses.replace(ENCODERS["bert"], has_pooler=True))
    modern = new_masked_lm(ENCODERS["modernbert"], seed=1)
    torch.nn.init.normal_(modern.head.dense.weight)
    bases = {"decoder": new_decoder(DECODER, seed=1), "bert": bert, "modernbert": modern}
    makers = {
        "text": lambda base: classifier_from(base, 3, seed=0),
        "token": lambda base: token_classifier_from(base, 3, seed=0),
        "span": lambda base: span_classifier_from(base, seed=0),
    }
    for trunk, base in bases.items():
        for head, make in makers.items():
            model = make(base)
            for name, weight in base.trunk.state_dict().items():
                assert torch.equal(model.trunk.state_dict()[name], weight)
            expected = {"bert": bert.pooler, "modernbert": modern.head.dense}.get(trunk)
            if trunk == "decoder" or (trunk == "bert" and head != "text"):
                assert model.head is None
            else:
                assert torch.equal(model.head.dense.weight, expected.weight)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="n_classes=1 must be at least 2"):
        TokenClassifier(DECODER, 1)
