"""What a decoder looks like and how it is trained: frozen dataclasses, every rule checked where they are made.

In: numbers. Out: DecoderConfig (switches that make it a GPT-2, a Llama or a Qwen3; the default is Qwen3) and
TrainConfig (batch, learning rates, schedule, when to save). Imports no torch, so that a launchpad form or a
fingerprint can be made of them for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Schedule = Literal["warmup_stable_decay", "cosine", "linear"]
Packing = Literal["concatenated", "documents"]
PACKINGS = ("concatenated", "documents")
SCHEDULES = ("warmup_stable_decay", "cosine", "linear")
BEST = "validation_bits_per_byte"  # of a pretraining's validation: chooses the best checkpoint
VALIDATION_TOKENS = 2**13  # that are judged at once where the micro-batch is left open
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


HOW = {"identity": False}  # metadata of a field that says how a run computes, and not what it is


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. A step is one global batch of `rows` rows and one update of the weights.

    Fields with HOW may change between a run and its resume, and do not count when two runs are told apart: a training
    that ran out of memory goes on with a smaller micro_batch. At most roundings depend on them.
    """

    n_steps: int
    rows: int  # rows of a global batch
    seq_len: int  # tokens per row
    # rows that pass through the model at once; divides rows; None = as memory allows
    micro_batch: int | None = field(default=None, metadata=HOW)
    # keep only inputs of layers for backward: less memory, a third slower
    activation_checkpointing: bool = field(default=False, metadata=HOW)
    # torch.compile of the layers; None = on CUDA, where it works
    compile: bool | None = field(default=None, metadata=HOW)
    muon_lr: float | None = 0.03  # peak, hidden matrices; None = AdamW for every weight
    adamw_lr: float = 0.008  # peak; embedding, norms, head
    muon_momentum: float = 0.95  # https://kellerjordan.github.io/posts/muon
    newton_schulz_steps: int = 5  # of Muon: 5, or 3, a tenth faster where batches are small (model/training/optim.py)
    muon_weight_decay: float = 0.0  # decoupled, times the learning rate
    adamw_weight_decay: float = 0.0  # decoupled, times the learning rate; never on norms
    beta1: float = 0.9
    beta2: float = 0.95
    adamw_eps: float = 1e-10  # far below any gradient, so that rare tokens move as fast as common ones
    schedule: Schedule = "warmup_stable_decay"
    warmup_fraction: float = 0.02  # of n_steps, linear from 0
    decay_fraction: float = 0.5  # of n_steps, at the end; only warmup_stable_decay reads it
    final_lr_fraction: float = 0.0  # of the peak, reached after the last step
    batch_warmup_fraction: float = (
        0.0  # of n_steps: batches of an 8th, a 4th, half of the rows (model/training/schedule.py)
    )
    gradient_clip: float | None = 1.0  # L2 norm over all gradients; None = no clipping
    skip_spikes: float | None = None  # updates whose loss or gradient lies so many deviations above are left out
    seed: int = 0  # initial weights and order of the data
    packing: Packing = (
        "concatenated"  # rows are windows of all text, or whole pieces of documents (model/data/packing.py)
    )
    document_mask: bool = False  # True: no token sees another document, and positions begin at 0 with each
    checkpoint_every: int = field(default=250, metadata=HOW)  # steps
    keep_checkpoints: int = field(default=2, metadata=HOW)  # the newest so many, and the best one beside them
    # steps; the last step is always validated. What is validated chooses no weights: a model is that of the last step
    validate_every: int = field(default=250, metadata=HOW)
    n_validation_batches: int = field(default=16, metadata=HOW)  # of `rows` rows each
    # steps between two reads of loss and norm from the device; every step is reported
    log_every: int = field(default=1, metadata=HOW)
    # of several processes: each holds all weights, or a shard of each
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=HOW)
    # CPU threads; None = chosen once and stored in the checkpoint
    n_threads: int | None = field(default=None, metadata=HOW)

    def __post_init__(self) -> None:
        at_least_one = ("n_steps", "rows", "seq_len", "micro_batch", "checkpoint_every", "keep_checkpoints")
        for name in (*at_least_one, "validate_every", "n_validation_batches", "log_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.micro_batch is not None and self.rows % self.micro_batch:
            raise ValueError(f"rows={self.rows} is not a multiple of micro_batch={self.micro_batch}")
        if self.parallel not in ("ddp", "fsdp"):
            raise ValueError(f"parallel={self.parallel!r} must be one of ddp, fsdp")
        if self.newton_schulz_steps not in (3, 5):
            raise ValueError(f"newton_schulz_steps={self.newton_schulz_steps} must be 3 or 5")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} must be one of {', '.join(SCHEDULES)}")
        if self.packing not in PACKINGS:
            raise ValueError(f"packing={self.packing!r} must be one of {', '.join(PACKINGS)}")
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction", "batch_warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} exceed 1 together"
            )
        for name in ("muon_lr", "adamw_lr", "adamw_eps", "gradient_clip", "skip_spikes"):
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
        """Of a whole batch; with a batch warm-up the first ones are smaller."""
        return self.rows * self.seq_len

    @property
    def validation_rows(self) -> int:
        """Rows that are judged at once: without gradients little has to be kept of them."""
        return self.micro_batch or max(1, min(self.rows, VALIDATION_TOKENS // self.seq_len))
