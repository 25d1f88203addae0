"""Laws of encoders: what padding, rows and recomputed layers must not change. Parity with transformers:
tests/model/hf/test_encoder_parity.py."""

import dataclasses

import pytest
import torch

from model.network.encoder import Encoder, MaskedLM, new_masked_lm, weightless_masked_lm
from model.network.shape import EncoderConfig, switches_of
from model.network.size import n_parameters
from model.network.visible import Visible

SIZES = {"vocab_size": 61, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "d_model": 32, "d_head": 8, "d_ff": 48}
BERT = EncoderConfig(**SIZES, **switches_of("bert"), max_seq_len=40, tie_embeddings=True)
ROBERTA = EncoderConfig(**SIZES, **switches_of("roberta"), max_seq_len=40, tie_embeddings=True)
MODERNBERT = EncoderConfig(
    **SIZES,
    **switches_of("modernbert"),
    max_seq_len=40,
    tie_embeddings=False,
    sliding_window=6,
    sliding_layers=(1, 2),
)
ENCODERS = {"bert": BERT, "roberta": ROBERTA, "modernbert": MODERNBERT}


@pytest.fixture(params=ENCODERS)
def cfg(request) -> EncoderConfig:
    return ENCODERS[request.param]


def with_noise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights at which no branch is zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
    return model.eval()


def random_ids(n_rows: int, n_tokens: int) -> torch.Tensor:
    return torch.randint(0, 61, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_padding_of_any_length_and_content_changes_no_real_token(cfg):
    model, ids_BT, lengths_B = with_noise(MaskedLM(cfg)), random_ids(3, 20), torch.tensor([20, 7, 1])
    padded_BTV = model(ids_BT, visible=Visible.padded(lengths_B, 20))
    for row, length in enumerate(lengths_B.tolist()):
        alone_BTV = model(ids_BT[row : row + 1, :length])
        torch.testing.assert_close(padded_BTV[row, :length], alone_BTV[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_token_depends_on_tokens_before_and_after_it(cfg):
    model, ids_BT = with_noise(MaskedLM(cfg)), random_ids(1, 12)
    changed_BT = ids_BT.clone()
    changed_BT[0, 6] = (changed_BT[0, 6] + 1) % 61
    moved_T = (model(ids_BT) - model(changed_BT)).abs().amax(dim=(0, 2))
    assert (moved_T > 1e-4).all()


@torch.no_grad()
def test_positions_and_types_are_read(cfg):
    model, ids_BT = with_noise(Encoder(cfg)), random_ids(2, 9)
    x_BTD = model(ids_BT)
    positions_BT = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(model(ids_BT, positions_BT=positions_BT), x_BTD)
    assert (model(ids_BT, positions_BT=positions_BT * 2) - x_BTD).abs().max() > 1e-3
    if cfg.n_token_types > 1:
        torch.testing.assert_close(model(ids_BT, types_BT=torch.zeros_like(ids_BT)), x_BTD)
        assert (model(ids_BT, types_BT=torch.ones_like(ids_BT)) - x_BTD).abs().max() > 1e-3


def test_layers_that_are_computed_again_give_the_same_gradients(cfg):
    model, ids_BT = with_noise(MaskedLM(cfg)), random_ids(2, 10)
    gradients = []
    for is_on in (False, True):
        model.trunk.recompute_layers(is_on)
        model.zero_grad()
        model(ids_BT).logsumexp(dim=-1).sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def test_masked_lm_has_the_number_of_weights_that_the_formula_gives(cfg):
    for one in (cfg, dataclasses.replace(cfg, tie_embeddings=not cfg.tie_embeddings)):
        assert n_parameters(one) == sum(weight.numel() for weight in MaskedLM(one).parameters())


def test_new_masked_lm_depends_on_its_seed_alone(cfg):
    torch.manual_seed(0)
    first = new_masked_lm(cfg, seed=5).state_dict()
    torch.manual_seed(1)
    again, other = new_masked_lm(cfg, seed=5).state_dict(), new_masked_lm(cfg, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert all(weight.is_meta for weight in weightless_masked_lm(cfg).parameters())


def test_rows_and_shapes_that_do_not_fit_are_refused():
    model = Encoder(BERT)
    with pytest.raises(ValueError, match="41 tokens exceed max_seq_len=40; cut or split the text"):
        model(random_ids(1, 41))
    with pytest.raises(ValueError, match=r"types_BT has shape \(1, 3\), expected \(1, 4\)"):
        model(random_ids(1, 4), types_BT=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="has no pooler"):
        model.pooled(model(random_ids(1, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "last"}, "pooling='last' must be one of first, mean"),
        ({"position_offset": -1}, "position_offset=-1 must be at least 0"),
        ({"positions": "rotary", "position_offset": 2}, "position_offset=2 is for positions='learned'"),
        ({"local_rope_theta": 0.0}, "local_rope_theta=0.0 must be a finite number above 0"),
    ],
)
def test_config_that_breaks_a_rule_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **changes)
