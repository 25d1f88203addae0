"""The decoder's laws: causality, cache, masks, length, initial weights."""

import pytest
import torch

from model.config import DecoderConfig
from model.decoder import Decoder, new_decoder
from model.sample import SampleConfig, generate, probabilities

CONFIG = DecoderConfig(
    vocab_size=61, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    return model


@pytest.fixture
def ids_BT() -> torch.Tensor:
    return torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(1))


def test_decoder_gradient_of_a_position_reaches_no_later_input(decoder, ids_BT):
    x_BTD = decoder.model.embed_tokens(ids_BT).detach().requires_grad_()
    decoder.model.embed_tokens.forward = lambda _: x_BTD  # the input of the layers, watched
    decoder(ids_BT)[:, 7].sum().backward()
    assert x_BTD.grad is not None
    reached_T = x_BTD.grad.abs().sum(dim=(0, 2))
    assert (reached_T[:8] > 0).all()
    assert (reached_T[8:] == 0).all()


def test_decoder_cached_steps_equal_full_pass(decoder, ids_BT):
    cache = decoder.new_cache(n_rows=ids_BT.size(0))
    steps = [decoder(ids_BT[:, t : t + 1], cache) for t in range(ids_BT.size(1))]
    torch.testing.assert_close(torch.cat(steps, dim=1), decoder(ids_BT), atol=1e-5, rtol=1e-5)


def test_decoder_cached_pieces_of_many_tokens_equal_full_pass(decoder, ids_BT):
    cache = decoder.new_cache(n_rows=ids_BT.size(0))
    pieces = [decoder(piece, cache) for piece in ids_BT.split([6, 1, 5, 8], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(ids_BT), atol=1e-5, rtol=1e-5)


def test_decoder_mask_of_two_documents_equals_each_alone_where_positions_agree(decoder, ids_BT):
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    torch.testing.assert_close(decoder(ids_BT, mask_BTS=causal.expand(3, 20, 20)), decoder(ids_BT))
    cut = causal.clone()
    cut[9:, :9] = False
    changed = ids_BT.clone()
    changed[:, :9] = (changed[:, :9] + 1) % 61
    masked, masked_changed = (
        decoder(ids_BT, mask_BTS=cut.expand(3, 20, 20)),
        decoder(changed, mask_BTS=cut.expand(3, 20, 20)),
    )
    assert torch.equal(masked[:, 9:], masked_changed[:, 9:])
    assert not torch.allclose(masked[:, :9], masked_changed[:, :9])


def test_decoder_longer_than_its_context_is_refused(decoder):
    with pytest.raises(ValueError, match="max_seq_len=24"):
        decoder(torch.zeros(1, 25, dtype=torch.int64))


def test_new_decoder_depends_on_its_seed_alone():
    torch.manual_seed(3)
    first = new_decoder(CONFIG, seed=5)
    torch.manual_seed(4)
    again, other = new_decoder(CONFIG, seed=5), new_decoder(CONFIG, seed=6)
    for (name, weight), same in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_new_decoder_starts_near_a_uniform_guess(tied):
    cfg = DecoderConfig(
        **{**{n: getattr(CONFIG, n) for n in DecoderConfig.__dataclass_fields__}, "tie_embeddings": tied}
    )
    logits = new_decoder(cfg, seed=0)(torch.arange(20)[None])
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert entropy > 0.99 * torch.log(torch.tensor(61.0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_cached_equals_uncached_beyond_the_context(decoder, temperature):
    cfg = SampleConfig(max_new_tokens=60, temperature=temperature, top_k=20, top_p=0.9, seed=3)
    prompt = [1, 2, 3, 4, 5]
    cached = generate(decoder, prompt, cfg, n_samples=2)
    assert cached == generate(decoder, prompt, cfg, n_samples=2, use_cache=False)
    assert [len(sample) for sample in cached] == [60, 60]


def test_generate_same_seed_repeats_and_another_differs(decoder):
    cfg = SampleConfig(max_new_tokens=20, temperature=1.0, seed=1)
    assert generate(decoder, [3], cfg) == generate(decoder, [3], cfg)
    assert generate(decoder, [3], cfg) != generate(
        decoder, [3], SampleConfig(max_new_tokens=20, temperature=1.0, seed=2)
    )


def test_generate_ends_before_the_stop_token(decoder):
    free = generate(decoder, [3], SampleConfig(max_new_tokens=20, temperature=0))[0]
    stopped = generate(decoder, [3], SampleConfig(max_new_tokens=20, temperature=0, stop_id=free[4]))[0]
    assert stopped == free[: free.index(free[4])]


def test_generate_without_a_prompt_is_refused(decoder):
    with pytest.raises(ValueError, match="no token"):
        generate(decoder, [], SampleConfig())


def test_probabilities_top_k_and_top_p_keep_the_likeliest():
    logits_BV = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))

    def cut(**settings):
        return probabilities(logits_BV, SampleConfig(**({"temperature": 1.0, "top_p": None} | settings)))[0]

    torch.testing.assert_close(cut(), torch.tensor([0.1, 0.4, 0.2, 0.3]))
    torch.testing.assert_close(cut(top_k=2), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(cut(top_p=0.5), torch.tensor([0.0, 4 / 7, 0.0, 3 / 7]))
    torch.testing.assert_close(cut(top_p=0.39), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(cut(temperature=0.5), torch.tensor([0.01, 0.16, 0.04, 0.09]) / 0.3)


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5), ("max_new_tokens", 0)]
)
def test_sample_config_out_of_range_names_the_field(setting, value):
    with pytest.raises(ValueError, match=setting):
        SampleConfig(**{setting: value})
