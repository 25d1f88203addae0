"""Rules of the configs, and sizes of the presets against the real module."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import RopeScaling, TrainConfig, decoder_config
from model.decoder import Decoder
from model.presets import PRESETS, d_ff_of
from model.size import flops_a_token, n_parameters

VOCAB = {"demo": 4096, "small": 8192, "gpt2_124m": 50_304}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_parameter_count_equals_the_module(name):
    cfg = PRESETS[name].shape.with_vocab(VOCAB[name])
    with torch.device("meta"):
        module = Decoder(cfg)
    assert n_parameters(cfg) == sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("name", "low", "high"), [("demo", 1e6, 3e6), ("small", 28e6, 32e6), ("gpt2_124m", 122e6, 126e6)]
)
def test_preset_has_the_size_that_it_is_named_for(name, low, high):
    assert low < n_parameters(PRESETS[name].shape.with_vocab(VOCAB[name])) < high


@pytest.mark.parametrize("name", PRESETS)
def test_preset_flops_equal_those_that_torch_counts(name):
    """torch counts every product of a pass as it runs; backward of our formula is twice the forward."""
    cfg = PRESETS[name].shape.with_vocab(VOCAB[name])
    seq_len = cfg.max_seq_len
    with torch.device("meta"):
        module, ids_BT = Decoder(cfg), torch.zeros(1, seq_len, dtype=torch.int64)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        module(ids_BT)
    assert flops_a_token(cfg, seq_len) * seq_len == 3 * counter.get_total_flops()


def test_demo_preset_trains_on_two_million_tokens():
    train = PRESETS["demo"].train
    assert 1.9e6 < train.n_steps * train.tokens_a_step < 2.1e6


def test_d_ff_of_gpt2_width_keeps_its_parameter_count():
    assert 3 * 768 * d_ff_of(768) == 2 * 768 * 4 * 768


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_kv_heads", 3),
        ("d_head", 7),
        ("n_layers", 0),
        ("vocab_size", 0),
        ("rope_theta", 0.0),
        ("norm_eps", float("nan")),
    ],
)
def test_decoder_config_out_of_range_names_field_and_value(field, value):
    good = PRESETS["demo"].shape.with_vocab(100)
    with pytest.raises(ValueError, match=f"{field}={value}"):
        dataclasses.replace(good, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_steps", 0),
        ("micro_batch", 3),
        ("muon_lr", 0.0),
        ("adamw_lr", -1.0),
        ("beta2", 1.0),
        ("decay_fraction", 1.5),
        ("warmup_fraction", 0.6),
        ("muon_weight_decay", -0.1),
        ("schedule", "sqrt"),
        ("gradient_clip", 0.0),
        ("n_threads", 0),
        ("checkpoint_every", 0),
    ],
)
def test_train_config_out_of_range_names_field_and_value(field, value):
    good = TrainConfig(n_steps=10, rows=8, seq_len=16, micro_batch=4)
    with pytest.raises(ValueError, match=f"{field}='?{value}"):
        dataclasses.replace(good, **{field: value})


def test_decoder_config_read_back_from_json_is_the_same():
    cfg = dataclasses.replace(
        PRESETS["small"].shape,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=128),
        sliding_window=16,
        sliding_layers=(0, 2),
    ).with_vocab(10)
    assert decoder_config(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg
