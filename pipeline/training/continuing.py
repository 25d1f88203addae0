"""Trains a model further on documents of one's own: the stage `continue`.

In: the Checkpoint of a base (imported, or trained here) and token shards in the base's own vocabulary. Out: a
Checkpoint folder as of `pretrain`; with tuning = lora the merged model, and the adapter beside it. Steps: the weights
of the base are loaded instead of drawn; every batch has a fixed share of general text, so that the model does not
forget what it could do; training resumes as a pretraining does.

The learning rate rises from 0 again to a peak below that of a pretraining, and falls to 0 (arXiv:2403.08763): what is
new is learned while the rate is high, and what was forgotten meanwhile is partly regained while it falls.
torch is imported where it is used, because Dagster loads this module only for its config.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Lt

from model.data.mixture import Mixture
from model.data.tokenizer import TOKENIZER
from model.network.lora_config import LoraConfig
from model.training.config import TrainConfig
from pipeline.corpus.tokens.tokenizer_files import tokenizer_files, tokenizer_in
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import (
    Count,
    Fraction,
    OptionalPositive,
    Positive,
    check_values,
)
from pipeline.store.shards import link_or_copy
from pipeline.store.store import DEVICE, Outcome, Stage, Work
from pipeline.training import shared_settings as shared
from pipeline.training.pretrain import checked_description, train_to_end

if TYPE_CHECKING:
    from model.network.shape import DecoderConfig, EncoderConfig

LANGUAGE_MODELS = ("decoder", "masked_lm")  # kinds of models that predict tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinueConfig:
    """The settings of a user."""

    domain: Annotated[
        tuple[str, ...],
        "Sources whose documents the model learns; an empty list means all sources that are not in general.",
    ] = ()
    general: Annotated[
        tuple[str, ...],
        "Sources of general text that is mixed in, so that the model does not forget; an empty list means none.",
    ] = ()
    general_share: Annotated[
        float, Ge(0), Lt(1), "Fraction of the training sequences that are general text, if general names sources."
    ] = 0.25
    tuning: Annotated[
        Literal["lora", "full"],
        "Train only small adapters beside the frozen base with lora (arXiv:2106.09685), which needs less memory and"
        " time per token and forgets less (arXiv:2405.09673), or all weights with full.",
    ] = "lora"
    lora_rank: shared.LoraRank = 16
    lora_alpha: shared.LoraAlpha = 32.0
    lora_targets: shared.LoraTargets = ()
    lora_lr: Annotated[Positive, "Peak learning rate of the adapters with tuning = lora."] = 2e-3
    adamw_lr: Annotated[
        Positive, "Peak learning rate with tuning = full of all weights, or of those that Muon does not train."
    ] = 1e-4
    muon_lr: Annotated[
        OptionalPositive,
        "Peak learning rate of the hidden matrices with tuning = full, if Muon trains them; without a value AdamW"
        " does, which takes less time per update.",
    ] = None
    weight_decay: Annotated[
        float, Ge(0), "Decoupled weight decay, multiplied by the learning rate; 0 turns it off. Norms never decay."
    ] = 0.0
    n_steps: Annotated[Count, shared.N_STEPS] = 100
    rows: Annotated[Count, shared.ROWS] = 4
    seq_len: Annotated[Count, "Length of the training sequences in tokens, at most the context of the base."] = 512
    micro_batch: shared.MicroBatch = None
    packing: Annotated[Literal["concatenated", "documents"], shared.PACKING] = "concatenated"
    document_mask: Annotated[bool, shared.DOCUMENT_MASK] = False
    schedule: Annotated[
        Literal["warmup_stable_decay", "cosine", "linear"],
        "Shape of the learning rate schedule after the warmup; linear falls to 0 until the end.",
    ] = "linear"
    warmup_fraction: Annotated[Fraction, shared.WARMUP_FRACTION] = 0.1
    decay_fraction: Annotated[Fraction, shared.DECAY_FRACTION] = 0.5
    skip_spikes: shared.SkipSpikes = None
    activation_checkpointing: Annotated[bool, shared.ACTIVATION_CHECKPOINTING] = False
    deterministic: Annotated[bool, shared.DETERMINISTIC] = False
    devices: shared.Devices = 1
    parallel: shared.Parallel = "ddp"
    seed: Annotated[int, "Seed for new adapters and the order of the data."] = 0
    checkpoint_every: Annotated[Count, shared.CHECKPOINT_EVERY] = 20
    keep_checkpoints: Annotated[Count, shared.KEEP_CHECKPOINTS] = 2
    validate_every: Annotated[Count, "Validate every N updates, on documents of the domain."] = 50
    n_validation_batches: Annotated[Count, shared.N_VALIDATION_BATCHES] = 4

    def __post_init__(self) -> None:
        check_values(self)
        continue_recipe(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedContinue:
    """What is trained on which texts: the fingerprint is computed from it."""

    mixture: Mixture
    lora: LoraConfig | None
    train: TrainConfig


TRAIN_NAMES = (
    *("n_steps", "rows", "seq_len", "micro_batch", "packing", "document_mask", "schedule", "warmup_fraction"),
    *("decay_fraction", "skip_spikes", "activation_checkpointing", "deterministic", "parallel", "seed"),
    *("checkpoint_every", "keep_checkpoints", "validate_every", "n_validation_batches"),
)


def continue_recipe(cfg: ContinueConfig) -> ResolvedContinue:
    """Raises ValueError for values that do not fit together."""
    is_lora = cfg.tuning == "lora"
    train = TrainConfig(
        **{name: getattr(cfg, name) for name in TRAIN_NAMES},
        adamw_lr=cfg.lora_lr if is_lora else cfg.adamw_lr,
        muon_lr=None if is_lora else cfg.muon_lr,
        adamw_weight_decay=cfg.weight_decay,
        muon_weight_decay=cfg.weight_decay,
    )
    lora = LoraConfig(rank=cfg.lora_rank, alpha=cfg.lora_alpha, targets=cfg.lora_targets) if is_lora else None
    share = cfg.general_share if cfg.general else 0.0
    return ResolvedContinue(
        mixture=Mixture(domain=cfg.domain, general=cfg.general, general_share=share), lora=lora, train=train
    )


def continue_training(cfg: ResolvedContinue, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when inputs do not fit or a loss diverges."""
    from model.training import pretraining

    base, tokens = inputs
    checked_description(tokens, tokenizer_in(base))
    plan = pretraining.Pretraining(
        shards=tokens.directory,
        out=work.directory,
        network=network_of(base.directory),
        train=cfg.train,
        made_from={"tokens": tokens.digest, "base": base.digest},
        tokenizer=base.directory / TOKENIZER,
        start_from=base.directory,
        lora=cfg.lora,
        mixture=cfg.mixture,
    )
    n_passes = train_to_end(plan, inputs, work)
    for name in tokenizer_files(base.directory / TOKENIZER):
        link_or_copy(base.directory / TOKENIZER / name, work.directory / TOKENIZER / name)
    return Outcome(
        rows=plan.train.n_steps,
        measures=pretraining.measures(plan, n_passes),
        content=("model.safetensors", "config.json", "tokenizer/*", "adapter/*"),
    )


CONTINUE = Stage(
    name="continue", version=1, function=continue_training, handle=Checkpoint, libraries=("torch", DEVICE)
)  # torch: another version may round differently


def network_of(base: Path) -> "DecoderConfig | EncoderConfig":
    """The network of a base. ValueError where it can predict no tokens."""
    from model.network.registry import read_config

    description, network = read_config(base)
    if description["kind"] not in LANGUAGE_MODELS:
        raise ValueError(
            f"{base}: a model of kind {description['kind']} has no head that predicts tokens, so it can't learn from"
            f" texts alone; choose a base of kind {' or '.join(LANGUAGE_MODELS)}, or fine-tune this one for a task"
        )
    return network
