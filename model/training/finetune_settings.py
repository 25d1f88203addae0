"""Settings of fine-tuning, and the training plan that follows from them.

In: numbers of a user; settings that are left open are None. Out: FinetuneSettings, every rule checked where it is
made; `resolved`, the same without open ones, which follow from the width of the base and the number of examples; and
the TrainConfig. Imports no torch, so that a launchpad form or a fingerprint is made without it.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from model.data.augment import Augmentation
from model.data.examples import n_batches
from model.network.lora_config import LoraConfig
from model.training.config import TrainConfig
from model.training.selection import Selection

LARGEST_MICRO_BATCH = 256  # rows that pass through the model at once
# Bases that are narrower are trained here, with Muon, and go on with it at rates that were tuned for them. Wider ones
# are usually weights made elsewhere with AdamW, which go on with AdamW: with another optimizer than that of the
# pretraining a fine-tuning gains less (arXiv:2502.16982 section 3.5).
WIDE = 256
# The rate falls with the width, as in arXiv:2203.03466: 1e-4 for a width of 384, 5e-5 for 768, where
# arXiv:1810.04805 (appendix A.3) has 2e-5 to 5e-5.
ADAMW_LR_TIMES_WIDTH = 0.0384
OF_NARROW_BASE: dict[str, Any] = {"optimizer": "muon", "epochs": 2, "rows": 128, "muon_lr": 0.02, "adamw_lr": 0.004}
OF_WIDE_BASE: dict[str, Any] = {"optimizer": "adamw", "epochs": 3, "rows": 32, "muon_lr": 0.02}
# A few hundred examples are read more often, in smaller batches: with three passes a new head has hardly moved
# (arXiv:2006.04884 sections 5 and 6; arXiv:2006.05987 section 5).
LEAST_UPDATES, MOST_EPOCHS = 200, 20
LEAST_BATCHES, LEAST_ROWS = 16, 8  # of an epoch, of a batch
VALIDATIONS_PER_EPOCH = 4  # where they choose the weights
ALIKE = (  # of both configs
    "muon_weight_decay", "adamw_weight_decay", "warmup_fraction", "seed", "checkpoint_every", "validate_every",
    "deterministic",
)  # fmt: skip
OPTIONS = {
    "initialisation": ("pretrained", "random"),
    "tuning": ("full", "lora", "head"),
    "optimizer": ("muon", "adamw", None),
    "truncation_side": ("right", "left"),
    "keep": ("best", "last", None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """Settings of fine-tuning. None = as `resolved` has it."""

    initialisation: Literal["pretrained", "random"] = "pretrained"  # random shows what pretraining is worth
    # full: all weights; lora: adapters and the head, beside a frozen base (arXiv:2106.09685); head: the head alone
    tuning: Literal["full", "lora", "head"] = "full"
    lora_rank: int = 8
    lora_alpha: float = 16.0  # the output of an adapter is multiplied by alpha / rank
    lora_targets: tuple[str, ...] = ()  # last parts of names of linear layers; none = all of the blocks
    lora_lr: float = 0.001  # peak; adapters and head, instead of muon_lr and adamw_lr
    head_lr: float = 0.001  # peak; the head with tuning = head, instead of muon_lr and adamw_lr
    layer_decay: float | None = None  # the rate of a layer = that of the layer above times this; None = all alike
    epochs: int | None = None
    rows: int | None = None  # examples per update
    max_tokens: int | None = None  # per text, with its end-of-text token; None = the context of the base
    truncation_side: Literal["right", "left"] = "right"  # the side of a longer text that is not read
    optimizer: Literal["muon", "adamw"] | None = None  # muon: for hidden matrices, AdamW for the rest; adamw: for all
    muon_lr: float | None = None  # peak, hidden matrices; resolved with adamw: None
    adamw_lr: float | None = None  # peak; embedding, norms, head
    muon_weight_decay: float = 0.0  # decoupled, times the learning rate
    adamw_weight_decay: float = 0.0  # decoupled, times the learning rate; never on norms
    warmup_fraction: float = 0.1  # of the updates, linear from 0
    label_smoothing: float = 0.0  # probability spread evenly over all labels (arXiv:1512.00567)
    patience: int | None = None  # validations in a row without improvement that end the training
    keep: Literal["best", "last"] | None = (
        None  # the weights that are the result; None = best with patience, else last
    )
    validations_per_epoch: int | None = None  # that choose the best weights
    augment_typos: float = 0.0  # probability of a typing error per word, new in every epoch
    augment_case: float = 0.0  # probability per text that its case changes
    augment_word_dropout: float = 0.0  # probability per word that it is left out
    seed: int = 0  # new weights, the order of the examples, and what augmentation draws
    validate_every: int = 200  # updates; with keep = best validations_per_epoch decides
    checkpoint_every: int = 200  # updates
    deterministic: bool = False  # on a GPU: only kernels that repeat their bits, which is slower

    def __post_init__(self) -> None:
        for name, allowed in OPTIONS.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(option for option in allowed if option is not None)
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {known}")
        least = {"epochs": 1, "rows": 1, "max_tokens": 2, "patience": 1, "validations_per_epoch": 1}
        for name, minimum in least.items():
            if getattr(self, name) is not None and getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {minimum}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be from 0 to 1, without 1")
        self._check_together()
        _ = self.lora, self.augmentation  # which check their own values
        train_config(resolved(self, d_model=1), n_examples=1)

    def _check_together(self) -> None:
        """Raises ValueError for settings of which one makes another meaningless."""
        if self.tuning != "full" and self.initialisation == "random":
            raise ValueError(
                f"tuning={self.tuning!r} needs a trained base, got initialisation='random'; set tuning='full'"
            )
        if self.tuning == "head" and self.layer_decay is not None:
            raise ValueError(
                f"layer_decay={self.layer_decay} has no effect with tuning='head', which trains no layer"
            )
        if self.optimizer == "adamw" and self.muon_lr is not None:
            raise ValueError(f"muon_lr={self.muon_lr} has no effect with optimizer='adamw'; set adamw_lr")
        if self.keep == "last" and self.patience is not None:
            raise ValueError(f"patience={self.patience} ends a training some time after its best; set keep='best'")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained; None = there are none."""
        if self.tuning != "lora":
            return None
        return LoraConfig(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(typos=self.augment_typos, case=self.augment_case, word_dropout=self.augment_word_dropout)


def resolved(cfg: FinetuneSettings, d_model: int, n_examples: int | None = None) -> FinetuneSettings:
    """`cfg` with every open setting as it follows from the width of the base and the number of examples, None = many;
    what is set stays."""
    of_base = OF_NARROW_BASE
    if d_model >= WIDE:
        of_base = OF_WIDE_BASE | {"adamw_lr": float(f"{ADAMW_LR_TIMES_WIDTH / d_model:.3g}")}
    optimizer = cfg.optimizer or (of_base["optimizer"] if cfg.muon_lr is None else "muon")
    keep = cfg.keep or ("last" if cfg.patience is None else "best")
    follows = (
        of_base
        | _for_few(of_base, cfg.rows, n_examples)
        | {
            "optimizer": optimizer,
            "muon_lr": of_base["muon_lr"] if optimizer == "muon" else None,
            "layer_decay": None if cfg.tuning == "head" else 1.0,
            "keep": keep,
            "validations_per_epoch": VALIDATIONS_PER_EPOCH if keep == "best" else None,
        }
    )
    open_ones = {name: one for name, one in follows.items() if getattr(cfg, name) is None and one is not None}
    return replace(cfg, **open_ones) if open_ones else cfg


def _for_few(of_base: dict[str, Any], rows: int | None, n_examples: int | None) -> dict[str, int]:
    """Rows of a batch and epochs, in which even a few examples give LEAST_UPDATES, or MOST_EPOCHS are full."""
    if not n_examples:
        return {}
    few: int = min(of_base["rows"], max(LEAST_ROWS, n_examples // LEAST_BATCHES))
    rows = few if rows is None else rows
    enough = -(-LEAST_UPDATES // n_batches(n_examples, rows))
    return {"rows": rows, "epochs": max(of_base["epochs"], min(MOST_EPOCHS, enough))}


def train_config(cfg: FinetuneSettings, n_examples: int) -> TrainConfig:
    """The plan of resolved settings for `n_examples`. Raises ValueError for a setting that breaks a rule."""
    assert cfg.rows is not None and cfg.epochs is not None and cfg.adamw_lr is not None
    rows = min(cfg.rows, n_examples)
    # AdamW alone for adapters: they are factors of a matrix, whose gradients Muon would make orthogonal one by one
    rates = {
        "full": {"muon_lr": cfg.muon_lr, "adamw_lr": cfg.adamw_lr},
        "lora": {"muon_lr": None, "adamw_lr": cfg.lora_lr},
        "head": {"muon_lr": None, "adamw_lr": cfg.head_lr},
    }
    plan = TrainConfig(
        n_steps=cfg.epochs * n_batches(n_examples, rows),
        rows=rows,
        seq_len=1,  # for token windows; examples have their own lengths
        micro_batch=max(n for n in range(1, min(rows, LARGEST_MICRO_BATCH) + 1) if rows % n == 0),
        beta2=0.98,  # the runs are short: with 0.999 the first gradients of the new head would dominate too long
        layer_decay=1.0 if cfg.layer_decay is None else cfg.layer_decay,
        schedule="linear",
        decay_fraction=0.0,
        keep_checkpoints=1,
        **{name: getattr(cfg, name) for name in ALIKE},
        **rates[cfg.tuning],
    )
    if cfg.keep != "best":
        return plan
    assert cfg.validations_per_epoch is not None
    return replace(plan, validate_every=max(1, n_batches(n_examples, rows) // cfg.validations_per_epoch))


def selection(cfg: FinetuneSettings, metric: str, *, higher_is_better: bool) -> Selection:
    """How validations choose the weights of resolved settings."""
    return Selection(
        metric=metric, higher_is_better=higher_is_better, keeps_best=cfg.keep == "best", patience=cfg.patience
    )
