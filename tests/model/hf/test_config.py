"""config.json both ways, against transformers' own classes and against configs as they are published."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from model.hf.config import config_from_hf, config_to_hf, family_of, kind_in
from model.hf.families import FAMILIES
from model.network.registry import KINDS
from model.network.shape import DecoderConfig, RopeScaling

# What the folders of published models say (facts of their config.json; the fields that nobody computes left out).
PUBLISHED = {
    "gpt2": (
        {
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        },
        DecoderConfig(
            vocab_size=50257,
            n_layers=12,
            n_heads=12,
            n_kv_heads=12,
            d_model=768,
            d_head=64,
            d_ff=3072,
            max_seq_len=1024,
            norm="layernorm",
            norm_eps=1e-5,
            positions="learned",
            qk_norm=False,
            qkv_bias=True,
            output_bias=True,
            mlp="gelu_tanh",
            mlp_bias=True,
            tie_embeddings=True,
        ),
    ),
    "llama-3.2-1b": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        DecoderConfig(
            vocab_size=128256,
            n_layers=16,
            n_heads=32,
            n_kv_heads=8,
            d_model=2048,
            d_head=64,
            d_ff=8192,
            max_seq_len=131072,
            norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(kind="llama3", factor=32.0, original_max_seq_len=8192),
            qk_norm=False,
            tie_embeddings=True,
        ),
    ),
    "qwen3-0.6b": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        DecoderConfig(
            vocab_size=151936,
            n_layers=28,
            n_heads=16,
            n_kv_heads=8,
            d_model=1024,
            d_head=128,
            d_ff=3072,
            max_seq_len=40960,
            rope_theta=1_000_000.0,
            tie_embeddings=True,
        ),
    ),
    "mistral-7b": (
        {
            "architectures": ["MistralForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 2,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        DecoderConfig(
            vocab_size=32000,
            n_layers=2,
            n_heads=32,
            n_kv_heads=8,
            d_model=4096,
            d_head=128,
            d_ff=14336,
            max_seq_len=32768,
            norm_eps=1e-5,
            qk_norm=False,
            sliding_window=4096,
            sliding_layers=(0, 1),
        ),
    ),
}


def test_config_written_and_read_is_the_same(cfg):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(cfg)))) == cfg


def test_config_is_given_to_the_first_family_that_has_its_switches(decoders):
    for name, cfg in decoders.items():
        assert family_of(cfg).model_type == name.partition("-")[0], name


def test_config_that_transformers_saves_again_is_read_as_the_same(cfg, tmp_path):
    """Ours is read by transformers' class, and what that one writes is read by us: nothing is lost on the way."""
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(cfg)))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config_from_hf(theirs) == cfg


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_read(name):
    config, expected = PUBLISHED[name]
    assert config_from_hf(config) == expected


def test_config_in_the_form_of_transformers_4_is_read_like_that_of_5(decoders):
    config = config_to_hf(decoders["llama-scaled"])
    old, new = dict(config), dict(config)
    del old["rope_parameters"], new["rope_scaling"], new["rope_theta"]
    old["rope_scaling"] = {"type" if key == "rope_type" else key: value for key, value in old["rope_scaling"].items()}
    assert config_from_hf(old) == config_from_hf(new) == decoders["llama-scaled"]


def test_config_of_qwen_with_a_window_by_number_of_layers_is_read(decoders):
    config = config_to_hf(decoders["qwen3"]) | {
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 3,
    }
    del config["layer_types"]
    assert (config_from_hf(config).sliding_window, config_from_hf(config).sliding_layers) == (7, (3,))


def test_config_without_fields_that_have_a_default_is_read_with_it(decoders):
    config = config_to_hf(decoders["llama"])
    for name in ("head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "attention_bias"):
        del config[name]
    read = config_from_hf(config)
    assert (read.d_head, read.n_kv_heads, read.norm_eps, read.tie_embeddings) == (6, 4, 1e-6, False)


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("qwen3", {"model_type": "gemma3"}, "gemma3"),
        ("qwen3", {"model_type": None}, "model_type=None"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("qwen3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5"),
        ("qwen3", {"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "name no window"),
        ("qwen3", {"hidden_size": None}, "lacks hidden_size"),
        ("qwen3", {"hidden_size": "24"}, "hidden_size='24' must be a number"),
        ("qwen3", {"hidden_size": 24.5}, "hidden_size=24.5 must be a whole number"),
        ("gpt2", {"n_head": 0}, "n_heads=0 must be at least 1"),
        ("llama", {"num_hidden_layers": 0}, "n_layers=0 must be at least 1"),
        ("qwen3", {"num_key_value_heads": 3}, "not a multiple of n_kv_heads=3"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("qwen3", {"auto_map": {"AutoModel": "modeling.Model"}}, "auto_map"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("mistral", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("arcee", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {"mlp_bias": "false"}, "mlp_bias='false' must be true or false"),
        ("qwen3", {"use_sliding_window": "no", "sliding_window": 8}, "use_sliding_window='no' must be true or false"),
    ],
)
def test_config_that_we_cannot_compute_is_refused_by_name(family, change, named, decoders):
    with pytest.raises(ValueError, match=named):
        config_from_hf(config_to_hf(decoders[family]) | change)


def test_config_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="contains a list"):
        config_from_hf([1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm": "layernorm"}, r"qwen3, differs in norm='layernorm', it has 'rmsnorm'"),
        ({"norm_position": "post"}, r"qwen3, differs in norm_position='post', it has 'pre'"),
        ({"mlp": "relu2"}, r"mlp='relu2', it has 'swiglu'"),
        ({"qkv_bias": True}, r"qkv_bias=True and output_bias=False, it has them equal"),
        (
            {"qk_norm": False, "d_model": 26, "mlp_bias": True},
            r"llama, differs in d_model=26, it has a multiple of n_heads=4",
        ),
        (
            {"qk_norm": False, "mlp": "relu2", "sliding_window": 9, "sliding_layers": (1,)},
            r"window=9 in 1 layers, it has none",
        ),
    ],
)
def test_switches_that_no_family_has_are_named(change, named, decoders):
    with pytest.raises(ValueError, match=named):
        config_to_hf(dataclasses.replace(decoders["qwen3"], **change))


def test_gpt2_with_grouped_heads_has_no_family(decoders):
    with pytest.raises(ValueError, match=r"n_kv_heads=2, it has n_heads=4"):
        family_of(dataclasses.replace(decoders["gpt2"], n_kv_heads=2))


def test_config_of_a_classifier_names_its_labels(decoders):
    config = config_to_hf(decoders["qwen3"], labels=("glad", "sad"))
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert kind_in(config) == "sequence_classifier" and kind_in(config_to_hf(decoders["qwen3"])) == "decoder"
    assert config["id2label"] == {"0": "glad", "1": "sad"}


def test_architectures_of_every_family_are_of_kinds_that_a_model_may_have():
    for family in FAMILIES.values():
        assert family.architectures.keys() <= KINDS.keys()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats(-9.0, 999.0)
    | st.sampled_from([float("nan"), float("inf")])
    | st.sampled_from(["", "24", "llama3", "default"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rope_type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "x"]), inner
        )
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.data())
def test_config_with_any_value_in_any_field_is_read_or_refused_with_a_value_error(decoders, data):
    config = config_to_hf(decoders[data.draw(st.sampled_from(sorted(decoders)))])
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[name] = data.draw(JSON)
    try:
        assert isinstance(config_from_hf(config), DecoderConfig)
    except ValueError as error:
        assert str(error)
