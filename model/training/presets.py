"""Sizes: a shape and a training plan that fit together, by name or by one dial, the depth.

In: a family, with a name of PRESETS or ENCODER_PRESETS or a depth; and changes of single fields. Out: a Preset;
`shape.with_vocab(n)` makes a whole config once the tokenizer is known. RULES states what is computed from what
(ENCODER_RULES for encoders): `from_sizes` applies all rules, `changed` those whose inputs have changed. No rule needs
the vocabulary: tokens and batch follow from the matrices inside the layers, so that a plan is known before the
tokenizer is.

The reasons, rule by rule (`from_depth` takes 64 n_layers as width):

- Heads of 64, as many keys and values as queries. The feed-forward width is 8/3 of d_model, rounded up to 64: a gated
  layer has three matrices, so that 2/3 of 4 d_model keeps the parameter count (arXiv:2002.05202 section 3).
- Context: the power of two at or above d_model, from 128 to 2048. Attention over T keys costs T / (6 d_model) of what
  the matrices cost (arXiv:2204.02311 appendix B), so that its share stays between a sixth and a third.
- Tokens: 20 per weight of the layers (arXiv:2203.15556). A changed batch changes the number of steps, not the tokens.
- Batch: a power of the tokens with exponent 0.383 (arXiv:2505.13738, independent of the size of the model) through
  2^19 at 12 layers, but at least MIN_STEPS updates, which is what binds below 12 layers. A power of two.
- Muon's learning rate is the same for all sizes: an orthogonal update times sqrt(max(1, rows / columns)) changes the
  output of a matrix by as much at every width (arXiv:2310.17813). 0.02 at 124 M and 2^19 tokens per step
  (https://kellerjordan.github.io/posts/muon); 0.009 and 0.015 were best, and alike, at 4 layers of 128 and 2^10.
- AdamW's learning rate falls with 1/sqrt(d_model), from the rate that was found for 128.
- Three steps of Newton-Schulz below a width of 512, where batches are small and they are a fifth of a step; else 5.
- The head is the embedding, as in Qwen3 up to 4 B (arXiv:2505.09388 table 1); better at 4 layers of 128, too.
- Muon's weight decay: weights average over the last 1 / (learning rate * decay) steps. We set that to a fifth of the
  training, the fraction that transfers between sizes (arXiv:2405.13698) and is best at about 20 tokens per weight
  (arXiv:2505.13738).
- 20 checkpoints and 8 validations per training, of at most 2^21 tokens each.

Encoders have the same rules but these:

- Rows are whole documents, or pieces of long ones, which do not see each other: a text that is to be understood later
  comes alone, too. The context ends at 512 tokens, as in BERT (arXiv:1810.04805) and RoBERTa (arXiv:1907.11692).
- 15 % of the tokens are predicted. Learning rates rise over the first 6 % of the steps, as in RoBERTa's table 9:
  without a warm-up a network with its norms after the branches diverges (arXiv:2002.04745).
- ModernBERT's layers attend to 128 tokens around each, every third one to all (arXiv:2412.13663 section 2.1.2).
- The preset base has the shape of BERT-base.

We measured the preset demo of decoders, on a CPU (docs/log.md); the rules beyond it, and all presets of encoders, are
what the papers say, so that the learning rates of encoders are not tuned. In trials of the encoder demo that were
cut off, where token frequencies cost 7.037 nats, the demo's own rates reached 7.035 at step 200 of 2,000, muon_lr =
0.005 with adamw_lr = 0.003 reached 7.013 at step 200, and AdamW alone at 0.001 reached 7.008 at step 300.

The preset demo is no point of the dial, which would give its layers 17 M tokens: a search found it for two CPU cores
and a few minutes (bench/convergence.py). Its rates and its batch therefore follow no rule when it is changed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from model.network.shape import GATED, DecoderShape, EncoderShape, LayerShape, objective_of, switches_of
from model.network.size import n_hidden_matrix_parameters
from model.training.config import TrainConfig
from model.training.settings import no_such_setting

D_MODEL_PER_LAYER = 64
D_HEAD = 64
MIN_SEQ_LEN, MAX_SEQ_LEN = 128, 2048
TOKENS_PER_WEIGHT = 20
ANCHOR_TOKENS, ANCHOR_BATCH = 1.7e9, 2**19  # tokens of 12 layers of 768, and of one of its steps
BATCH_EXPONENT = 0.383
MIN_STEPS = 2000
MUON_LR = 0.02
ADAMW_LR_AT_128 = 0.008
FORGETTING = 0.2  # of the steps
MAX_SEQ_LEN_OF_ENCODERS = 512
WINDOW, GLOBAL_EVERY = {"modernbert": 128}, 3  # tokens around each, of new models of a family; layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    shape: DecoderShape | EncoderShape
    train: TrainConfig
    by_rule: frozenset[str] = frozenset()  # fields that `changed` computes again when what they follow from changes

    def values(self) -> dict[str, Any]:
        return {f.name: getattr(one, f.name) for one in (self.shape, self.train) for f in fields(one)}


@dataclass(frozen=True, slots=True)
class Rule:
    """How a field is computed from others, which are named so that a change of one is seen."""

    inputs: tuple[str, ...]
    compute: Callable[[Mapping[str, Any]], Any]


def d_ff_of(d_model: int) -> int:
    """Feed-forward width of SwiGLU for a model width."""
    return -(-8 * d_model // (3 * 64)) * 64


def tokens_per_step_of(n_tokens: int) -> int:
    """Tokens of a global batch, a power of two, for a training on `n_tokens`."""
    by_power = ANCHOR_BATCH * (n_tokens / ANCHOR_TOKENS) ** BATCH_EXPONENT
    return 2 ** max(0, min(round(math.log2(by_power)), math.floor(math.log2(n_tokens / MIN_STEPS))))


def _d_head(values: Mapping[str, Any]) -> int:
    d_model, n_heads = values["d_model"], values["n_heads"]
    if d_model % n_heads:
        raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}; set n_heads or d_head too")
    return d_model // n_heads


def _n_tokens(values: Mapping[str, Any]) -> int:
    return TOKENS_PER_WEIGHT * n_hidden_matrix_parameters(LayerShape(**_of_fields(LayerShape, values)))


def _seq_len(d_model: int, longest: int) -> int:
    return min(longest, max(MIN_SEQ_LEN, 1 << (d_model - 1).bit_length()))


def _local_layers(values: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(layer for layer in range(values["n_layers"]) if layer % GLOBAL_EVERY)


def _micro_batch(values: Mapping[str, Any]) -> int | None:
    """The largest divisor of the rows that is at most the micro-batch before."""
    before, rows = values.get("micro_batch"), values["rows"]
    return None if before is None else max(n for n in range(1, min(rows, before) + 1) if rows % n == 0)


def _of_fields(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in changes.items() if name in names}


MATRICES = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "mlp")
# Everything that follows from something else, each after what it follows from.
RULES = {
    "n_heads": Rule(("d_model",), lambda v: max(1, v["d_model"] // D_HEAD)),
    "n_kv_heads": Rule(("n_heads",), lambda v: v["n_heads"]),
    "d_head": Rule(("d_model", "n_heads"), _d_head),
    "d_ff": Rule(("d_model", "mlp"), lambda v: d_ff_of(v["d_model"]) if v["mlp"] in GATED else 4 * v["d_model"]),
    "seq_len": Rule(("d_model",), lambda v: _seq_len(v["d_model"], MAX_SEQ_LEN)),
    "max_seq_len": Rule(("seq_len",), lambda v: v["seq_len"]),
    "rows": Rule((*MATRICES, "seq_len"), lambda v: max(1, tokens_per_step_of(_n_tokens(v)) // v["seq_len"])),
    "micro_batch": Rule(("rows",), _micro_batch),
    "n_steps": Rule(
        (*MATRICES, "seq_len", "rows"), lambda v: max(1, round(_n_tokens(v) / (v["rows"] * v["seq_len"])))
    ),
    "adamw_lr": Rule(("d_model",), lambda v: ADAMW_LR_AT_128 * (128 / v["d_model"]) ** 0.5),
    "newton_schulz_steps": Rule(("d_model",), lambda v: 3 if v["d_model"] < 512 else 5),
    "muon_weight_decay": Rule(("n_steps", "muon_lr"), lambda v: 1 / (FORGETTING * v["n_steps"] * v["muon_lr"])),
    "checkpoint_every": Rule(("n_steps",), lambda v: -(-v["n_steps"] // 20)),
    "validate_every": Rule(("n_steps",), lambda v: -(-v["n_steps"] // 8)),
    "n_validation_batches": Rule(("rows", "seq_len"), lambda v: max(1, min(16, 2**21 // (v["rows"] * v["seq_len"])))),
    "log_every": Rule(("n_layers",), lambda v: 1 if v["n_layers"] < 8 else 10),
}
ENCODER_RULES = {
    **RULES,
    "seq_len": Rule(("d_model",), lambda v: _seq_len(v["d_model"], MAX_SEQ_LEN_OF_ENCODERS)),
    "sliding_layers": Rule(("n_layers", "sliding_window"), _local_layers),
}
# A new encoder is a BERT unless another family is asked for.
ENCODER = {**switches_of("bert"), "tie_embeddings": True, "packing": "documents", "document_mask": True}
ENCODER |= {"warmup_fraction": 0.06}


def from_depth(depth: int, family: str | None = None) -> Preset:
    """The dial: `depth` layers, 64 times as wide. ValueError when it is not at least 1."""
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")
    return from_sizes(depth, D_MODEL_PER_LAYER * depth, family)


def from_sizes(n_layers: int, d_model: int, family: str | None = None) -> Preset:
    """The rules at any number of layers and width, for a model that is, like `family`, a decoder or an encoder.

    ValueError when the width is not a multiple of 64.
    """
    if n_layers < 1 or d_model < 1 or d_model % D_HEAD:
        raise ValueError(f"n_layers={n_layers} must be at least 1, d_model={d_model} a multiple of {D_HEAD}")
    is_encoder = is_encoder_family(family)
    values: dict[str, Any] = {"n_layers": n_layers, "d_model": d_model, "mlp": "swiglu", "muon_lr": MUON_LR}
    values |= ENCODER if is_encoder else {"tie_embeddings": True}
    for name, rule in (ENCODER_RULES if is_encoder else RULES).items():
        if "sliding_window" not in rule.inputs:
            values[name] = rule.compute(values)
    return _preset(
        EncoderShape if is_encoder else DecoderShape, values, frozenset(ENCODER_RULES if is_encoder else RULES)
    )


def is_encoder_family(family: str | None) -> bool:
    """Whether models of `family` are encoders. None is the family of a preset without another, a decoder's."""
    return family is not None and objective_of(family) == "masked_tokens"


def _preset(kind: type[DecoderShape | EncoderShape], values: Mapping[str, Any], by_rule: frozenset[str]) -> Preset:
    return Preset(
        shape=kind(**_of_fields(kind, values)), train=TrainConfig(**_of_fields(TrainConfig, values)), by_rule=by_rule
    )


DEMO = Preset(
    shape=DecoderShape(
        n_layers=4, n_heads=4, n_kv_heads=4, d_model=128, d_head=32, d_ff=d_ff_of(128), max_seq_len=128,
        tie_embeddings=True,
    ),
    train=TrainConfig(
        n_steps=2000, rows=8, seq_len=128, micro_batch=8, muon_lr=0.015, muon_momentum=0.9, newton_schulz_steps=3,
        checkpoint_every=100, validate_every=250,
    ),
    by_rule=frozenset(
        ("n_kv_heads", "d_head", "d_ff", "max_seq_len", "micro_batch", "checkpoint_every", "validate_every")
    ),
)  # fmt: skip
DEMO_ENCODER = Preset(
    shape=EncoderShape(
        n_layers=4, n_heads=4, n_kv_heads=4, d_model=128, d_head=32, d_ff=512, max_seq_len=128,
        **_of_fields(EncoderShape, ENCODER),
    ),
    train=dataclasses.replace(DEMO.train, **_of_fields(TrainConfig, ENCODER)),
    by_rule=DEMO.by_rule | {"sliding_layers"},
)  # fmt: skip
PRESETS = {  # of decoders
    "demo": DEMO,
    "small": from_depth(8),
    "gpt2_124m": from_depth(12),
    "gpt2_350m": from_sizes(24, 1024),
}
ENCODER_PRESETS = {"demo": DEMO_ENCODER, "small": from_depth(8, "bert"), "base": from_depth(12, "bert")}
PRESET_NAMES = tuple(dict.fromkeys((*PRESETS, *ENCODER_PRESETS)))


def preset_of(name: str, family: str | None, depth: int | None = None) -> Preset:
    """The preset `name` for models of `family`, or the dial at `depth`. ValueError for a name that the family has
    not; the names are by objective."""
    if depth is not None:
        return from_depth(depth, family)
    presets = ENCODER_PRESETS if is_encoder_family(family) else PRESETS
    if name not in presets:
        raise ValueError(f"preset={name!r} with family={family or 'qwen3'!r}: expected one of {', '.join(presets)}")
    return presets[name]


def changed(preset: Preset, changes: Mapping[str, Any], family: str | None = None) -> Preset:
    """`preset` with other values of some fields, and with what the rules compute from these.

    A field that `changes` sets keeps that value. `family` (a name of FAMILY_SWITCHES) sets the switches that
    make it one; `changes` win over them. ValueError names a field that does not exist, or values that do not fit.
    """
    before = preset.values()
    if unknown := [name for name in changes if name not in before]:
        raise ValueError(f"{unknown[0]}={changes[unknown[0]]!r}: {no_such_setting(unknown[0], before)}")
    given = (switches_of(family) if family is not None else {}) | dict(changes)
    if family in WINDOW and changes.get("n_layers", before["n_layers"]) > 1:  # else there is no local layer
        given = {"sliding_window": WINDOW[family]} | given
    values = before | given
    by_rule = preset.by_rule - given.keys()
    for name, rule in (RULES if isinstance(preset.shape, DecoderShape) else ENCODER_RULES).items():
        inputs = {one: values[one] for one in rule.inputs}
        if name in by_rule and inputs != {one: before[one] for one in rule.inputs} and _are_usable(inputs):
            values[name] = rule.compute(values)
    return _preset(type(preset.shape), values, by_rule)


def _are_usable(inputs: Mapping[str, Any]) -> bool:
    """Whether a rule can compute with them. What it cannot, the configs refuse, or a field has no use for it."""
    return all(value is not None and (isinstance(value, str) or value > 0) for value in inputs.values())
