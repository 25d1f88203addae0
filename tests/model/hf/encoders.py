"""Tiny encoders of every family and switch, for the tests of this folder."""

import dataclasses
from typing import Any

from model.network.shape import EncoderConfig, switches_of

SIZES: dict[str, Any] = {
    "vocab_size": 97, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "d_model": 24, "d_head": 6, "d_ff": 40,
    "max_seq_len": 64, "tie_embeddings": True,
}  # fmt: skip
BERT = EncoderConfig(**SIZES, **switches_of("bert"))
ROBERTA = EncoderConfig(**SIZES, **switches_of("roberta"))
MODERNBERT = EncoderConfig(
    **SIZES,
    **{**switches_of("modernbert"), "rope_theta": 500.0, "local_rope_theta": 30.0, "head_bias": False},
    sliding_window=8,
    sliding_layers=(1, 2),
)
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "head_bias": True, "norm": "layernorm"}
ENCODERS = {
    "bert": BERT,
    "bert-untied": dataclasses.replace(BERT, tie_embeddings=False),
    "bert-three-types": dataclasses.replace(BERT, n_token_types=3, norm_eps=1e-5),
    "roberta": ROBERTA,
    "roberta-untied": dataclasses.replace(ROBERTA, tie_embeddings=False, n_token_types=2),
    "modernbert": MODERNBERT,
    "modernbert-biases": dataclasses.replace(MODERNBERT, **BIASES),
    "modernbert-untied": dataclasses.replace(MODERNBERT, tie_embeddings=False, lm_head_bias=False),
    "modernbert-odd-window": dataclasses.replace(MODERNBERT, sliding_window=5, sliding_layers=(0, 1, 3)),
    "modernbert-global": dataclasses.replace(MODERNBERT, sliding_window=None, sliding_layers=()),
    "modernbert-local": dataclasses.replace(MODERNBERT, sliding_window=2, sliding_layers=(0, 1, 2, 3)),
}
