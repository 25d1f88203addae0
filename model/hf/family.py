"""What a table of a family can say: the form of model/hf/families.py and model/hf/encoder_families.py.

"Theirs" is a name or a value of Hugging Face.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.network.registry import KINDS
from model.network.shape import ENCODER_FAMILIES

LAYER = "model.layers.{}."  # ours
QKV = tuple(f"{LAYER}self_attn.{part}_proj" for part in "qkv")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HEADS = tuple(f"{head}." for kind in KINDS.values() for head in kind.head)
# Kinds of models, as in model/network/registry.py.
DECODER, ENCODER, MASKED_LM, CLASSIFIER = "decoder", "encoder", "masked_lm", "sequence_classifier"
TOKENS, SPAN = "token_classifier", "span_classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRule:
    """One name in a file of theirs and the names of ours that it stores. {} is the number of the layer; .weight and
    .bias follow, whichever exist."""

    ours: tuple[str, ...]  # several are joined along their outputs
    theirs: str
    transposed: bool = False  # stored as (in, out) instead of (out, in)
    kinds: tuple[str, ...] = tuple(KINDS)  # of models that the rule is for


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    model_type: str
    architectures: Mapping[str, str]  # kind of model -> class in transformers
    sizes: Mapping[str, str]  # our field -> theirs
    switches: Mapping[str, Any]  # our field -> the only value that the family has
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # theirs -> our switches, which agree
    choices: Mapping[str, tuple[str, Mapping[Any, Any]]] = field(default_factory=dict)  # theirs -> ours, its values
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # theirs -> allowed values; we write the first
    defaults: Mapping[str, Any] = field(default_factory=dict)  # theirs -> value where a config has none
    written: Mapping[str, Any] = field(default_factory=dict)  # theirs -> what an export says and a reader ignores
    window: Literal["none", "every_layer", "layer_types", "two_sided"] = "none"  # layers that may have one
    d_model_is: Literal["any", "multiple_of_heads", "heads"] = "any"  # heads: n_heads * d_head
    is_grouped: bool = True  # may have fewer heads of keys than of queries
    prefix: str = "model."  # of the names of the trunk's weights in a file
    heads: tuple[str, ...] = HEADS  # beginnings of names that do not have the prefix
    rules: tuple[WeightRule, ...] = ()  # none: the names are ours
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)  # endings of names in old files that are no weights
    old_endings: Mapping[str, str] = field(default_factory=dict)  # of names in old files -> today's
    read_as: Mapping[str, str] = field(default_factory=dict)  # further classes in transformers -> kind of model
    pooler: str = ""  # name of the layer that an encoder without a head may have
    unused: tuple[str, ...] = ()  # beginnings of names that a file may have for a head that the model does not have
    copies: Mapping[str, str] = field(default_factory=dict)  # name -> second name of the same weight in a file

    @property
    def trunk(self) -> str:
        return ENCODER if self.model_type in ENCODER_FAMILIES else DECODER

    def rules_of(self, kind: str) -> tuple[WeightRule, ...]:
        return tuple(rule for rule in self.rules if kind in rule.kinds)
