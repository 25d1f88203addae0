"""Sizes: a decoder shape and a training plan that fit together, by name or by one dial, the depth.

In: a name of PRESETS, or `from_depth(n)`, or `from_sizes(n_layers, d_model)`. Out: a Preset; `shape.with_vocab(n)`
makes a whole config once the tokenizer is known. No rule needs the vocabulary: tokens and batch follow from the
matrices inside the layers, so that a plan is known before the tokenizer is.

The rules, from n_layers and d_model (`from_depth` takes 64 n_layers as width):

- heads of 64, as many keys and values as queries; feed-forward width 8/3 of d_model, rounded up to 64: a gated layer
  has three matrices, so that 2/3 of 4 d_model keeps the parameter count (arXiv:2002.05202 section 3).
- context: the power of two at or above d_model, from 128 to 2048. Attention over T keys costs T / (6 d_model) of what
  the matrices cost (arXiv:2204.02311 appendix B), so that its share stays between a sixth and a third.
- tokens: 20 a weight of the layers (arXiv:2203.15556).
- batch: a power of the tokens with exponent 0.383 (arXiv:2505.13738, independent of the size of the model) through
  2^19 at 12 layers; but at least MIN_STEPS updates, which is what binds below 12 layers. A power of two.
- Muon's learning rate is the same for all: an orthogonal update times sqrt(max(1, rows / columns)) changes what a
  matrix puts out by as much at every width (arXiv:2310.17813). 0.02 at 124 M and 2^19 tokens per step
  (https://kellerjordan.github.io/posts/muon); 0.009 and 0.015 were best, and alike, at 4 layers of 128 and 2^10.
- AdamW's falls with 1/sqrt(d_model), from the rate that was found for 128.
- three steps of Newton-Schulz below a width of 512, where batches are small and they are a fifth of a step; else 5.
- the head is the embedding, as Qwen3's up to 4 B (arXiv:2505.09388 table 1); better at 4 layers of 128, too.
- weight decay of Muon's matrices: so much that they forget over a fifth of the training, 1 / (0.2 n_steps learning
  rate). The time over which weights are averaged, as a share of the training, is what keeps between sizes
  (arXiv:2405.13698), and about a fifth at 20 tokens a weight (arXiv:2505.13738).
- 20 checkpoints and 8 validations a training, of 2^21 tokens at most.

What we measured is the preset demo, on a CPU (docs/log.md); the rules beyond it are what the papers say.

The preset demo is no point of the dial, which would give its layers 17 M tokens: it is what a search found for two
CPU cores and a few minutes (bench/convergence.py).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.hf.families import FAMILIES, NO_BIASES
from model.network.shape import DecoderShape
from model.network.size import n_hidden_matrix_parameters
from model.training.config import TrainConfig

D_MODEL_PER_LAYER = 64
D_HEAD = 64
MIN_SEQ_LEN, MAX_SEQ_LEN = 128, 2048
TOKENS_A_WEIGHT = 20
ANCHOR_TOKENS, ANCHOR_BATCH = 1.7e9, 2**19  # tokens of 12 layers of 768, and a step's
BATCH_EXPONENT = 0.383
MIN_STEPS = 2000
MUON_LR = 0.02
ADAMW_LR_AT_128 = 0.008
FORGETTING = 0.2  # of the steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    shape: DecoderShape
    train: TrainConfig


def from_depth(depth: int) -> Preset:
    """The dial: `depth` layers, 64 times as wide. ValueError when it is not at least 1."""
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")
    return from_sizes(depth, D_MODEL_PER_LAYER * depth)


def from_sizes(n_layers: int, d_model: int) -> Preset:
    """The rules at any number of layers and width. ValueError when the width is not a multiple of 64."""
    if n_layers < 1 or d_model < 1 or d_model % D_HEAD:
        raise ValueError(f"n_layers={n_layers} must be at least 1, d_model={d_model} a multiple of {D_HEAD}")
    seq_len = min(MAX_SEQ_LEN, max(MIN_SEQ_LEN, 1 << (d_model - 1).bit_length()))
    shape = DecoderShape(
        n_layers=n_layers,
        n_heads=d_model // D_HEAD,
        n_kv_heads=d_model // D_HEAD,
        d_model=d_model,
        d_head=D_HEAD,
        d_ff=d_ff_of(d_model),
        max_seq_len=seq_len,
        tie_embeddings=True,
    )
    n_tokens = TOKENS_A_WEIGHT * n_hidden_matrix_parameters(shape.with_vocab(1))
    batch = tokens_a_step_of(n_tokens)
    n_steps = round(n_tokens / batch)
    rows = max(1, batch // seq_len)
    train = TrainConfig(
        n_steps=n_steps,
        rows=rows,
        seq_len=seq_len,
        muon_lr=MUON_LR,
        adamw_lr=ADAMW_LR_AT_128 * (128 / d_model) ** 0.5,
        newton_schulz_steps=3 if d_model < 512 else 5,
        muon_weight_decay=1 / (FORGETTING * n_steps * MUON_LR),
        checkpoint_every=-(-n_steps // 20),
        validate_every=-(-n_steps // 8),
        n_validation_batches=max(1, min(16, 2**21 // batch)),
        log_every=1 if n_layers < 8 else 10,
    )
    return Preset(shape=shape, train=train)


def d_ff_of(d_model: int) -> int:
    """Feed-forward width of SwiGLU for a model width."""
    return -(-8 * d_model // (3 * 64)) * 64


def tokens_a_step_of(n_tokens: int) -> int:
    """Tokens of a global batch, a power of two, for a training on `n_tokens`."""
    by_power = ANCHOR_BATCH * (n_tokens / ANCHOR_TOKENS) ** BATCH_EXPONENT
    return 2 ** max(0, min(round(math.log2(by_power)), math.floor(math.log2(n_tokens / MIN_STEPS))))


PRESETS = {
    "demo": Preset(
        shape=DecoderShape(
            n_layers=4,
            n_heads=4,
            n_kv_heads=4,
            d_model=128,
            d_head=32,
            d_ff=d_ff_of(128),
            max_seq_len=128,
            tie_embeddings=True,
        ),
        train=TrainConfig(
            n_steps=2000,
            rows=8,
            seq_len=128,
            micro_batch=8,
            muon_lr=0.015,
            muon_momentum=0.9,
            newton_schulz_steps=3,
        ),
    ),
    "small": from_depth(8),
    "gpt2_124m": from_depth(12),
    "gpt2_350m": from_sizes(24, 1024),
}


def changed(preset: Preset, changes: Mapping[str, Any], family: str | None = None) -> Preset:
    """`preset` with other values of some fields, and what follows from them. ValueError names what does not fit.

    `family` (a name of model/hf/families.py) sets the switches that make it one; `changes` go before them.
    """
    changes = dict(changes)
    if family is not None:
        changes = switches_of(family) | changes
    if "seq_len" in changes:
        changes.setdefault("max_seq_len", changes["seq_len"])
    if "d_model" in changes or "n_heads" in changes:
        d_model = changes.get("d_model", preset.shape.d_model)
        n_heads = changes.get("n_heads", preset.shape.n_heads)
        if "d_head" not in changes:
            if n_heads < 1 or d_model < 1 or d_model % n_heads:
                raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
            changes["d_head"] = d_model // n_heads
    d_model, mlp = (changes.get(name, getattr(preset.shape, name)) for name in ("d_model", "mlp"))
    if (d_model, mlp) != (preset.shape.d_model, preset.shape.mlp):
        changes.setdefault("d_ff", d_ff_of(d_model) if mlp == "swiglu" else 4 * d_model)
    if "n_heads" in changes:
        changes.setdefault("n_kv_heads", changes["n_heads"])
    if "rows" in changes and changes["rows"] > 0 and preset.train.micro_batch is not None:
        limit = min(changes["rows"], preset.train.micro_batch)
        changes.setdefault("micro_batch", max(n for n in range(1, limit + 1) if changes["rows"] % n == 0))
    return Preset(
        shape=dataclasses.replace(preset.shape, **_of_fields(DecoderShape, changes)),
        train=dataclasses.replace(preset.train, **_of_fields(TrainConfig, changes)),
    )


def switches_of(family: str) -> dict[str, Any]:
    """What makes a decoder one of `family`. ValueError names the families that there are."""
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILIES)}")
    one = FAMILIES[family]
    eps = one.defaults[one.sizes["norm_eps"]]
    return {**NO_BIASES, **one.switches, "norm_eps": eps, **({"tie_embeddings": True} if family == "gpt2" else {})}


def _of_fields(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in changes.items() if name in names}
