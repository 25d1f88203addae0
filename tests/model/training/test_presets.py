"""The dial against a table of its values, its laws, and the sizes of the presets against the real module."""

import dataclasses
import math

import pytest
import torch

from model.network.decoder import Decoder
from model.network.size import n_hidden_matrix_parameters, n_parameters
from model.training.presets import PRESETS, Preset, d_ff_of, from_depth, from_sizes, tokens_per_step_of

VOCAB = {"demo": 4096, "small": 8192, "gpt2_124m": 50_304, "gpt2_350m": 50_304}
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_parameter_count_equals_the_module(name):
    cfg = PRESETS[name].shape.with_vocab(VOCAB[name])
    with torch.device("meta"):
        module = Decoder(cfg)
    assert n_parameters(cfg) == sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("demo", 1e6, 3e6), ("small", 28e6, 32e6), ("gpt2_124m", 122e6, 126e6), ("gpt2_350m", 340e6, 360e6)],
)
def test_preset_has_the_size_that_it_is_named_for(name, low, high):
    assert low < n_parameters(PRESETS[name].shape.with_vocab(VOCAB[name])) < high


def test_d_ff_of_gpt2_width_keeps_its_parameter_count():
    assert 3 * 768 * d_ff_of(768) == 2 * 768 * 4 * 768


@pytest.mark.parametrize(
    ("depth", "d_model", "seq_len", "tokens_per_step", "n_steps", "adamw_lr", "weight_decay"),
    [
        (2, 128, 128, 2**12, 2080, 0.008, 0.1202),
        (4, 256, 256, 2**14, 3920, 0.00566, 0.0638),
        (8, 512, 512, 2**17, 3920, 0.004, 0.0638),
        (12, 768, 1024, 2**19, 3240, 0.00327, 0.0772),
        (24, 1536, 2048, 2**20, 12960, 0.00231, 0.01929),
    ],
)
def test_from_depth_sets_the_values_of_the_rules(
    depth, d_model, seq_len, tokens_per_step, n_steps, adamw_lr, weight_decay
):
    preset = from_depth(depth)
    assert (preset.shape.n_layers, preset.shape.d_model, preset.train.seq_len) == (depth, d_model, seq_len)
    assert (preset.train.tokens_per_step, preset.train.n_steps) == (tokens_per_step, n_steps)
    assert preset.train.adamw_lr == pytest.approx(adamw_lr, rel=2e-3)
    assert preset.train.muon_weight_decay == pytest.approx(weight_decay, rel=2e-3)


def test_from_depth_more_layers_never_give_less():
    presets = [from_depth(depth) for depth in DEPTHS]
    for value in (
        lambda p: n_parameters(p.shape.with_vocab(100)),
        lambda p: p.train.n_steps * p.train.tokens_per_step,
        lambda p: p.train.tokens_per_step,
        lambda p: p.train.seq_len,
        lambda p: -p.train.adamw_lr,
    ):
        values = [value(preset) for preset in presets]
        assert values == sorted(values)


def test_from_depth_tokens_are_twenty_per_weight_and_weights_forget_over_a_fifth_of_the_training():
    for preset in map(from_depth, DEPTHS):
        train, n_weights = preset.train, n_hidden_matrix_parameters(preset.shape.with_vocab(1))
        assert train.n_steps * train.tokens_per_step == pytest.approx(20 * n_weights, rel=1e-3)
        assert train.muon_lr is not None
        assert 1 / (train.muon_lr * train.muon_weight_decay) == pytest.approx(0.2 * train.n_steps)
        assert train.n_steps >= 2000


def test_tokens_per_step_of_many_tokens_is_a_power_law_of_them():
    """Exponent 0.383 over a range beside which the two roundings to a power of two are small."""
    doublings = math.log2(tokens_per_step_of(2**80) / tokens_per_step_of(2**40))
    assert abs(doublings - 0.383 * 40) <= 1


def test_from_depth_values_set_by_hand_stay_beside_the_others():
    train = dataclasses.replace(from_depth(4).train, muon_lr=0.01, n_steps=7)
    assert (train.muon_lr, train.n_steps, train.rows) == (0.01, 7, from_depth(4).train.rows)


def test_from_depth_is_from_sizes_with_64_a_layer():
    assert from_depth(3) == from_sizes(3, 192)
    assert isinstance(from_sizes(24, 1024), Preset)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_depth(0), "depth=0"),
        (lambda: from_sizes(0, 64), "n_layers=0"),
        (lambda: from_sizes(2, 100), "d_model=100"),
    ],
)
def test_from_depth_out_of_range_names_field_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
