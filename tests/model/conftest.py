"""Shared by the tests of the decoder and its parts: small configs over all switches."""

import pytest
from hypothesis import strategies as st

from model.config import DecoderConfig, RopeScaling

SCALINGS = (
    None,
    RopeScaling(kind="linear", factor=4.0),
    RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=16, high_freq_factor=3.0),
)


@st.composite
def _decoder_configs(draw: st.DrawFn) -> DecoderConfig:
    positions = draw(st.sampled_from(["rotary", "learned"]))
    n_kv_heads = draw(st.sampled_from([1, 2, 4]))
    sliding_layers = draw(st.sampled_from([(), (0,), (1,), (0, 1)]))
    return DecoderConfig(
        vocab_size=31,
        n_layers=2,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        d_model=24,
        d_head=draw(st.sampled_from([6, 8])),  # equal to d_model / n_heads, and not
        d_ff=20,
        max_seq_len=24,
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        positions=positions,
        rope_scaling=draw(st.sampled_from(SCALINGS)) if positions == "rotary" else None,
        qk_norm=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        mlp=draw(st.sampled_from(["swiglu", "gelu_tanh", "relu2"])),
        mlp_bias=draw(st.booleans()),
        sliding_window=draw(st.integers(1, 12)) if sliding_layers else None,
        sliding_layers=sliding_layers,
        tie_embeddings=draw(st.booleans()),
    )


@pytest.fixture(scope="session")
def decoder_configs() -> st.SearchStrategy[DecoderConfig]:
    """Two layers, every switch in every position; for `data.draw`."""
    return _decoder_configs()
