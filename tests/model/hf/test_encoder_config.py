"""config.json of encoders both ways, as published, and what is refused by its name."""

import dataclasses
import json

import pytest

from model.hf.config import config_from_hf, config_to_hf, family_of, kind_in
from model.network.shape import EncoderConfig, switches_of
from tests.model.hf.encoders import ENCODERS

BASE = {"n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "d_model": 768, "d_head": 64, "d_ff": 3072}
THEIR_BASE = {
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
}
# What the folders of published models say (facts of their config.json; the fields that nobody computes left out).
PUBLISHED = {
    "bert-base-uncased": (
        {**THEIR_BASE, "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 30522}
        | {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0},
        EncoderConfig(**BASE, **switches_of("bert"), vocab_size=30522, max_seq_len=512, tie_embeddings=True),
    ),
    "roberta-base": (
        {**THEIR_BASE, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "vocab_size": 50265}
        | {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
        EncoderConfig(**BASE, **switches_of("roberta"), vocab_size=50265, max_seq_len=512, tie_embeddings=True),
    ),
    "modernbert-base": (
        {
            "architectures": ["ModernBertForMaskedLM"],
            "attention_bias": False,
            "classifier_activation": "gelu",
            "classifier_bias": False,
            "classifier_pooling": "mean",
            "decoder_bias": True,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0,
            "hidden_activation": "gelu",
            "hidden_size": 768,
            "intermediate_size": 1152,
            "local_attention": 128,
            "local_rope_theta": 10000.0,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "model_type": "modernbert",
            "norm_bias": False,
            "norm_eps": 1e-05,
            "num_attention_heads": 12,
            "num_hidden_layers": 22,
            "reference_compile": None,
            "vocab_size": 50368,
        },
        EncoderConfig(
            **{**BASE, "n_layers": 22, "d_ff": 1152},
            **switches_of("modernbert"),
            vocab_size=50368,
            max_seq_len=8192,
            tie_embeddings=True,
            pooling="mean",
            head_bias=False,
            sliding_window=128,
            sliding_layers=tuple(layer for layer in range(22) if layer % 3),
        ),
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_config_comes_back_from_json_in_its_own_family(name):
    cfg = ENCODERS[name]
    assert config_from_hf(json.loads(json.dumps(config_to_hf(cfg)))) == cfg
    assert family_of(cfg).model_type == name.partition("-")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_gives_the_encoder_that_it_describes(name):
    config, expected = PUBLISHED[name]
    assert config_from_hf(config) == expected
    assert kind_in(config) == "masked_lm"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["BertModel"], "encoder"),
        (["BertForPreTraining"], "masked_lm"),
        (["BertForMultipleChoice"], "encoder"),
        (["BertForTokenClassification"], "token_classifier"),
        (["RobertaForQuestionAnswering"], "span_classifier"),
        (None, "encoder"),
        (["BertForSequenceClassification"], "sequence_classifier"),
    ],
)
def test_kind_is_the_class_that_a_config_names_and_else_a_bare_encoder(names, kind):
    assert kind_in({"model_type": "bert", "architectures": names}) == kind


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not"),
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported"),
        ("roberta", {"pad_token_id": 0}, "pad_token_id=0 is not supported, only 1"),
        (
            "modernbert",
            {"classifier_pooling": "max"},
            "classifier_pooling='max' is not supported, only 'cls', 'mean'",
        ),
        ("modernbert", {"norm_bias": 1}, "norm_bias=1 is not supported, only False, True"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 4"),
        ("modernbert", {"local_attention": 0}, "local_attention=0 must be a whole number of at least 1"),
        ("modernbert", {"rope_parameters": [1]}, "rope_parameters must be an object"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type='yarn' is not"),
        ("modernbert", {"model_type": "deberta"}, "only qwen3, llama, .*, bert, roberta, modernbert can be read"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_its_name(name, change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(config_to_hf(ENCODERS[name]) | change)


def test_switches_that_no_encoder_has_are_named_with_the_nearest_family():
    with pytest.raises(
        ValueError, match=r"the nearest, bert, differs in pooling='mean', it has 'first' \(known: bert"
    ):
        config_to_hf(dataclasses.replace(ENCODERS["bert"], pooling="mean"))
