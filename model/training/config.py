"""How a model is trained: a frozen dataclass, which checks every rule when it is made.

In: numbers. Out: TrainConfig (batch, learning rates, schedule, when to save). This module imports no torch, so that a
launchpad form or a fingerprint can be made of a config without the time that torch takes to load.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

Schedule = Literal["warmup_stable_decay", "cosine", "linear"]
Packing = Literal["concatenated", "documents"]
PACKINGS = ("concatenated", "documents")
SCHEDULES = ("warmup_stable_decay", "cosine", "linear")
# Of a pretraining's validation, by the objective of its family: it chooses the best checkpoint, lower is better.
VALIDATION_METRIC = {"next_token": "validation_bits_per_byte", "masked_tokens": "validation_masked_perplexity"}
VALIDATION_TOKENS = 2**13  # that are validated at once where the micro-batch is left open
SEEDS = 1 << 63  # torch's generators take the numbers of 64 bits
MAX_THREADS = 1024  # more than a CPU has cores; torch starts as many as it is given, and fails where it cannot

RUNTIME_ONLY = {"identity": False}  # metadata of a field that decides how a run computes, and not which run it is


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. A step is one global batch of `rows` rows and one update of the weights.

    Fields with RUNTIME_ONLY may change between a run and its resume and are not part of its identity: a training that
    ran out of memory continues with a smaller micro_batch. At most roundings depend on them.
    """

    n_steps: int
    rows: int  # rows of a global batch
    seq_len: int  # tokens per row
    # rows that pass through the model at once; divides rows; None = as memory allows
    micro_batch: int | None = field(default=None, metadata=RUNTIME_ONLY)
    # keep only inputs of layers for backward: less memory, a third slower
    activation_checkpointing: bool = field(default=False, metadata=RUNTIME_ONLY)
    # torch.compile of the layers; None = on CUDA, where it works
    compile: bool | None = field(default=None, metadata=RUNTIME_ONLY)
    muon_lr: float | None = 0.03  # peak, hidden matrices; None = AdamW for every weight
    adamw_lr: float = 0.008  # peak; embedding, norms, head
    muon_momentum: float = 0.95  # https://kellerjordan.github.io/posts/muon
    newton_schulz_steps: int = 5  # of Muon: 5, or 3, a tenth faster where batches are small (model/training/optim.py)
    muon_weight_decay: float = 0.0  # decoupled, times the learning rate
    adamw_weight_decay: float = 0.0  # decoupled, times the learning rate; never on norms
    # the peak rate of a layer is that of the layer above times this, and of the embedding that of the first layer
    # (arXiv:1801.06146 section 3.2); 1 = all alike
    layer_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    adamw_eps: float = 1e-10  # far below any gradient, so that rare tokens move as fast as common ones
    schedule: Schedule = "warmup_stable_decay"
    warmup_fraction: float = 0.02  # of n_steps, linear from 0
    # steps that the fractions of both warm-ups refer to; None = n_steps. An extended run keeps the shorter run's
    warmup_horizon: int | None = None
    decay_fraction: float = 0.5  # of n_steps, at the end; only warmup_stable_decay reads it
    final_lr_fraction: float = 0.0  # of the peak, reached after the last step
    batch_warmup_fraction: float = 0.0  # of n_steps: batches of an 8th, a 4th, half of the rows (schedule.py)
    gradient_clip: float | None = 1.0  # L2 norm over all gradients; None = no clipping
    skip_spikes: float | None = None  # updates whose loss or gradient norm is this many deviations above are skipped
    seed: int = 0  # initial weights and order of the data
    packing: Packing = "concatenated"  # rows: windows of all text, or whole spans of documents (data/packing.py)
    mask_fraction: float = 0.15  # of the tokens, which an encoder has to predict (arXiv:1810.04805)
    mask_whole_words: bool = False  # an encoder predicts all tokens of a word or none of them
    document_mask: bool = False  # True: no token sees another document, and positions begin at 0 with each
    checkpoint_every: int = field(default=250, metadata=RUNTIME_ONLY)  # steps
    keep_checkpoints: int = field(default=2, metadata=RUNTIME_ONLY)  # the newest, and the best one beside them
    # steps; the last step is always validated. What is validated chooses no weights: a model is that of the last step
    validate_every: int = field(default=250, metadata=RUNTIME_ONLY)
    n_validation_batches: int = field(default=16, metadata=RUNTIME_ONLY)  # of `rows` rows each
    # steps between two reads of loss and norm from the device; every step is reported
    log_every: int = field(default=1, metadata=RUNTIME_ONLY)
    # kernels that repeat their bits on CUDA too, where a resumed run then ends with the bits of one that was never
    # killed; slower. A CPU always repeats them. Like compile and micro_batch it decides roundings and nothing else
    deterministic: bool = field(default=False, metadata=RUNTIME_ONLY)
    # of several processes: each holds all weights, or a shard of each
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=RUNTIME_ONLY)
    # CPU threads; None = chosen once and stored in the checkpoint; a value that is given at a resume wins
    n_threads: int | None = field(default=None, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number")
        if not -SEEDS <= self.seed < SEEDS:
            raise ValueError(f"seed={self.seed} must be from -2^63 to 2^63 - 1")
        at_least_one = ("n_steps", "rows", "seq_len", "micro_batch", "checkpoint_every", "keep_checkpoints")
        for name in (*at_least_one, "warmup_horizon", "validate_every", "n_validation_batches", "log_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.warmup_horizon is not None and self.warmup_horizon > self.n_steps:
            raise ValueError(f"warmup_horizon={self.warmup_horizon} must not exceed n_steps={self.n_steps}")
        if self.micro_batch is not None and self.rows % self.micro_batch:
            raise ValueError(f"rows={self.rows} is not a multiple of micro_batch={self.micro_batch}")
        for name, allowed in (("parallel", ("ddp", "fsdp")), ("schedule", SCHEDULES), ("packing", PACKINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.newton_schulz_steps not in (3, 5):
            raise ValueError(f"newton_schulz_steps={self.newton_schulz_steps} must be 3 or 5")
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction", "batch_warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.schedule == "warmup_stable_decay" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} and decay_fraction={self.decay_fraction} exceed 1 together"
            )
        for name in ("muon_lr", "adamw_lr", "adamw_eps", "gradient_clip", "skip_spikes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1")
        if not 0 < self.mask_fraction < 1:
            raise ValueError(f"mask_fraction={self.mask_fraction} must lie between 0 and 1, without both")
        for name in ("muon_momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1, without 1")
        for name in ("muon_weight_decay", "adamw_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.n_threads is not None and not 1 <= self.n_threads <= MAX_THREADS:
            raise ValueError(f"n_threads={self.n_threads} must be from 1 to {MAX_THREADS:,}, or None to choose it")

    @property
    def tokens_per_step(self) -> int:
        """Of a whole batch; with a batch warm-up the first ones are smaller."""
        return self.rows * self.seq_len

    @property
    def validation_rows(self) -> int:
        """Rows that are validated at once: without gradients little has to be kept of them."""
        return self.micro_batch or max(1, min(self.rows, VALIDATION_TOKENS // self.seq_len))
