"""The sizes and switches of networks: frozen dataclasses that check every rule when they are made.

In: numbers and switches. Out: LayerShape (equal layers), TrunkShape (what decoders and encoders have in common),
DecoderShape and EncoderShape (before the tokenizer is known), DecoderConfig and EncoderConfig (with the vocabulary).
The switches make a decoder a GPT-2, a Llama or a Qwen3, which is the default, and an encoder a BERT, a RoBERTa or a
ModernBERT; FAMILY_SWITCHES has them by name. Imports no torch, so that forms and fingerprints are cheap to make from
these classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

ALLOWED = {
    "norm": ("rmsnorm", "layernorm", "layernorm_no_bias"),
    "norm_position": ("pre", "post"),
    "mlp": ("swiglu", "geglu", "gelu_tanh", "gelu", "relu2"),
    "positions": ("rotary", "learned"),
    "pooling": ("first", "mean"),
    "head_activation": ("tanh", "gelu"),
}
Objective = Literal["next_token", "masked_tokens"]
GATED = ("swiglu", "geglu")
NO_BIASES = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}
PRE_NORM = {"norm_position": "pre"}
LLAMA_SWITCHES = {**PRE_NORM, "norm": "rmsnorm", "positions": "rotary", "qk_norm": False, "mlp": "swiglu"}
GPT2_SWITCHES = {**PRE_NORM, "norm": "layernorm", "positions": "learned", "qk_norm": False, "mlp": "gelu_tanh"}
GPT2_SWITCHES |= dict.fromkeys(NO_BIASES, True)
BERT_SWITCHES = {
    **dict.fromkeys(NO_BIASES, True),
    "norm": "layernorm",
    "norm_position": "post",
    "qk_norm": False,
    "mlp": "gelu",
    "positions": "learned",
    "position_offset": 0,
    "pooling": "first",
    "head_activation": "tanh",
    "head_bias": True,
    "lm_head_bias": True,
}
MODERNBERT_SWITCHES = {
    **PRE_NORM,
    "qk_norm": False,
    "mlp": "geglu",
    "positions": "rotary",
    "position_offset": 0,
    "n_token_types": 0,
    "head_activation": "gelu",
}
# What every model of a family has, in the order in which an export tries the families. A switch that is not named
# here may be either.
FAMILY_SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {**LLAMA_SWITCHES, "qk_norm": True, "mlp_bias": False},
    "llama": LLAMA_SWITCHES,
    "gpt2": GPT2_SWITCHES,
    "qwen2": {**LLAMA_SWITCHES, "qkv_bias": True, "output_bias": False, "mlp_bias": False},
    "mistral": {**LLAMA_SWITCHES, **NO_BIASES},
    "arcee": {**LLAMA_SWITCHES, "mlp": "relu2"},
    "bert": BERT_SWITCHES,
    "roberta": {**BERT_SWITCHES, "position_offset": 2},
    "modernbert": MODERNBERT_SWITCHES,
}
ENCODER_FAMILIES = ("bert", "roberta", "modernbert")
DECODER_FAMILIES = tuple(family for family in FAMILY_SWITCHES if family not in ENCODER_FAMILIES)
NORM_EPS = {"qwen3": 1e-6, "llama": 1e-6, "gpt2": 1e-5, "qwen2": 1e-6, "mistral": 1e-6, "arcee": 1e-5}
NORM_EPS |= {"bert": 1e-12, "roberta": 1e-5, "modernbert": 1e-5}
# What a new model of a family has where the family leaves it open.
NEW: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"tie_embeddings": True},
    "bert": {"n_token_types": 2},
    "roberta": {"n_token_types": 1},
    "modernbert": {"norm": "layernorm_no_bias", "rope_theta": 160_000.0, "local_rope_theta": 10_000.0},
}


def switches_of(family: str) -> dict[str, Any]:
    """The fields that make a new model one of `family`, without biases where the family leaves them open.

    Raises ValueError with the names of the families for another name.
    """
    if family not in FAMILY_SWITCHES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILY_SWITCHES)}")
    return {**NO_BIASES, **FAMILY_SWITCHES[family], "norm_eps": NORM_EPS[family], **NEW.get(family, {})}


def objective_of(family: str) -> Objective:
    """What models of `family` learn to predict: a decoder the token that follows, an encoder the tokens that are
    masked."""
    return "masked_tokens" if family in ENCODER_FAMILIES else "next_token"


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
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"rope_scaling: factor={self.factor} must be a finite number of at least 1")
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
class LayerShape:
    """Equal layers, each of attention and a feed-forward network in residual branches with a norm.

    The comment behind a size is Hugging Face's name for it in Llama and Qwen3; model/hf/families.py has all families.
    """

    n_layers: int  # num_hidden_layers
    n_heads: int  # num_attention_heads, of queries
    n_kv_heads: int  # num_key_value_heads; divides n_heads
    d_model: int  # hidden_size
    d_head: int  # head_dim; independent of d_model, even with rotary positions
    d_ff: int  # intermediate_size
    norm: Literal["rmsnorm", "layernorm", "layernorm_no_bias"] = "rmsnorm"
    norm_eps: float = 1e-6  # rms_norm_eps
    norm_position: Literal["pre", "post"] = "pre"  # of a branch's input (arXiv:2002.04745), or of the sum after it
    qk_norm: bool = True  # RMSNorm over every query and key head, before rotation
    qkv_bias: bool = False  # biases of q_proj, k_proj, v_proj
    output_bias: bool = False  # bias of o_proj
    mlp: Literal["swiglu", "geglu", "gelu_tanh", "gelu", "relu2"] = "swiglu"  # the last three: down(f(up(x)))
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        self._check_sizes("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_ff")
        self._check_choices("norm", "norm_position", "mlp")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        self._check_positive("norm_eps")

    @property
    def is_gated(self) -> bool:
        return self.mlp in GATED

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def _check_choices(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) not in ALLOWED[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(ALLOWED[name])}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkShape(LayerShape):
    """What decoders and encoders have around their layers."""

    max_seq_len: int  # max_position_embeddings, tokens
    positions: Literal["rotary", "learned"] = "rotary"  # learned: a vector per position, added to the embedding
    rope_theta: float = 10_000.0  # base of the rotary wavelengths, arXiv:2104.09864
    # Tokens that a layer of sliding_layers attends to. A decoder's window ends with the token itself; an encoder's
    # extends over half of that number of tokens on each side.
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()  # numbers of the layers with a window; the others attend to all tokens
    tie_embeddings: bool = False  # tie_word_embeddings: the head reuses the embedding

    def __post_init__(self) -> None:
        LayerShape.__post_init__(self)
        self._check_sizes("max_seq_len")
        self._check_choices("positions")
        self._check_positive("rope_theta")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(
                f"d_head={self.d_head} must be even: rotary positions turn its halves against each other"
            )
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape(TrunkShape):
    """A decoder before its tokenizer is known; the defaults are Qwen3's (arXiv:2505.09388)."""

    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        TrunkShape.__post_init__(self)
        if self.positions == "learned" and self.rope_scaling is not None:
            raise ValueError("rope_scaling is for positions='rotary', got positions='learned'")

    def with_vocab(self, vocab_size: int) -> "DecoderConfig":
        return DecoderConfig(vocab_size=vocab_size, **{f.name: getattr(self, f.name) for f in fields(DecoderShape)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(DecoderShape):
    """A whole decoder: its shape and the tokenizer's vocabulary size."""

    vocab_size: int

    def __post_init__(self) -> None:
        DecoderShape.__post_init__(self)
        self._check_sizes("vocab_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape(TrunkShape):
    """An encoder before its tokenizer is known: every token attends to all others, or to those around it.

    The embeddings are normed before the first layer. Where norms come first in a branch, that norm is also the one of
    the first layer's attention, which has none of its own (ModernBERT, arXiv:2412.13663).
    """

    position_offset: int = 0  # number of the first token's position; those before it are for padding (RoBERTa)
    n_token_types: int = 0  # segments that a token may belong to; 0 = no vectors for them
    local_rope_theta: float | None = None  # rope_theta of sliding_layers; None = that of the other layers
    pooling: Literal["first", "mean"] = "first"  # what a classifier reads: the first token ([CLS]), or all real ones
    head_activation: Literal["tanh", "gelu"] = "tanh"  # of a classifier's hidden layer; a norm follows gelu
    head_bias: bool = True  # of the hidden layer of heads
    lm_head_bias: bool = True  # of the matrix that gives the logits of masked tokens
    has_pooler: bool = False  # a layer over the first token, which BERT learns by predicting the next sentence

    def __post_init__(self) -> None:
        TrunkShape.__post_init__(self)
        self._check_choices("pooling", "head_activation")
        for name in ("position_offset", "n_token_types"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.positions == "rotary" and self.position_offset:
            raise ValueError(f"position_offset={self.position_offset} is for positions='learned', got 'rotary'")
        if self.local_rope_theta is not None:
            self._check_positive("local_rope_theta")

    @property
    def n_positions(self) -> int:
        """Rows of the table of learned positions."""
        return self.position_offset + self.max_seq_len

    def with_vocab(self, vocab_size: int) -> "EncoderConfig":
        return EncoderConfig(vocab_size=vocab_size, **{f.name: getattr(self, f.name) for f in fields(EncoderShape)})


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(EncoderShape):
    """A whole encoder: its shape and the tokenizer's vocabulary size."""

    vocab_size: int

    def __post_init__(self) -> None:
        EncoderShape.__post_init__(self)
        self._check_sizes("vocab_size")


def config_for(shape: DecoderShape | EncoderShape, n_tokens: int) -> DecoderConfig | EncoderConfig:
    """The config of a new model on token shards of `n_tokens` tokens. An encoder has one more, its mask token."""
    return shape.with_vocab(n_tokens + isinstance(shape, EncoderShape))


C = TypeVar("C", DecoderConfig, EncoderConfig)


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The config from the values that `dataclasses.asdict` and JSON made of it.

    Raises ValueError with the name of a field that is unknown or missing, or breaks its rule.
    """
    _check_fields(DecoderConfig, values)
    scaling = values.get("rope_scaling")
    if not isinstance(scaling, Mapping | None):
        raise ValueError(f"rope_scaling={scaling!r} must be an object, or null for none")
    return _made(DecoderConfig, {**values, "rope_scaling": RopeScaling(**scaling) if scaling is not None else None})


def encoder_config(values: Mapping[str, Any]) -> EncoderConfig:
    """As `decoder_config`, of an encoder."""
    _check_fields(EncoderConfig, values)
    return _made(EncoderConfig, values)


def _check_fields(kind: type[DecoderConfig | EncoderConfig], values: Mapping[str, Any]) -> None:
    known = {f.name for f in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown fields {', '.join(unknown)}; {_title(kind)} has {', '.join(sorted(known))}")
    for one in fields(kind):
        if one.type is int and type(values.get(one.name, 0)) is not int:
            raise ValueError(f"{one.name}={values[one.name]!r} must be a whole number")
        if one.type is bool and type(values.get(one.name, False)) is not bool:
            raise ValueError(f"{one.name}={values[one.name]!r} must be true or false")


def _made(kind: type[C], values: Mapping[str, Any]) -> C:
    try:
        return kind(**{**values, "sliding_layers": tuple(values.get("sliding_layers", ()))})
    except TypeError as error:
        raise ValueError(f"not the config of {_title(kind)}: {error}") from error


def _title(kind: type[DecoderConfig | EncoderConfig]) -> str:
    return "a decoder" if kind is DecoderConfig else "an encoder"
