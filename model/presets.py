"""Named sizes: each a decoder shape and a training plan that fit together.

In: nothing. Out: PRESETS, by name; `shape.with_vocab(n)` makes a whole config once the tokenizer is known.

- demo: 2.0 M tokens, for two CPU cores and a few minutes.
- small: about 30 M parameters with a vocabulary of 8,192; one GPU and some hours.
- gpt2_124m: the size of GPT-2 small with a vocabulary of about 50,300. The vocabulary is never padded: whoever
  trains the tokenizer chooses a multiple of 64 (50,304), which is what a GPU likes.

The feed-forward width is 8/3 of the model's, rounded up to 64: arXiv:2002.05202 section 3 (a gated layer has
three matrices, so that 2/3 of 4 d_model keeps the parameter count). Tokens of the two larger ones: 20 a parameter
(arXiv:2203.15556). Their learning rates are starting points, not measured ones.
"""

from dataclasses import dataclass

from model.config import DecoderShape, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    shape: DecoderShape
    train: TrainConfig


def d_ff_of(d_model: int) -> int:
    """Feed-forward width of SwiGLU for a model width."""
    return -(-8 * d_model // (3 * 64)) * 64


PRESETS = {
    "demo": Preset(
        shape=DecoderShape(
            n_layers=4, n_heads=4, n_kv_heads=4, d_model=128, d_head=32, d_ff=d_ff_of(128), max_seq_len=128
        ),
        train=TrainConfig(n_steps=2000, rows=8, seq_len=128, micro_batch=8),
    ),
    "small": Preset(
        shape=DecoderShape(
            n_layers=8,
            n_heads=8,
            n_kv_heads=8,
            d_model=512,
            d_head=64,
            d_ff=d_ff_of(512),
            max_seq_len=512,
            tie_embeddings=True,
        ),
        train=TrainConfig(
            n_steps=18_000,  # of 32,768 tokens
            rows=64,
            seq_len=512,
            micro_batch=16,
            muon_lr=0.02,
            adamw_lr=0.004,
            checkpoint_every=500,
            validate_every=500,
            log_every=10,
        ),
    ),
    "gpt2_124m": Preset(
        shape=DecoderShape(
            n_layers=12,
            n_heads=12,
            n_kv_heads=12,
            d_model=768,
            d_head=64,
            d_ff=d_ff_of(768),
            max_seq_len=1024,
            tie_embeddings=True,
        ),
        train=TrainConfig(
            n_steps=4750,  # of 524,288 tokens
            rows=512,
            seq_len=1024,
            micro_batch=32,
            muon_lr=0.02,
            adamw_lr=0.003,
            log_every=10,
        ),
    ),
}
