"""The three feed-forward layers against those of transformers' models."""

import dataclasses

import pytest
import torch
from transformers import ArceeConfig, GPT2Config, Qwen3Config
from transformers.models.arcee.modeling_arcee import ArceeMLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from model.network.feed_forward import FeedForward
from model.network.shape import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=5, n_layers=1, n_heads=2, n_kv_heads=2, d_model=16, d_head=8, d_ff=40, max_seq_len=8
)


def ours(kind: str, *, has_bias: bool) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(dataclasses.replace(CONFIG, mlp=kind, mlp_bias=has_bias))


@pytest.fixture
def x_BTD() -> torch.Tensor:
    return torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)) * 3


def test_swiglu_equals_that_of_qwen3(x_BTD):
    theirs = Qwen3MLP(Qwen3Config(hidden_size=16, intermediate_size=40))
    mlp = ours("swiglu", has_bias=False)
    theirs.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(mlp(x_BTD), theirs(x_BTD))


@pytest.mark.parametrize("has_bias", [False, True])
def test_squared_relu_equals_that_of_arcee(x_BTD, has_bias):
    theirs = ArceeMLP(ArceeConfig(hidden_size=16, num_attention_heads=2, intermediate_size=40, mlp_bias=has_bias))
    mlp = ours("relu2", has_bias=has_bias)
    theirs.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(mlp(x_BTD), theirs(x_BTD))


def test_gelu_equals_that_of_gpt2(x_BTD):
    theirs = GPT2MLP(40, GPT2Config(n_embd=16)).eval()
    mlp = ours("gelu_tanh", has_bias=True)
    theirs.load_state_dict(
        {
            "c_fc.weight": mlp.up_proj.weight.T,  # GPT-2 stores its matrices transposed
            "c_fc.bias": mlp.up_proj.bias,
            "c_proj.weight": mlp.down_proj.weight.T,
            "c_proj.bias": mlp.down_proj.bias,
        }
    )
    torch.testing.assert_close(mlp(x_BTD), theirs(x_BTD))


def test_swiglu_with_biases_adds_them_where_its_formula_says(x_BTD):
    mlp = ours("swiglu", has_bias=True)
    gate_BTF = x_BTD @ mlp.gate_proj.weight.T + mlp.gate_proj.bias
    up_BTF = x_BTD @ mlp.up_proj.weight.T + mlp.up_proj.bias
    expected = (gate_BTF / (1 + (-gate_BTF).exp()) * up_BTF) @ mlp.down_proj.weight.T + mlp.down_proj.bias
    torch.testing.assert_close(mlp(x_BTD), expected)
