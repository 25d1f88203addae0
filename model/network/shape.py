"""What a decoder looks like: frozen dataclasses, every rule checked where they are made.

In: numbers and switches. Out: DecoderShape (a decoder before its tokenizer is known; the switches make it a GPT-2, a
Llama or a Qwen3, the default is Qwen3) and DecoderConfig (with the vocabulary). Imports no torch, so that a launchpad
form or a fingerprint can be made of them for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

ALLOWED = {
    "norm": ("rmsnorm", "layernorm"),
    "positions": ("rotary", "learned"),
    "mlp": ("swiglu", "gelu_tanh", "relu2"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary wavelengths are stretched for a context longer than the one that was trained."""

    kind: Literal["linear", "llama3"]  # all alike (arXiv:2306.15595), or the long ones only (arXiv:2407.21783)
    factor: float  # new context / old context, at least 1
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_max_seq_len / this are stretched whole
    high_freq_factor: float = 4.0  # llama3: those below original_max_seq_len / this stay; between, a blend
    original_max_seq_len: int | None = None  # tokens; llama3 needs it

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope_scaling: kind={self.kind!r} must be one of linear, llama3")
        if self.factor < 1:
            raise ValueError(f"rope_scaling: factor={self.factor} must be at least 1")
        if self.kind == "llama3" and (self.original_max_seq_len is None or self.original_max_seq_len < 1):
            raise ValueError(
                f"rope_scaling: original_max_seq_len={self.original_max_seq_len} must be at least 1 for llama3"
            )
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope_scaling: low_freq_factor={self.low_freq_factor} must lie between 0 and"
                f" high_freq_factor={self.high_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """A decoder before its tokenizer is known; the defaults are Qwen3's (arXiv:2505.09388).

    Behind each size stands Hugging Face's name in Llama and Qwen3; model/hf/families.py has all families.
    """

    n_layers: int  # num_hidden_layers
    n_heads: int  # num_attention_heads, of queries
    n_kv_heads: int  # num_key_value_heads; divides n_heads
    d_model: int  # hidden_size
    d_head: int  # head_dim; independent of d_model, even with rotary positions
    d_ff: int  # intermediate_size
    max_seq_len: int  # max_position_embeddings, tokens
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"  # layernorm has biases (GPT-2)
    norm_eps: float = 1e-6  # rms_norm_eps
    positions: Literal["rotary", "learned"] = "rotary"  # learned: a vector a position, added to the embedding
    rope_theta: float = 10_000.0  # base of the rotary wavelengths, arXiv:2104.09864
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = True  # RMSNorm over every query and key head, before rotation
    qkv_bias: bool = False  # biases of q_proj, k_proj, v_proj
    output_bias: bool = False  # bias of o_proj
    mlp: Literal["swiglu", "gelu_tanh", "relu2"] = "swiglu"  # the last two are ungated: down(f(up(x)))
    mlp_bias: bool = False
    sliding_window: int | None = None  # tokens that a layer of sliding_layers sees, its own position included
    sliding_layers: tuple[int, ...] = ()  # numbers of the layers that see a window only; the others see all
    tie_embeddings: bool = False  # tie_word_embeddings: the head reuses the embedding

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_ff", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"d_head={self.d_head} must be even: rotary positions turn its halves against each other"
            )
        if self.positions == "learned" and self.rope_scaling is not None:
            raise ValueError("rope_scaling is for positions='rotary', got positions='learned'")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        self._check_window()

    def _check_window(self) -> None:
        if (self.sliding_window is None) != (not self.sliding_layers):
            raise ValueError(
                f"sliding_window={self.sliding_window} and sliding_layers={self.sliding_layers}: set both or neither"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window={self.sliding_window} must be at least 1")
        if outside := [layer for layer in self.sliding_layers if not 0 <= layer < self.n_layers]:
            raise ValueError(f"sliding_layers holds {outside[0]}, n_layers={self.n_layers} count from 0")

    def with_vocab(self, vocab_size: int) -> "DecoderConfig":
        return DecoderConfig(vocab_size=vocab_size, **{f.name: getattr(self, f.name) for f in fields(DecoderShape)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(DecoderShape):
    """A whole decoder: its shape and the tokenizer's vocabulary size."""

    vocab_size: int

    def __post_init__(self) -> None:
        DecoderShape.__post_init__(self)
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} must be at least 1")


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The config that `dataclasses.asdict` and JSON made `values` of. ValueError names a field that is unknown or
    missing, or breaks its rule."""
    known = {f.name for f in fields(DecoderConfig)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown fields {', '.join(unknown)}; a decoder has {', '.join(sorted(known))}")
    for one in fields(DecoderConfig):
        if one.type is int and type(values.get(one.name, 0)) is not int:
            raise ValueError(f"{one.name}={values[one.name]!r} must be a whole number")
    scaling = values.get("rope_scaling")
    changed = {
        "rope_scaling": RopeScaling(**scaling) if isinstance(scaling, Mapping) else scaling,
        "sliding_layers": tuple(values.get("sliding_layers", ())),
    }
    try:
        return DecoderConfig(**{**values, **changed})
    except TypeError as error:
        raise ValueError(f"not the config of a decoder: {error}") from error
