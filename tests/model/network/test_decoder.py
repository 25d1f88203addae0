"""The decoder's laws, over all combinations of its switches: causality, cache, padding, windows, masks, initial
weights. Parity with other implementations: tests/model/hf."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.attention import AttentionPlan
from model.network.decoder import Decoder, initialise, new_decoder
from model.network.linear import Linear
from model.network.norm import RMSNorm
from model.network.shape import DecoderConfig, switches_of
from model.network.visible import Visible

CONFIG = DecoderConfig(
    vocab_size=31, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)
GPT2 = dataclasses.replace(CONFIG, n_kv_heads=4, **switches_of("gpt2"))
TRIANGLE = torch.ones(20, 20, dtype=torch.bool).tril()
law = settings(max_examples=24, deadline=None, derandomize=True)


def random_decoder(cfg: DecoderConfig, seed: int = 0) -> Decoder:
    """Every weight away from its initial value: norms not 1, biases not 0, branches that write."""
    generator = torch.Generator().manual_seed(seed)
    model = new_decoder(cfg, seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@pytest.fixture
def decoder() -> Decoder:
    return random_decoder(CONFIG)


@pytest.fixture(scope="module")
def ids_BT() -> Tensor:
    return torch.randint(0, 31, (3, 20), generator=torch.Generator().manual_seed(1))


def test_decoder_gradient_of_a_position_reaches_no_later_input(decoder, ids_BT):
    x_BTD = decoder.trunk.embed_tokens(ids_BT).detach().requires_grad_()
    decoder.trunk.embed_tokens.forward = lambda _: x_BTD  # the input of the layers, watched
    decoder(ids_BT)[:, 7].sum().backward()
    assert x_BTD.grad is not None
    reached_T = x_BTD.grad.abs().sum(dim=(0, 2))
    assert (reached_T[:8] > 0).all()
    assert (reached_T[8:] == 0).all()


@given(data=st.data(), changed=st.integers(0, 19))
@law
def test_decoder_output_depends_on_no_later_token(data, changed, decoder_configs, ids_BT):
    model = random_decoder(data.draw(decoder_configs))
    other_BT = ids_BT.clone()
    other_BT[:, changed] = (other_BT[:, changed] + 1) % 31
    logits_BTV, other_BTV = model(ids_BT), model(other_BT)
    assert_close(other_BTV[:, :changed], logits_BTV[:, :changed])
    assert not torch.allclose(other_BTV[:, changed], logits_BTV[:, changed], atol=1e-3)


@given(data=st.data(), cuts=st.sets(st.integers(1, 19), max_size=4))
@law
def test_decoder_cached_pieces_equal_full_pass(data, cuts, decoder_configs, ids_BT):
    model = random_decoder(data.draw(decoder_configs))
    cache = model.new_cache(n_rows=3, max_len=20)
    pieces = [model(piece_BT, cache=cache) for piece_BT in ids_BT.tensor_split(sorted(cuts), dim=1)]
    assert_close(torch.cat(pieces, dim=1), model(ids_BT))


@given(data=st.data(), n_padding=st.integers(1, 7), n_read=st.integers(1, 12))
@law
def test_decoder_left_padding_changes_no_row(data, n_padding, n_read, decoder_configs, ids_BT):
    """The padded row is next to a full one; both continue from a cache."""
    model = random_decoder(data.draw(decoder_configs))
    short_T, full_T = ids_BT[0, : 20 - n_padding], ids_BT[1]
    padded_BT = torch.stack([torch.cat([torch.full((n_padding,), 7), short_T]), full_T])
    is_real_BS = torch.ones(2, 20, dtype=torch.bool)
    is_real_BS[0, :n_padding] = False
    mask_BTS = TRIANGLE & is_real_BS[:, None, :]
    positions_BT = (is_real_BS.cumsum(dim=1) - 1).clamp(min=0)
    cache = model.new_cache(n_rows=2)
    pieces = []
    for part in (slice(0, n_padding + n_read), slice(n_padding + n_read, 20)):
        visible = Visible.mask(mask_BTS[:, part, : part.stop])
        pieces.append(model(padded_BT[:, part], visible=visible, positions_BT=positions_BT[:, part], cache=cache))
    logits_BTV = torch.cat(pieces, dim=1)
    assert logits_BTV.isfinite().all()  # also of padding, which may see nothing
    assert_close(logits_BTV[0, n_padding:], model(short_T[None])[0])
    assert_close(logits_BTV[1], model(full_T[None])[0])


@given(data=st.data(), second=st.integers(1, 19))
@law
def test_decoder_documents_of_a_row_equal_rows_of_their_own(data, second, decoder_configs, ids_BT):
    model = random_decoder(data.draw(decoder_configs))
    document_T = (torch.arange(20) >= second).long()
    positions_T = torch.arange(20) - second * document_T
    visible = Visible.within(document_T.expand(3, 20))
    logits_BTV = model(ids_BT, visible=visible, positions_BT=positions_T.expand(3, 20))
    assert_close(logits_BTV[:, :second], model(ids_BT[:, :second]))
    assert_close(logits_BTV[:, second:], model(ids_BT[:, second:]))


@given(data=st.data())
@law
def test_decoder_causal_mask_and_counted_positions_equal_none(data, decoder_configs, ids_BT):
    model = random_decoder(data.draw(decoder_configs))
    positions_BT = torch.arange(20).expand(3, 20)
    visible = Visible.mask(TRIANGLE.expand(3, 20, 20))
    assert_close(model(ids_BT, visible=visible, positions_BT=positions_BT), model(ids_BT))


@given(data=st.data(), left=st.integers(0, 19), right=st.integers(0, 19))
@law
def test_decoder_both_ways_within_a_window_equals_the_mask_written_out(data, left, right, decoder_configs, ids_BT):
    """As encoders attend; layers of sliding_layers narrow both alike."""
    model = random_decoder(data.draw(decoder_configs))
    ahead_TS = torch.arange(20) - torch.arange(20)[:, None]
    mask_BTS = ((ahead_TS >= -left) & (ahead_TS <= right)).expand(3, 20, 20)
    expected_BTV = model(ids_BT, visible=Visible.mask(mask_BTS))
    assert_close(model(ids_BT, visible=Visible.all().windowed(left, right)), expected_BTV)


@given(data=st.data())
@law
def test_decoder_window_of_its_context_equals_full_attention(data, decoder_configs, ids_BT):
    cfg = dataclasses.replace(data.draw(decoder_configs), sliding_window=24, sliding_layers=(0, 1))
    unlimited = dataclasses.replace(cfg, sliding_window=None, sliding_layers=())
    assert torch.equal(random_decoder(cfg)(ids_BT), random_decoder(unlimited)(ids_BT))


@pytest.mark.parametrize("window", [1, 3, 8])
def test_decoder_window_lets_a_layer_see_so_many_tokens_its_own_included(window, ids_BT):
    cfg = dataclasses.replace(CONFIG, n_layers=1, sliding_window=window, sliding_layers=(0,))
    model = random_decoder(cfg)
    other_BT = ids_BT.clone()
    other_BT[:, 4] = (other_BT[:, 4] + 1) % 31
    moved_T = (model(ids_BT) - model(other_BT)).abs().amax(dim=(0, 2))
    assert (moved_T[4 : 4 + window] > 1e-4).all()
    assert (moved_T[:4] == 0).all() and (moved_T[4 + window :] == 0).all()


@given(data=st.data())
@law
def test_decoder_grouped_heads_equal_repeated_key_and_value_heads(data, decoder_configs, ids_BT):
    grouped = random_decoder(data.draw(decoder_configs))
    cfg = grouped.cfg
    full = Decoder(dataclasses.replace(cfg, n_kv_heads=cfg.n_heads))
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = weight.view(cfg.n_kv_heads, cfg.d_head, *weight.shape[1:])
            weights[name] = heads.repeat_interleave(cfg.n_heads // cfg.n_kv_heads, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    assert_close(grouped(ids_BT), full(ids_BT))


@given(data=st.data())
@law
def test_decoder_with_checkpointed_layers_has_the_same_gradients(data, decoder_configs, ids_BT):
    model = random_decoder(data.draw(decoder_configs))
    gradients = []
    for kept in (False, True):
        model.trunk.recompute_layers(kept)
        model.zero_grad()
        model(ids_BT).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("cfg", [CONFIG, GPT2], ids=["qwen3", "gpt2"])
def test_residual_stream_under_autocast_is_half_as_wide_and_the_loss_close(cfg, ids_BT):
    """What a GPU does, on a CPU. A weight or a table in float32 must not widen what it is multiplied with."""
    model, dtypes = random_decoder(cfg), {}
    watched = {"embed_tokens", "self_attn", "mlp", "norm", "q_norm", "k_norm", "input_layernorm"}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in watched or name.rpartition(".")[2].isdigit():
            module.register_forward_hook(lambda _, inputs, out, name=name: dtypes.update({name: out.dtype}))
    losses = {}
    for is_half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            logits_BTV = model(ids_BT)
        losses[is_half] = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())
        assert dtypes.pop("model.embed_tokens") == torch.float32
        assert set(dtypes.values()) == {torch.bfloat16 if is_half else torch.float32}, dtypes
    torch.testing.assert_close(losses[True], losses[False], atol=0, rtol=0.01)
    assert losses[True] != losses[False]


def test_decoder_longer_than_its_context_is_refused(decoder):
    with pytest.raises(ValueError, match="25 tokens exceed max_seq_len=24"):
        decoder(torch.zeros(1, 25, dtype=torch.int64))


def test_decoder_beyond_its_cache_is_refused(decoder, ids_BT):
    cache = decoder.new_cache(n_rows=3, max_len=8)
    decoder(ids_BT[:, :8], cache=cache)
    with pytest.raises(ValueError, match=r"3 rows of 9 tokens .* 3 rows and room for 8 tokens"):
        decoder(ids_BT[:, 8:9], cache=cache)
    cache.clear()
    with pytest.raises(ValueError, match=r"2 rows of 8 tokens .* 3 rows"):
        decoder(ids_BT[:2, :8], cache=cache)


def test_decoder_mask_or_positions_of_another_shape_are_refused(decoder, ids_BT):
    with pytest.raises(ValueError, match=r"mask_BTS has shape \(20, 20\), expected \(3, 20, 20\)"):
        decoder(ids_BT, visible=Visible.mask(TRIANGLE))
    with pytest.raises(ValueError, match=r"positions_BT has shape \(20,\), expected \(3, 20\)"):
        decoder(ids_BT, positions_BT=torch.arange(20))


def test_new_decoder_depends_on_its_seed_alone():
    torch.manual_seed(3)
    first = new_decoder(CONFIG, seed=5)
    torch.manual_seed(4)
    again, other = new_decoder(CONFIG, seed=5), new_decoder(CONFIG, seed=6)
    for (name, weight), same in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert not torch.equal(first.trunk.embed_tokens.weight, other.trunk.embed_tokens.weight)


def test_new_decoder_draws_its_weights_in_the_order_of_its_names():
    """The stream of the generator is part of what a seed means: a new switch must not shift it for older configs."""
    model, generator = new_decoder(CONFIG, seed=5), torch.Generator().manual_seed(5)
    drawn = {"embed_tokens": 0.02, "q_proj": 32**-0.5, "k_proj": 32**-0.5, "v_proj": 32**-0.5}
    drawn |= {"gate_proj": 32**-0.5, "up_proj": 32**-0.5}
    for name, weight in model.named_parameters():
        if std := drawn.get(name.split(".")[-2]):
            assert torch.equal(weight, torch.empty(weight.shape).normal_(std=std, generator=generator)), name
        else:
            assert torch.equal(weight, torch.full_like(weight, 1.0 if "norm" in name else 0.0)), name


def test_initial_weights_follow_the_kind_of_a_module_and_not_its_name():
    """An encoder names its modules otherwise; by endings of Llama's names its output projections would be random."""
    named_otherwise = nn.ModuleDict(
        {
            "word_embeddings": nn.Embedding(50, 16),
            "query": Linear(16, 16),
            "output_dense": Linear(16, 16, starts_at_zero=True),
            "scale": RMSNorm(16, 1e-6),
        }
    )
    initialise(named_otherwise, seed=0)
    spread = {name: weight.std().item() for name, weight in named_otherwise.named_parameters()}
    assert spread["word_embeddings.weight"] == pytest.approx(0.02, rel=0.1)
    assert spread["query.weight"] == pytest.approx(0.25, rel=0.2)
    assert named_otherwise["query"].bias.count_nonzero() == 0
    assert named_otherwise["output_dense"].weight.count_nonzero() == 0
    assert torch.equal(named_otherwise["scale"].weight, torch.ones(16))
    with pytest.raises(TypeError, match="no initial values for weight of a Conv1d"):
        initialise(nn.Conv1d(2, 2, 1), seed=0)


@given(data=st.data())
@law
def test_new_decoder_starts_near_a_uniform_guess_with_layers_that_write_nothing(data, decoder_configs, ids_BT):
    model = new_decoder(data.draw(decoder_configs), seed=0)
    entropy = torch.distributions.Categorical(logits=model(ids_BT)).entropy().mean()
    assert entropy > 0.99 * torch.log(torch.tensor(31.0))
    x_BTD = torch.randn(2, 20, 24)
    if model.cfg.norm_position == "post":
        return  # its layers end in a norm
    tables = (model.trunk.cos_S1K[:20], model.trunk.sin_S1K[:20]) if model.cfg.positions == "rotary" else None
    assert torch.equal(model.trunk.layers[0](x_BTD, tables, AttentionPlan("causal"), None), x_BTD)
