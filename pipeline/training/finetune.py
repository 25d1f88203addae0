"""Fine-tunes a pretrained decoder or encoder for a task: the stage `finetune`.

In: a base Checkpoint, labelled examples, and the `Objective` of a kind of task. Out: a Checkpoint folder:
model.safetensors, config.json (shape, labels), tokenizer/, curve.jsonl and the last checkpoint. The training itself
is that of model/training/finetuning.py; this stage reads the splits, reports to the observer, counts texts that are
cut, and writes what the store keeps. The validation split is only measured, the test split is never read.

torch is imported where it is used, because Dagster loads this module only for its config.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pyarrow as pa
from annotated_types import Ge, Gt, Le

from model.data.augment import augmented_texts, epoch_seed
from model.data.examples import Examples
from model.data.tokenizer import TOKENIZER
from model.training.finetune_settings import FinetuneSettings, resolved
from pipeline.corpus.examples.stage import read_examples, with_column
from pipeline.corpus.tokens.tokenizer_files import tokenizer_files
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import Count, Fraction, OptionalCount, OptionalPositive, Positive, check_values
from pipeline.store.shards import link_or_copy
from pipeline.store.store import DEVICE, NOT_IDENTITY, UNICODE, Outcome, Stage, Work
from pipeline.training import shared_settings as shared
from pipeline.training.pace import paced

if TYPE_CHECKING:
    from torch import nn

    from model.network.registry import Network
    from model.training.loss import LossFunction
    from model.training.selection import Ending

VERSION = 6
ORDERED_SINCE = 3  # the first version whose batches hold the examples that they hold now
DEFAULTS = FinetuneSettings()
CONFIG_FILE = "config.json"  # of a base
FOLLOWS = "without a value it follows from the base and the number of examples"
WORTH_WARNING = 0.01  # fraction of the training texts that are cut
log = logging.getLogger(__name__)


class Objective(Protocol):
    """The training objective of a kind of task."""

    identity: str  # part of the fingerprint that distinguishes its outputs from those of other kinds
    finetune: "type[FinetuneConfig]"
    # the value of `validate` that chooses the best checkpoint and ends training early, and whether higher is better
    selects: tuple[str, bool]
    has_curve: bool = True  # whether a training writes curve.jsonl; False for a kind that trains nothing

    def train(self, cfg: Any, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
        """The function of the stage. A kind without a training of its own overrides it."""
        return finetune(self, cfg, inputs, work)

    def encoder(self, cfg: Any, tokenizer: Any, directory: Path) -> Any:
        """What `encode` gets as its tokenizer: the tokenizer in `directory`, or what a kind makes of it, such as a
        chat template with its settings."""
        del cfg, directory
        return tokenizer

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: Any, max_tokens: int, truncation_side: str
    ) -> Examples:
        """`rows` are the examples of one split, perhaps augmented; `examples` is where all of them are."""
        ...

    def reference(self, cfg: Any) -> tuple[Stage, Any] | None:
        """A stage, with its config, that is built from base and examples before the training, which reads its output
        as a further input; None = there is none."""
        del cfg
        return None

    def referenced(self, encoded: Any, reference: Shards) -> Examples:
        """The encoded examples with what the output of that stage says of them."""
        del reference
        return encoded

    def augmented(self, rows: pa.Table, cfg: Any, seed: int) -> pa.Table:
        """`rows` as they are in one epoch: changed as cfg.settings().augmentation describes.

        Each is drawn from `seed`, that of the epoch, and its id. By default `text` changes; a kind with offsets into
        it, or with other texts, overrides this.
        """
        ids, texts = (rows[name].to_pylist() for name in ("id", "text"))
        texts = augmented_texts(ids, texts, cfg.settings().augmentation, seed)
        return with_column(rows, "text", texts)

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

    def finish(self, cfg: Any, network: "nn.Module", held_out: Any) -> dict[str, Any]:
        """What validation examples decide after the training, such as thresholds; it is added to config.json."""
        del cfg, network, held_out
        return {}

    def complete(self, encoder: Any, directory: Path) -> None:
        """Write what belongs to a model of the kind beside its weights and its tokenizer. `encoder`: as `encoder`
        returned it."""
        del encoder, directory


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Settings of fine-tuning; a kind of task adds its own. Defaults are those of
    model/training/finetune_settings.py."""

    initialisation: Annotated[
        Literal["pretrained", "random"],
        "Start from the pretrained weights, or from random ones, to see what pretraining is worth.",
    ] = DEFAULTS.initialisation
    tuning: Annotated[
        Literal["full", "lora", "head"],
        "Train all weights, or with lora (arXiv:2106.09685) only small adapters and the new head beside the frozen"
        " base, or with head the new head alone: frozen weights need no gradients and no optimizer state, and a step"
        " takes less time.",
    ] = DEFAULTS.tuning
    lora_rank: shared.LoraRank = DEFAULTS.lora_rank
    lora_alpha: shared.LoraAlpha = DEFAULTS.lora_alpha
    lora_targets: shared.LoraTargets = DEFAULTS.lora_targets
    lora_lr: Annotated[
        Positive,
        "Peak learning rate of adapters and head with tuning = lora; muon_lr and adamw_lr are not used then.",
    ] = DEFAULTS.lora_lr
    head_lr: Annotated[
        Positive, "Peak learning rate of the head with tuning = head; muon_lr and adamw_lr are not used then."
    ] = DEFAULTS.head_lr
    layer_decay: Annotated[
        float | None,
        Gt(0),
        Le(1),
        "Learning rate of a layer divided by that of the layer above it, so that the lowest layers change least"
        " (arXiv:1801.06146); without a value all layers have the same rate.",
    ] = DEFAULTS.layer_decay
    epochs: Annotated[OptionalCount, f"Number of passes over the training examples; {FOLLOWS}."] = DEFAULTS.epochs
    rows: Annotated[OptionalCount, f"Number of examples per update; {FOLLOWS}."] = DEFAULTS.rows
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
    optimizer: Annotated[
        Literal["muon", "adamw"] | None,
        f"Muon for the hidden matrices and AdamW for all other weights, or AdamW for all weights; {FOLLOWS}.",
    ] = DEFAULTS.optimizer
    muon_lr: Annotated[
        OptionalPositive,
        f"Peak learning rate of the hidden matrices with optimizer = muon; {FOLLOWS}. A value turns Muon on.",
    ] = DEFAULTS.muon_lr
    adamw_lr: Annotated[OptionalPositive, f"Peak learning rate of the weights that AdamW trains; {FOLLOWS}."] = (
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
        "Decoupled weight decay of the matrices that AdamW trains, multiplied by the learning rate; 0 turns it off."
        " Norms are never decayed.",
    ] = DEFAULTS.adamw_weight_decay
    warmup_fraction: Annotated[Fraction, shared.WARMUP_FRACTION] = DEFAULTS.warmup_fraction
    patience: Annotated[
        OptionalCount,
        "End the training after this many validations in a row that did not improve the metric of the task; without a"
        " value all epochs are trained. The learning rate falls as planned for all epochs.",
    ] = DEFAULTS.patience
    keep: Annotated[
        Literal["best", "last"] | None,
        "Whether the model has the weights of its best validation or of its last update; without a value best with"
        " patience and otherwise last.",
    ] = DEFAULTS.keep
    validations_per_epoch: Annotated[
        OptionalCount,
        "Number of validations per epoch with keep = best, which choose the weights; 4 without a value.",
    ] = DEFAULTS.validations_per_epoch
    augment_typos: Annotated[
        Fraction,
        "Probability per word of a typing error in training texts (letters swapped, left out, doubled, or a"
        " neighbour on the keyboard), drawn anew in every epoch.",
    ] = DEFAULTS.augment_typos
    augment_case: Annotated[
        Fraction,
        "Probability per training text that it is written in lower case, in capitals, or with capital initials.",
    ] = DEFAULTS.augment_case
    augment_word_dropout: Annotated[
        Fraction, "Probability per word of a training text that it is left out, drawn anew in every epoch."
    ] = DEFAULTS.augment_word_dropout
    seed: Annotated[int, "Seed for new weights, the order of the examples and their augmentation."] = DEFAULTS.seed
    validate_every: Annotated[
        Count,
        "Evaluate on the validation split every N updates, for the curve; with keep = best validations_per_epoch"
        " decides instead.",
    ] = field(default=DEFAULTS.validate_every, metadata=NOT_IDENTITY)
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


def resolved_config(cfg: Any, inputs: tuple[Any, ...]) -> Any:
    """`cfg` with every open setting as it follows from base and examples; unchanged while the base is not there."""
    path = inputs[0].directory / CONFIG_FILE
    if not isinstance(cfg, FinetuneConfig) or not path.exists():
        return cfg
    d_model = json.loads(path.read_text("utf-8"))["model"]["d_model"]
    settings = resolved(cfg.settings(), d_model, inputs[1].rows)
    open_ones = [one.name for one in dataclasses.fields(settings) if getattr(cfg, one.name, 0) is None]
    return dataclasses.replace(cfg, **{name: getattr(settings, name) for name in open_ones})


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReader:
    """Reads the examples of a split as a model of `max_tokens` tokens sees them."""

    kind: Objective
    cfg: FinetuneConfig
    examples: Shards
    tokenizer: Any  # as the `encoder` of the kind has it
    max_tokens: int
    reference: Shards | None = None  # output of the stage that the kind's `reference` names

    def encoded(self, rows: pa.Table) -> Examples:
        found = self.kind.encode(self.examples, rows, self.tokenizer, self.max_tokens, self.cfg.truncation_side)
        return found if self.reference is None else self.kind.referenced(found, self.reference)

    def read(self, split: str) -> Examples:
        return self.encoded(read_examples(self.examples.directory, split))

    def of_epoch(self) -> Callable[[int], Examples] | None:
        """The training examples by the number of an epoch; None: they are the same in all of them."""
        if not self.cfg.settings().augmentation.changes_texts:
            return None
        rows = read_examples(self.examples.directory, "train")
        return lambda epoch: self.encoded(self.kind.augmented(rows, self.cfg, epoch_seed(self.cfg.seed, epoch)))


def finetune(kind: Objective, cfg: FinetuneConfig, inputs: tuple[Any, ...], work: Work) -> Outcome:
    """The stage function. Inputs: base, examples, and the output of the kind's `reference` where it has one.

    Raises Terminated after a signal, ValueError when base and examples do not fit.
    """
    from model.training.finetuning import Task, job_of, load_base
    from model.training.finetuning import finetune as run_to_end
    from model.training.loop import Interrupted

    checkpoint, examples, *references = inputs
    settings, base = cfg.settings(), load_base(checkpoint.directory)
    max_tokens = base.max_tokens(settings)
    encoder = kind.encoder(cfg, base.tokenizer, checkpoint.directory / TOKENIZER)
    reader = SplitReader(kind=kind, cfg=cfg, examples=examples, tokenizer=encoder, max_tokens=max_tokens)
    reader = dataclasses.replace(reader, reference=references[0] if references else None)
    training, held_out = (reader.read(split) for split in ("train", "validation"))
    warn_of_cuts(cfg, training, max_tokens, base.network.cfg.max_seq_len)
    network, description = kind.network(cfg, base.network, examples)
    task = Task(
        network=network,
        description=description,
        training=training,
        loss_function=kind.loss(cfg),
        validate=lambda network: kind.validate(network, held_out),
        selects=kind.selects,
        of_epoch=reader.of_epoch(),
    )
    job = job_of(base, task, settings, {"base": checkpoint.digest, "examples": examples.digest})
    reported = {name: value for name, value in job.description.items() if name not in ("kind", "model")}
    params = dataclasses.asdict(cfg) | {"n_steps": job.cfg.n_steps, **reported}
    log.info("settings: %s", ", ".join(f"{name}={value}" for name, value in params.items()))
    work.observer.started(work.fingerprint, params, inputs)
    try:
        progress = paced(lambda done, total: work.progress(done, total, "steps"))
        finish = partial(kind.finish, cfg, held_out=held_out)
        ending = run_to_end(work.directory, job, work.observer, progress, finish)
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    keep_tokenizer(checkpoint.directory, work.directory)
    kind.complete(encoder, work.directory)
    return Outcome(
        rows=ending.n_steps,
        measures={
            **kind.validate(job.model, held_out),
            **chosen(ending, kind.selects[0]),
            "train_examples": len(set(training.ids)),
            **cuts({"train": training, "validation": held_out}),
        },
        content=("model.safetensors", "config.json", "tokenizer/*", "adapter/*"),
    )


def keep_tokenizer(base: Path, directory: Path) -> None:
    """The tokenizer of a base in the folder of a model that was made from it."""
    for name in tokenizer_files(base / TOKENIZER):
        link_or_copy(base / TOKENIZER / name, directory / TOKENIZER / name)


def chosen(ending: "Ending", metric: str) -> dict[str, float]:
    """Updates that were done, and step and value of the validation whose weights were kept, if one was."""
    done: dict[str, float] = {"n_steps": ending.n_steps}
    return done if ending.best is None else done | {"best_step": ending.best[0], f"best_{metric}": ending.best[1]}


def cuts(encoded: Mapping[str, Examples]) -> dict[str, float]:
    """Per split the number and the fraction of examples of which a part is not read."""
    return {
        name: value
        for split, examples in encoded.items()
        for name, value in (
            (f"{split}_n_cut", examples.n_cut),
            (f"{split}_cut_fraction", examples.n_cut / len(set(examples.ids))),
        )
    }


def warn_of_cuts(cfg: FinetuneConfig, training: Examples, max_tokens: int, context: int) -> None:
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
    return Stage(
        name="finetune",
        version=VERSION,
        function=kind.train,
        resolve=resolved_config,
        handle=Checkpoint,
        libraries=(
            "numpy",
            "regex",
            "tiktoken",
            "tokenizers",
            "torch",
            DEVICE,
            UNICODE,
        ),  # another version may round, draw or split differently
        variant=kind.identity,
    )


def random_baseline(cfg: Any) -> Any:
    """The same training of the same network without pretraining, which needs all weights to be trained. The settings
    of a kind that trains nothing stay as they are."""
    if not isinstance(cfg, FinetuneConfig):
        return cfg
    return dataclasses.replace(cfg, initialisation="random", tuning="full")
