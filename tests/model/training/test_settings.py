"""What follows from a change of a preset."""

import dataclasses
import re

import pytest

from model.hf.config import config_to_hf
from model.network.shape import DecoderShape, switches_of
from model.training.presets import PRESETS, changed, from_depth
from model.training.settings import parsed_changes


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "qwen2", "mistral", "arcee"])
def test_changed_family_is_what_an_export_finds(family):
    shape = changed(PRESETS["demo"], {}, family).shape
    found = config_to_hf(shape.with_vocab(64))["model_type"]
    assert found == ("llama" if family == "mistral" else family)  # without a window a Mistral is a Llama


def test_changed_family_with_an_ungated_layer_is_four_times_as_wide_inside():
    demo = PRESETS["demo"]
    assert changed(demo, {}, "gpt2").shape.d_ff == 4 * demo.shape.d_model
    assert changed(demo, {"d_ff": 96}, "gpt2").shape.d_ff == 96
    assert changed(demo, {}, "llama").shape.d_ff == demo.shape.d_ff


def test_changed_setting_goes_before_the_family():
    assert changed(PRESETS["demo"], {"qk_norm": True}, "llama").shape.qk_norm


def test_switches_of_an_unknown_family_names_those_there_are():
    with pytest.raises(ValueError, match=r"family='bloom' must be one of qwen3, llama, gpt2"):
        switches_of("bloom")


def test_changed_by_nothing_is_the_preset():
    for preset in (*PRESETS.values(), from_depth(3)):
        assert changed(preset, {}) == preset
        assert changed(preset, {}, "qwen3") == preset


TWELVE = from_depth(12)  # 12 layers of 768, 512 rows of 1,024 tokens, 3,240 steps


@pytest.mark.parametrize(
    ("changes", "follows"),
    [
        (
            {"n_steps": 300},
            {"muon_weight_decay": 1 / (0.2 * 300 * 0.02), "checkpoint_every": 15, "validate_every": 38, "rows": 512},
        ),
        ({"muon_lr": 0.01}, {"muon_weight_decay": 1 / (0.2 * 3240 * 0.01), "n_steps": 3240}),
        ({"muon_lr": None}, {"muon_weight_decay": TWELVE.train.muon_weight_decay}),  # which AdamW does not use
        (
            {"rows": 256},  # the tokens stay
            {"n_steps": 6480, "validate_every": 810, "muon_weight_decay": 1 / (0.2 * 6480 * 0.02)},
        ),
        ({"rows": 4}, {"n_validation_batches": 16, "n_steps": 414720}),
        ({"rows": 256, "n_steps": 10}, {"n_steps": 10, "checkpoint_every": 1, "validate_every": 2}),
        ({"seq_len": 512}, {"max_seq_len": 512, "rows": 1024, "n_steps": 3240}),
        ({"n_layers": 24}, {"rows": 512, "n_steps": 6480, "log_every": 10, "checkpoint_every": 324}),
        ({"n_layers": 2}, {"log_every": 1}),
        (
            {"d_model": 256, "n_layers": 4},  # a point of the dial, reached from another one
            from_depth(4).values(),
        ),
        ({"d_model": 512}, {"n_heads": 8, "d_head": 64, "d_ff": 1408, "seq_len": 512, "newton_schulz_steps": 5}),
        ({"d_model": 512, "n_heads": 4}, {"n_kv_heads": 4, "d_head": 128}),
        ({"n_kv_heads": 4}, {"n_heads": 12, "n_steps": 2880}),  # fewer weights, fewer tokens
        ({"muon_weight_decay": 0.5, "n_steps": 9}, {"muon_weight_decay": 0.5, "checkpoint_every": 1}),
        ({"checkpoint_every": 7, "validate_every": 9, "n_steps": 90}, {"checkpoint_every": 7, "validate_every": 9}),
        ({"seed": 5, "adamw_lr": 0.1}, {**TWELVE.values(), "seed": 5, "adamw_lr": 0.1}),
    ],
)
def test_changed_takes_along_what_the_rules_compute_and_leaves_what_was_set(changes, follows):
    """`--depth 12 --set n_steps=300` kept the weight decay and the intervals of 3,240 steps."""
    values = changed(TWELVE, changes).values()
    assert {name: values[name] for name in follows} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in follows.items()
    }


def test_changed_twice_is_changed_at_once():
    at_once = changed(TWELVE, {"d_model": 512, "rows": 16, "n_steps": 50})
    assert changed(changed(TWELVE, {"rows": 16, "n_steps": 50}), {"d_model": 512}) == at_once


def test_changed_demo_keeps_what_a_search_found():
    demo = PRESETS["demo"]
    train = changed(demo, {"d_model": 256, "n_steps": 40}).train
    found = ("rows", "seq_len", "adamw_lr", "muon_lr", "muon_weight_decay")
    assert [getattr(train, name) for name in found] == [getattr(demo.train, name) for name in found]
    assert (train.checkpoint_every, train.validate_every) == (2, 5)


def test_changed_by_an_unknown_name_names_the_nearest_and_all():
    """It was left out without a word."""
    with pytest.raises(ValueError, match=r"n_step=5: no such setting; did you mean n_steps\? there are n_layers"):
        changed(TWELVE, {"n_step": 5})
    with pytest.raises(ValueError, match=r"--set n_step=5: no such setting; did you mean n_steps\? there are act"):
        parsed_changes(["n_step=5"])


def test_parsed_changes_reach_every_kind_of_field():
    changes = parsed_changes(["n_layers=3", "qk_norm=no", "rope_theta=5e5", "sliding_window=8", "sliding_layers=0,2"])
    shape = changed(PRESETS["demo"], changes).shape
    expected = {"n_layers": 3, "qk_norm": False, "rope_theta": 5e5, "sliding_window": 8, "sliding_layers": (0, 2)}
    assert {name: getattr(shape, name) for name in expected} == expected
    assert isinstance(dataclasses.replace(shape, sliding_window=None, sliding_layers=()), DecoderShape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["d_model=30", "n_heads=4"], "d_model=30 is not a multiple of n_heads=4; set n_heads or d_head too"),
        (["d_head=7"], "d_head=7 must be even"),
        (["n_layers=0"], "n_layers=0 must be at least 1"),
        (["n_heads=0"], "n_heads=0 must be at least 1"),
        (["d_model=-64"], "d_model=-64 must be at least 1"),
        (["n_steps=0"], "n_steps=0 must be at least 1"),
        (["rows=0"], "rows=0 must be at least 1"),
        (["muon_lr=-1"], "muon_lr=-1.0 must be above 0"),
        (["rows=6", "micro_batch=4"], "rows=6 is not a multiple of micro_batch=4"),
        (["n_steps=many"], "--set n_steps=many: expected a whole number"),
        (["muon_lr=fast"], "--set muon_lr=fast: expected a number"),
        (["document_mask=maybe"], "--set document_mask=maybe: expected true or false"),
        (["n_steps"], "--set n_steps: expected KEY=VALUE"),
        (["norm=batchnorm"], "expected one of rmsnorm, layernorm"),
        (["rope_scaling={"], "expected a JSON object with some of kind, factor"),
        (['rope_scaling={"kind": "linear", "factor": 0.5}'], "factor=0.5 must be a finite number of at least 1"),
    ],
)
@pytest.mark.parametrize("preset", [PRESETS["demo"], TWELVE], ids=["demo", "depth 12"])
def test_settings_that_cannot_be_are_refused_with_their_rule(preset, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        changed(preset, parsed_changes(settings))
