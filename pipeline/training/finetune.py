"""Fine-tunes a pretrained decoder or encoder for a task: the stage `finetune`.

In: a base Checkpoint, labelled examples, and the `Objective` of a kind of task. Out: a Checkpoint folder:
model.safetensors, config.json (shape, labels), tokenizer/, curve.jsonl and the last checkpoint. The training itself
is that of model/training/finetuning.py; this stage reads the splits, reports to the observer, counts texts that are
cut, and writes what the store keeps. The validation split is only measured, the test split is never read.

torch is imported where it is used, because Dagster loads this module only for its config.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from annotated_types import Ge

from model.data.examples import EncodedExamples, Encoder
from model.training.finetune_settings import FinetuneSettings
from pipeline.corpus.tokens.tokenizer_files import tokenizer_files
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import Count, Fraction, Positive, check_values
from pipeline.store.shards import link_or_copy
from pipeline.store.store import DEVICE, NOT_IDENTITY, Outcome, Stage, Work
from pipeline.training import shared_settings as shared
from pipeline.training.pace import paced

if TYPE_CHECKING:
    from torch import nn

    from model.network.registry import Network
    from model.training.loss import LossFunction

VERSION = 5
ORDERED_SINCE = 3  # the first version whose batches hold the examples that they hold now
DEFAULTS = FinetuneSettings()
WORTH_WARNING = 0.01  # fraction of the training texts that are cut
log = logging.getLogger(__name__)


class Objective(Protocol):
    """The training objective of a kind of task."""

    identity: str  # part of the fingerprint that distinguishes its outputs from those of other kinds

    def encode(
        self, examples: Shards, split: str, tokenizer: Encoder, max_tokens: int, truncation_side: str
    ) -> EncodedExamples: ...

    def network(self, cfg: Any, base: "Network", examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        """The network before its first step, and its config.json.

        With cfg.initialisation "random" only the shape of the base is used.
        """
        ...

    def loss(self, cfg: Any) -> "LossFunction":
        """A function of network and batch that returns the summed loss and the number of targets in the sum.

        A sum and a count keep accumulation, packing and several devices exact.
        """
        ...

    def validate(self, network: "nn.Module", encoded: Any) -> Mapping[str, float]:
        """validation_loss (nats per target) and any other metrics of the network."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of fine-tuning; a kind of task adds its own. Defaults are those of
    model/training/finetune_settings.py."""

    initialisation: Annotated[
        Literal["pretrained", "random"],
        "Start from the pretrained weights, or from random ones, to see what pretraining is worth.",
    ] = DEFAULTS.initialisation
    tuning: Annotated[
        Literal["full", "lora"],
        "Train all weights, or with lora (arXiv:2106.09685) only small adapters and the new head beside the frozen"
        " base: frozen weights need no gradients and no optimizer state, and a step takes less time.",
    ] = DEFAULTS.tuning
    lora_rank: shared.LoraRank = DEFAULTS.lora_rank
    lora_alpha: shared.LoraAlpha = DEFAULTS.lora_alpha
    lora_targets: shared.LoraTargets = DEFAULTS.lora_targets
    lora_lr: Annotated[
        Positive,
        "Peak learning rate of adapters and head with tuning = lora; muon_lr and adamw_lr are not used then.",
    ] = DEFAULTS.lora_lr
    epochs: Annotated[Count, "Number of passes over the training examples."] = DEFAULTS.epochs
    rows: Annotated[Count, "Number of examples per update."] = DEFAULTS.rows
    max_tokens: Annotated[
        int | None,
        Ge(2),
        "Largest number of tokens per text, including the end-of-text token at its start; without a value the context"
        " of the base model.",
    ] = DEFAULTS.max_tokens
    truncation_side: Annotated[
        Literal["right", "left"],
        "Side of a text with more than max_tokens tokens that is not read: right is its end, left its beginning.",
    ] = DEFAULTS.truncation_side
    muon_lr: Annotated[Positive, "Peak learning rate of the hidden matrices, which Muon trains."] = DEFAULTS.muon_lr
    adamw_lr: Annotated[Positive, "Peak learning rate of embedding, norms and head, which AdamW trains."] = (
        DEFAULTS.adamw_lr
    )
    muon_weight_decay: Annotated[
        float,
        Ge(0),
        "Decoupled weight decay of the hidden matrices, multiplied by the learning rate; 0 turns it off.",
    ] = DEFAULTS.muon_weight_decay
    adamw_weight_decay: Annotated[
        float,
        Ge(0),
        "Decoupled weight decay of embedding and head, multiplied by the learning rate; 0 turns it off. Norms are"
        " never decayed.",
    ] = DEFAULTS.adamw_weight_decay
    warmup_fraction: Annotated[Fraction, shared.WARMUP_FRACTION] = DEFAULTS.warmup_fraction
    seed: Annotated[int, "Seed for new weights and the order of the examples."] = DEFAULTS.seed
    validate_every: Annotated[Count, "Evaluate on the validation split every N updates."] = field(
        default=DEFAULTS.validate_every, metadata=NOT_IDENTITY
    )
    checkpoint_every: Annotated[Count, shared.CHECKPOINT_EVERY] = field(
        default=DEFAULTS.checkpoint_every, metadata=NOT_IDENTITY
    )
    deterministic: Annotated[bool, shared.DETERMINISTIC] = field(
        default=DEFAULTS.deterministic, metadata=NOT_IDENTITY
    )

    def __post_init__(self) -> None:
        check_values(self)
        self.settings()

    def settings(self) -> FinetuneSettings:
        """The same settings as model/ takes them. Raises ValueError for one that breaks a rule."""
        names = [one.name for one in dataclasses.fields(FinetuneSettings) if hasattr(self, one.name)]
        return FinetuneSettings(**{name: getattr(self, name) for name in names})


def finetune(kind: Objective, cfg: FinetuneConfig, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when base and examples do not fit."""
    from model.training.finetuning import Task, job_of, load_base
    from model.training.finetuning import finetune as run_to_end
    from model.training.loop import Interrupted

    checkpoint, examples = inputs
    settings, base = cfg.settings(), load_base(checkpoint.directory)
    max_tokens = base.max_tokens(settings)
    training, held_out = (
        kind.encode(examples, split, base.tokenizer, max_tokens, cfg.truncation_side)
        for split in ("train", "validation")
    )
    warn_of_cuts(cfg, training, max_tokens, base.network.cfg.max_seq_len)
    network, description = kind.network(cfg, base.network, examples)
    task = Task(
        network=network,
        description=description,
        training=training,
        loss_function=kind.loss(cfg),
        validate=lambda network: kind.validate(network, held_out),
    )
    job = job_of(base, task, settings, {"base": checkpoint.digest, "examples": examples.digest})
    reported = {name: value for name, value in job.description.items() if name not in ("kind", "model")}
    params = dataclasses.asdict(cfg) | {"n_steps": job.cfg.n_steps, **reported}
    work.observer.started(work.fingerprint, params, inputs)
    try:
        progress = paced(lambda done, total: work.progress(done, total, "steps"))
        run_to_end(work.directory, job, work.observer, progress)
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    for name in tokenizer_files(checkpoint.directory / "tokenizer"):
        link_or_copy(checkpoint.directory / "tokenizer" / name, work.directory / "tokenizer" / name)
    return Outcome(
        rows=job.cfg.n_steps,
        measures={
            **kind.validate(job.model, held_out),
            "train_examples": len(training.ids),
            **cuts({"train": training, "validation": held_out}),
        },
        content=("model.safetensors", "config.json", "tokenizer/*", "adapter/*"),
    )


def cuts(encoded: Mapping[str, EncodedExamples]) -> dict[str, float]:
    """Per split the number and the fraction of examples of which a part is not read."""
    return {
        name: value
        for split, examples in encoded.items()
        for name, value in (
            (f"{split}_n_cut", examples.n_cut),
            (f"{split}_cut_fraction", examples.n_cut / len(examples.ids)),
        )
    }


def warn_of_cuts(cfg: FinetuneConfig, training: EncodedExamples, max_tokens: int, context: int) -> None:
    """Few texts that are cut are normal in real data: they are logged, but do not warn."""
    if training.n_cut:
        log.log(
            logging.WARNING if training.n_cut > WORTH_WARNING * len(training.ids) else logging.INFO,
            "longer than %d tokens, so that their %s are not read: %s of %s training texts; %s",
            max_tokens,
            "ends" if cfg.truncation_side == "right" else "beginnings",
            f"{training.n_cut:,}",
            f"{len(training.ids):,}",
            longer_texts(max_tokens, context),
        )


def longer_texts(max_tokens: int, context: int) -> str:
    """What to do about texts that are cut."""
    raised = (
        f"raise max_tokens (the base reads up to {context})"
        if max_tokens < context
        else "train the base with a longer context (max_seq_len)"
    )
    return f'{raised}, shorten the texts, or set truncation_side to "left" to read their ends'


def finetune_stage(kind: Objective) -> Stage:
    """The stage of a kind of task. torch is one of its libraries, because another version may round differently."""
    function: Callable[..., Outcome] = partial(finetune, kind)
    return Stage(
        name="finetune",
        version=VERSION,
        function=function,
        handle=Checkpoint,
        libraries=(
            "numpy",
            "regex",
            "tiktoken",
            "tokenizers",
            "torch",
            DEVICE,
        ),  # another version may round, draw or split differently
        variant=kind.identity,
    )


def random_baseline(cfg: FinetuneConfig) -> FinetuneConfig:
    """The same training without pretraining, with the learning rates that were best for it on validation data."""
    return dataclasses.replace(cfg, initialisation="random", tuning="full")
