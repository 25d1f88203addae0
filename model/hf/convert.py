"""Configs and weights of Qwen3 between Hugging Face's form and ours, both ways.

In: a config.json as a dict and tensors by name. Out: DecoderConfig and the tensors our decoder wants, or the reverse.
What our decoder cannot represent is refused by name, and so is a weight without a place or a place without a weight.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import named_weights
from model.config import DecoderConfig
from model.decoder import Decoder
from model.hf.names import (
    EMBEDDING,
    HEAD,
    QWEN3_ARCHITECTURE,
    QWEN3_CONFIG,
    QWEN3_FIXED,
    QWEN3_HEAD_DIM,
    QWEN3_MODEL_TYPE,
    QWEN3_ROPE_THETA,
)
from model.optim import check_same_shapes


def config_to_hf(cfg: DecoderConfig) -> dict[str, Any]:
    """config.json of Qwen3ForCausalLM, readable by transformers 4 and 5."""
    return {
        "architectures": [QWEN3_ARCHITECTURE],
        "model_type": QWEN3_MODEL_TYPE,
        **{theirs: getattr(cfg, ours) for ours, theirs in QWEN3_CONFIG.items()},
        **QWEN3_FIXED,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "torch_dtype": "float32",
    }


def config_from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """Raises ValueError for another family and for what our decoder cannot do."""
    if config.get("model_type") != QWEN3_MODEL_TYPE:
        raise ValueError(f"model_type={config.get('model_type')!r}: only {QWEN3_MODEL_TYPE!r} can be read")
    for field, value in QWEN3_FIXED.items():
        if config.get(field, value) != value:
            raise ValueError(f"{field}={config[field]!r} is not supported, only {value!r}")
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise ValueError("layer_types holds 'sliding_attention', which is not supported, only 'full_attention'")
    if config.get("quantization_config"):
        raise ValueError("quantization_config: quantised weights are not supported")
    values = {ours: config.get(theirs) for ours, theirs in QWEN3_CONFIG.items()}
    values["d_head"] = QWEN3_HEAD_DIM if values["d_head"] is None else values["d_head"]
    values["tie_embeddings"] = bool(values["tie_embeddings"])  # transformers' default is False
    if missing := [QWEN3_CONFIG[ours] for ours, value in values.items() if value is None]:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    return DecoderConfig(**values, rope_theta=_rope_theta(config))  # type: ignore[arg-type]


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} is not supported, only 'default'")
    return float(rope.get("rope_theta") or config.get("rope_theta") or QWEN3_ROPE_THETA)


def weights_to_hf(decoder: Decoder) -> dict[str, Tensor]:
    """Tensors by Hugging Face's names; a tied head is left out, as transformers leaves it out."""
    return named_weights(decoder)


@torch.no_grad()
def weights_from_hf(decoder: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Copy the tensors into `decoder`, in its dtype. Raises ValueError naming what has no place or no weight."""
    given = dict(weights)
    if decoder.cfg.tie_embeddings and HEAD in given:
        if EMBEDDING in given and not torch.equal(given[HEAD], given[EMBEDDING]):
            raise ValueError(f"{HEAD} differs from {EMBEDDING}, but tie_word_embeddings says they are one")
        del given[HEAD]
    places = dict(decoder.named_parameters())
    check_same_shapes("weights of qwen3", places, given)
    for name, place in places.items():
        place.copy_(given[name])
