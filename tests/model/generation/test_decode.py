"""A step of one token equals the decoder's own pass, for every switch of the config."""

import dataclasses

import pytest
import torch

from model.generation.decode import DecodeStep
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig, RopeScaling
from model.network.visible import Visible

QWEN3 = DecoderConfig(
    vocab_size=61, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=24
)
LLAMA = dataclasses.replace(QWEN3, qk_norm=False, rope_scaling=RopeScaling(kind="linear", factor=2.0))
GPT2 = dataclasses.replace(
    LLAMA,
    rope_scaling=None,
    n_kv_heads=4,
    norm="layernorm",
    positions="learned",
    qkv_bias=True,
    output_bias=True,
    mlp="gelu_tanh",
    mlp_bias=True,
    tie_embeddings=True,
)
ARCEE = dataclasses.replace(LLAMA, mlp="relu2", mlp_bias=True)
WINDOW = dataclasses.replace(QWEN3, sliding_window=5, sliding_layers=(1,))
LARGE = dataclasses.replace(QWEN3, d_model=256, d_ff=1024, vocab_size=2048)  # matrices that oneDNN may lay out
CONFIGS = {"qwen3": QWEN3, "llama": LLAMA, "gpt2": GPT2, "arcee": ARCEE, "window": WINDOW, "large": LARGE}


def decoder_of(cfg: DecoderConfig) -> Decoder:
    """Biases are not 0, norms not 1, and logits of the order of 1."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(cfg).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 2 * weight.size(1) ** -0.5 if weight.ndim == 2 else 0.3
            is_scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + is_scale)
    return model


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_decode_step_equals_the_decoder(cfg, n_rows):
    model = decoder_of(cfg)
    ids_BT = torch.randint(0, cfg.vocab_size, (n_rows, 16), generator=torch.Generator().manual_seed(1))
    cache, step = model.new_cache(n_rows), DecodeStep(model)
    model(ids_BT[:, :9], cache=cache)
    logits_BTV = torch.stack([step(ids_BT[:, t], cache) for t in range(9, 16)], dim=1)
    torch.testing.assert_close(logits_BTV, model(ids_BT)[:, 9:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_decode_step_of_padded_rows_equals_the_decoder(cfg):
    """Masks and positions of the second row as behind four tokens of padding."""
    model = decoder_of(cfg)
    ids_BT = torch.randint(0, cfg.vocab_size, (2, 12), generator=torch.Generator().manual_seed(2))
    real_BS = torch.arange(12) >= torch.tensor([[0], [4]])
    positions_BT = (torch.arange(12) - torch.tensor([[0], [4]])).clamp(min=0)
    mask_BTS = real_BS[:, None, :].expand(2, 12, 12).tril() | torch.eye(12, dtype=torch.bool)
    cache = model.new_cache(2)
    prompt = Visible.mask(mask_BTS[:, :11, :11])
    model(ids_BT[:, :11], cache=cache, visible=prompt, positions_BT=positions_BT[:, :11])
    logits_BV = DecodeStep(model)(ids_BT[:, 11], cache, mask_BTS[:, 11], positions_BT[:, 11])
    expected_BTV = model(ids_BT, visible=Visible.mask(mask_BTS), positions_BT=positions_BT)
    torch.testing.assert_close(logits_BV, expected_BTV[:, 11], atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_decode_step_in_bfloat16_rounds_as_the_decoder():
    model = decoder_of(QWEN3).to(torch.bfloat16)
    ids_BT = torch.arange(20).view(2, 10)
    cache = model.new_cache(2)
    model(ids_BT[:, :9], cache=cache)
    logits_BV = DecodeStep(model)(ids_BT[:, 9], cache)
    assert logits_BV.dtype is torch.bfloat16
    torch.testing.assert_close(logits_BV, model(ids_BT)[:, 9], atol=0.25, rtol=0.05)


def test_decode_step_keeps_the_weights_of_its_first_call():
    model = decoder_of(QWEN3)
    step, ids_B = DecodeStep(model), torch.tensor([1])
    first = step(ids_B, model.new_cache(1))
    with torch.no_grad():
        model.model.layers.get_parameter("0.mlp.down_proj.weight").mul_(3)
    assert torch.equal(step(ids_B, model.new_cache(1)), first)
    assert not torch.equal(DecodeStep(model)(ids_B, model.new_cache(1)), first)
