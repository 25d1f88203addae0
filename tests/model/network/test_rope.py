"""Rotary tables and turning against transformers, and the law that they exist for."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from model.network.rope import frequencies, rotary_tables, rotate, scaled
from model.network.shape import DecoderShape, RopeScaling

SHAPE = DecoderShape(
    n_layers=1, n_heads=2, n_kv_heads=2, d_model=32, d_head=16, d_ff=8, max_seq_len=300, rope_theta=500.0
)
SCALINGS = {
    "default": (None, {}),
    "linear": (RopeScaling(kind="linear", factor=4.0), {"factor": 4.0}),
    "llama3": (
        RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=64),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


def theirs(kind: str) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": kind, "rope_theta": 500.0, **SCALINGS[kind][1]}
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=32,
            num_attention_heads=2,
            head_dim=16,
            max_position_embeddings=300,
            rope_parameters=parameters,
        )
    )


def our_tables(scaling: RopeScaling | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(frequencies(SHAPE.d_head, SHAPE.rope_theta, scaling), SHAPE.max_seq_len)


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotated_heads_equal_those_of_transformers(kind):
    torch.manual_seed(0)
    positions_BT = torch.tensor([[0, 1, 2, 299, 150], [7, 7, 63, 64, 65]])
    q_BTHK, k_BTHK = torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2, 16)
    cos_BTK, sin_BTK = theirs(kind)(q_BTHK, positions_BT)
    expected = apply_rotary_pos_emb(q_BTHK, k_BTHK, cos_BTK, sin_BTK, unsqueeze_dim=2)
    tables = [table[positions_BT] for table in our_tables(SCALINGS[kind][0])]
    # float32 angles of position 299 are known to 3e-5 only
    for ours, their in zip((rotate(q_BTHK, *tables), rotate(k_BTHK, *tables)), expected, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-4, rtol=0)


def test_llama3_scaling_keeps_short_waves_blends_and_divides_long_ones():
    turns = torch.tensor([4.1, 4.0, 2.5, 1.0, 0.9])  # within the old context of 64 tokens
    frequency = turns * 2 * math.pi / 64
    expected = torch.tensor([1.0, 1.0, (1 + 1 / 8) / 2, 1 / 8, 1 / 8])
    torch.testing.assert_close(scaled(frequency, SCALINGS["llama3"][0]) / frequency, expected)


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotated_scores_depend_on_the_distance_alone(kind):
    torch.manual_seed(1)
    cos, sin = our_tables(SCALINGS[kind][0])
    q_K, k_K = torch.randn(16), torch.randn(16)

    def score(query: int, key: int) -> torch.Tensor:
        q, k = (rotate(x_K.view(1, 1, 1, 16), cos[i], sin[i]) for x_K, i in ((q_K, query), (k_K, key)))
        return (q * k).sum()

    torch.testing.assert_close(score(9, 4), score(205, 200), atol=1e-3, rtol=0)
    assert not torch.allclose(score(9, 4), score(9, 5), atol=1e-2)


def test_rotated_heads_of_half_width_are_rounded_once_at_the_end():
    torch.manual_seed(0)
    x_BTHK = torch.randn(2, 300, 2, 16).bfloat16()
    tables = our_tables()
    expected = rotate(x_BTHK.float(), *tables).bfloat16()
    assert torch.equal(rotate(x_BTHK, *tables), expected)
