"""What a decoder looks like and how it is trained: frozen dataclasses, every rule checked where they are made.

In: numbers. Out: DecoderConfig (Qwen3-shaped: RMSNorm, rotary positions, QK-norm, grouped heads, SwiGLU) and
TrainConfig (batch, learning rates, schedule, when to save). Imports no torch, so that a launchpad form or a
fingerprint can be made of them for nothing.
"""

from dataclasses import asdict, dataclass
from typing import Literal

Schedule = Literal["warmup_stable_decay", "cosine", "linear"]
SCHEDULES = ("warmup_stable_decay", "cosine", "linear")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """A Qwen3 decoder (arXiv:2505.09388) before its tokenizer is known; behind each field Hugging Face's name."""

    n_layers: int  # num_hidden_layers
    n_heads: int  # num_attention_heads, of queries
    n_kv_heads: int  # num_key_value_heads; divides n_heads
    d_model: int  # hidden_size
    d_head: int  # head_dim; even, independent of d_model
    d_ff: int  # intermediate_size, of SwiGLU
    max_seq_len: int  # max_position_embeddings, tokens
    rope_theta: float = 10_000.0  # base of the rotary wavelengths, arXiv:2104.09864
    norm_eps: float = 1e-6  # rms_norm_eps
    tie_embeddings: bool = False  # tie_word_embeddings: the head reuses the embedding

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_ff", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}")
        if self.d_head % 2:
            raise ValueError(
                f"d_head={self.d_head} must be even: rotary positions turn its halves against each other"
            )
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")

    def with_vocab(self, vocab_size: int) -> "DecoderConfig":
        return DecoderConfig(vocab_size=vocab_size, **asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(DecoderShape):
    """A whole decoder: its shape and the tokenizer's vocabulary size."""

    vocab_size: int

    def __post_init__(self) -> None:
        DecoderShape.__post_init__(self)
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. A step is one global batch of `rows` rows and one update of the weights."""

    n_steps: int
    rows: int  # rows of a global batch
    seq_len: int  # tokens a row
    micro_batch: int  # rows that pass through the model at once; divides rows
    muon_lr: float | None = 0.03  # peak, hidden matrices; None = AdamW for every weight
    adamw_lr: float = 0.008  # peak; embedding, norms, head
    muon_momentum: float = 0.95  # https://kellerjordan.github.io/posts/muon
    muon_weight_decay: float = 0.0  # decoupled, times the learning rate
    adamw_weight_decay: float = 0.0  # decoupled, times the learning rate; never on norms
    beta1: float = 0.9
    beta2: float = 0.95
    adamw_eps: float = 1e-10  # far below any gradient, so that rare tokens move as fast as common ones
    schedule: Schedule = "warmup_stable_decay"
    warmup_fraction: float = 0.02  # of n_steps, linear from 0
    decay_fraction: float = 0.5  # of n_steps, at the end; only warmup_stable_decay reads it
    final_lr_fraction: float = 0.0  # of the peak, reached after the last step
    gradient_clip: float | None = 1.0  # L2 norm over all gradients; None = no clipping
    seed: int = 0  # initial weights and order of the data
    checkpoint_every: int = 250  # steps
    keep_checkpoints: int = 2  # the newest so many, and the best one beside them
    validate_every: int = 250  # steps; the last step is always validated
    n_validation_batches: int = 16  # of `rows` rows each
    log_every: int = 1  # steps between two reads of loss and norm from the device; every step is reported
    n_threads: int | None = None  # CPU threads; None = chosen once and stored in the checkpoint

    def __post_init__(self) -> None:
        at_least_one = ("n_steps", "rows", "seq_len", "micro_batch", "checkpoint_every", "keep_checkpoints")
        for name in (*at_least_one, "validate_every", "n_validation_batches", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.rows % self.micro_batch:
            raise ValueError(f"rows={self.rows} is not a multiple of micro_batch={self.micro_batch}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} must be one of {', '.join(SCHEDULES)}")
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} exceed 1 together"
            )
        for name in ("muon_lr", "adamw_lr", "adamw_eps", "gradient_clip"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("muon_momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1, without 1")
        for name in ("muon_weight_decay", "adamw_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.n_threads is not None and self.n_threads < 1:
            raise ValueError(f"n_threads={self.n_threads} must be at least 1, or None to choose it")

    @property
    def tokens_a_step(self) -> int:
        return self.rows * self.seq_len
