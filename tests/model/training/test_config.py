"""Rules of the configs."""

import dataclasses
import json

import pytest

from model.network.shape import RopeScaling, decoder_config
from model.training.config import TrainConfig
from model.training.presets import PRESETS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_kv_heads", 3),
        ("d_head", 7),
        ("n_layers", 0),
        ("vocab_size", 0),
        ("rope_theta", 0.0),
        ("norm_eps", float("nan")),
        ("rope_theta", float("inf")),
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
        ("micro_batch", 0),
        ("batch_warmup_fraction", 1.5),
        ("skip_spikes", 0.0),
        ("muon_lr", 0.0),
        ("adamw_lr", -1.0),
        ("beta2", 1.0),
        ("decay_fraction", 1.5),
        ("warmup_fraction", 0.6),
        ("muon_weight_decay", -0.1),
        ("newton_schulz_steps", 4),
        ("schedule", "sqrt"),
        ("packing", "sorted"),
        ("gradient_clip", 0.0),
        ("n_threads", 0),
        ("n_threads", 100_000),
        ("seed", 1 << 63),
        ("muon_weight_decay", float("nan")),
        ("adamw_weight_decay", float("nan")),
        ("adamw_lr", float("inf")),
        ("adamw_eps", float("inf")),
        ("skip_spikes", float("inf")),
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
