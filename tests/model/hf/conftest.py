"""Tiny decoders of every family, with weights under which a wrong rotation, norm or bias cannot hide."""

import dataclasses

import pytest
import torch

from model.network.shape import DecoderConfig, RopeScaling

SIZES = {"vocab_size": 97, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_model": 24, "d_head": 10, "d_ff": 40}
QWEN3 = DecoderConfig(**SIZES, max_seq_len=64, rope_theta=500.0)
LLAMA = dataclasses.replace(QWEN3, qk_norm=False)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=16)
GPT2 = dataclasses.replace(
    LLAMA,
    n_kv_heads=4,
    d_head=6,
    norm="layernorm",
    norm_eps=1e-5,
    positions="learned",
    rope_theta=10_000.0,  # learned positions have none, so that the default comes back
    qkv_bias=True,
    output_bias=True,
    mlp="gelu_tanh",
    mlp_bias=True,
    tie_embeddings=True,
)
DECODERS = {
    "qwen3": QWEN3,
    "qwen3-tied": dataclasses.replace(QWEN3, tie_embeddings=True),
    "qwen3-biases": dataclasses.replace(QWEN3, qkv_bias=True, output_bias=True),
    "qwen3-window": dataclasses.replace(QWEN3, sliding_window=9, sliding_layers=(1, 3)),
    "qwen3-linear": dataclasses.replace(QWEN3, rope_scaling=RopeScaling(kind="linear", factor=4.0)),
    "llama": LLAMA,
    "llama-biases": dataclasses.replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True),
    "llama-scaled": dataclasses.replace(LLAMA, rope_scaling=LLAMA3, tie_embeddings=True),
    "gpt2": GPT2,
    "gpt2-untied": dataclasses.replace(GPT2, tie_embeddings=False),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
    "qwen2-window": dataclasses.replace(LLAMA, qkv_bias=True, sliding_window=9, sliding_layers=(2, 3)),
    "mistral": dataclasses.replace(LLAMA, sliding_window=9, sliding_layers=(0, 1, 2, 3)),
    "mistral-narrow": dataclasses.replace(LLAMA, d_model=26),  # Llama wants a multiple of n_heads
    "arcee": dataclasses.replace(LLAMA, mlp="relu2"),
    "arcee-biases": dataclasses.replace(LLAMA, mlp="relu2", qkv_bias=True, output_bias=True, mlp_bias=True),
}


@pytest.fixture(params=DECODERS)
def cfg(request) -> DecoderConfig:
    """Each of them, one after the other."""
    return DECODERS[request.param]


@pytest.fixture(scope="session")
def decoders() -> dict[str, DecoderConfig]:
    return DECODERS


@pytest.fixture(scope="session")
def large_weights():
    """Weights far from their start: with small ones a wrong rotation or norm hides below the tolerance."""

    def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
                if weight.ndim == 1 and name.endswith("weight"):  # of a norm
                    weight.add_(1.0)
        return model.eval()

    return fill
