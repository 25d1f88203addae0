"""The decoder's laws: causality, cache, masks, length, initial weights."""

import pytest
import torch

from model.config import DecoderConfig
from model.decoder import Decoder, new_decoder

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
    steps = [decoder(ids_BT[:, t : t + 1], cache=cache) for t in range(ids_BT.size(1))]
    torch.testing.assert_close(torch.cat(steps, dim=1), decoder(ids_BT), atol=1e-5, rtol=1e-5)


def test_decoder_cached_pieces_of_many_tokens_equal_full_pass(decoder, ids_BT):
    cache = decoder.new_cache(n_rows=ids_BT.size(0))
    pieces = [decoder(piece, cache=cache) for piece in ids_BT.split([6, 1, 5, 8], dim=1)]
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
