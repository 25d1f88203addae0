"""What follows from a change of a preset."""

import dataclasses

import pytest

from model.hf.config import config_to_hf
from model.network.shape import DecoderShape
from model.training.presets import PRESETS, changed, from_depth, switches_of
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


def test_parsed_changes_reach_every_kind_of_field():
    changes = parsed_changes(["n_layers=3", "qk_norm=no", "rope_theta=5e5", "sliding_window=8", "sliding_layers=0,2"])
    shape = changed(PRESETS["demo"], changes).shape
    expected = {"n_layers": 3, "qk_norm": False, "rope_theta": 5e5, "sliding_window": 8, "sliding_layers": (0, 2)}
    assert {name: getattr(shape, name) for name in expected} == expected
    assert isinstance(dataclasses.replace(shape, sliding_window=None, sliding_layers=()), DecoderShape)
