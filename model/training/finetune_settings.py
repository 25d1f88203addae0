"""Settings of fine-tuning, and the training plan that follows from them.

In: numbers of a user. Out: FinetuneSettings, every rule checked where it is made, and the TrainConfig for a number of
examples. Imports no torch, so that a launchpad form or a fingerprint is made without it.
"""

from dataclasses import dataclass
from typing import Literal

from model.data.examples import n_batches
from model.network.lora_config import LoraConfig
from model.training.config import TrainConfig

LARGEST_MICRO_BATCH = 256  # rows that pass through the model at once
ALIKE = (  # of both configs
    "muon_lr", "adamw_lr", "muon_weight_decay", "adamw_weight_decay", "warmup_fraction", "seed", "checkpoint_every",
    "validate_every", "deterministic",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """Settings of fine-tuning. The defaults were chosen on the validation split of the sarcasm headlines."""

    initialisation: Literal["pretrained", "random"] = "pretrained"  # random shows what pretraining is worth
    tuning: Literal["full", "lora"] = "full"  # lora: adapters and a new head; the base is frozen (arXiv:2106.09685)
    lora_rank: int = 8
    lora_alpha: float = 16.0  # the output of an adapter is multiplied by alpha / rank
    lora_targets: tuple[str, ...] = ()  # last parts of names of linear layers; none = all of the blocks
    lora_lr: float = 0.001  # peak; adapters and head, instead of muon_lr and adamw_lr
    epochs: int = 2
    rows: int = 128  # examples per update
    max_tokens: int | None = None  # per text, with its end-of-text token; None = the context of the base
    truncation_side: Literal["right", "left"] = "right"  # the side of a longer text that is not read
    muon_lr: float = 0.02  # peak, hidden matrices
    adamw_lr: float = 0.004  # peak; embedding, norms, head
    muon_weight_decay: float = 0.0  # decoupled, times the learning rate
    adamw_weight_decay: float = 0.0  # decoupled, times the learning rate; never on norms
    warmup_fraction: float = 0.1  # of the updates, linear from 0
    label_smoothing: float = 0.0  # probability spread evenly over all labels (arXiv:1512.00567)
    seed: int = 0  # new weights and the order of the examples
    validate_every: int = 200  # updates
    checkpoint_every: int = 200  # updates
    deterministic: bool = False  # on a GPU: only kernels that repeat their bits, which is slower

    def __post_init__(self) -> None:
        options = {"initialisation": ("pretrained", "random"), "truncation_side": ("right", "left")}
        options["tuning"] = ("full", "lora")
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        for name, least in (("epochs", 1), ("rows", 1), ("max_tokens", 2)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be from 0 to 1, without 1")
        if self.lora is not None and self.initialisation == "random":
            raise ValueError("tuning='lora' needs a trained base, got initialisation='random'; set tuning='full'")
        train_config(self, n_examples=self.rows)

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained; None = all weights are."""
        if self.tuning == "full":
            return None
        return LoraConfig(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets)


def train_config(cfg: FinetuneSettings, n_examples: int) -> TrainConfig:
    """The plan for `n_examples`. Raises ValueError for a setting that breaks a rule."""
    rows = min(cfg.rows, n_examples)
    # AdamW alone for adapters: they are factors of a matrix, whose gradients Muon would make orthogonal one by one
    rates = {"muon_lr": None, "adamw_lr": cfg.lora_lr} if cfg.tuning == "lora" else {}
    return TrainConfig(
        n_steps=cfg.epochs * n_batches(n_examples, rows),
        rows=rows,
        seq_len=1,  # for token windows; examples have their own lengths
        micro_batch=max(n for n in range(1, min(rows, LARGEST_MICRO_BATCH) + 1) if rows % n == 0),
        beta2=0.98,  # the runs are short: with 0.999 the first gradients of the new head would dominate too long
        schedule="linear",
        decay_fraction=0.0,
        keep_checkpoints=1,
        **{name: getattr(cfg, name) for name in ALIKE} | rates,
    )
