"""Counts by formula against the module itself, for every combination of switches."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.network.decoder import Decoder
from model.network.shape import DecoderConfig
from model.network.size import flops_per_token, n_hidden_matrix_parameters, n_parameters


def on_meta(cfg: DecoderConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(cfg)


@given(data=st.data())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_parameter_counts_equal_those_of_the_module(data, decoder_configs):
    cfg = data.draw(decoder_configs)
    weights = dict(on_meta(cfg).named_parameters())
    assert n_parameters(cfg) == sum(weight.numel() for weight in weights.values())
    hidden = [w for name, w in weights.items() if w.ndim == 2 and ".layers." in name]
    assert n_hidden_matrix_parameters(cfg) == sum(weight.numel() for weight in hidden)


@given(data=st.data(), seq_len=st.integers(2, 24))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_flops_equal_those_that_torch_counts(data, decoder_configs, seq_len):
    """torch counts products as they run, so a window, which it masks but computes, is taken off here."""
    cfg = dataclasses.replace(data.draw(decoder_configs), sliding_window=None, sliding_layers=(), n_kv_heads=4)
    module, ids_BT = on_meta(cfg), torch.zeros(1, seq_len, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(ids_BT)
    assert flops_per_token(cfg, seq_len) * seq_len == 3 * counter.get_total_flops()


def test_flops_of_a_window_count_its_keys_only():
    cfg = DecoderConfig(
        vocab_size=31, n_layers=3, n_heads=4, n_kv_heads=2, d_model=24, d_head=8, d_ff=20, max_seq_len=64
    )
    windowed = dataclasses.replace(cfg, sliding_window=16, sliding_layers=(0, 2))
    assert flops_per_token(cfg, 64) - flops_per_token(windowed, 64) == 12 * 2 * 4 * 8 * (64 - 16)
    assert flops_per_token(cfg, 10) == flops_per_token(windowed, 10)
