"""Fine-tunes a pretrained decoder for a task: the stage `finetune`.

In: a base Checkpoint, labelled examples, and the `Objective` of a kind of task. Out: a Checkpoint folder:
model.safetensors, config.json (shape, labels), tokenizer/, curve.jsonl and the last checkpoints. Steps: encode the
training examples with the base's tokenizer; copy the base's trunk under a new head, or start from random weights for
comparison; train all weights on batches of similar length; the last weights are the result, because the learning rate
falls to 0 and the number of epochs was chosen on validation data. The validation split is only measured, the test
split is never read.

torch is imported where it is used, because Dagster loads this module only for its config.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from annotated_types import Ge

from model.data.batches import rows_of_rank
from model.data.tokenizer import load_model_tokenizer
from model.training.config import TrainConfig
from pipeline.corpus.tokens.tokenizer_files import TOKENIZER_FILES
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import Count, Fraction, Positive, check_values
from pipeline.store.shards import link_or_copy
from pipeline.store.store import DEVICE, NOT_IDENTITY, Outcome, Stage, Work
from pipeline.training.pace import paced

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.network.decoder import Decoder
    from model.training.loss import LossFunction

POOL_BATCHES = 50  # batches that are sorted by length together: enough for little padding, few enough to shuffle
LARGEST_MICRO_BATCH = 256  # rows that pass through the model at once
VERSION = 3
MIN_SPIKE_RISE = (
    1.0  # nats above the last losses from which a spike is told: a wrong answer in a batch of 16 is no spike
)
WORTH_WARNING = 0.01  # fraction of the training texts that are cut
log = logging.getLogger(__name__)


class Encoder(Protocol):
    """The part of a tokenizer that encoding needs."""

    @property
    def end_of_text(self) -> int: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Encoded(Protocol):
    """Examples as token ids; each has its own length."""

    @property
    def ids(self) -> list[str]:
        """Ids of the examples."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """int64 (N,): number of tokens of each example, at least 1."""
        ...

    @property
    def n_cut(self) -> int:
        """How many examples have a text that was longer than `max_tokens`, so that a part of it is not read."""
        ...

    def batch(self, places: np.ndarray) -> "dict[str, Tensor]":
        """The examples at `places` as tensors with one row per example, as the loss takes them."""
        ...


class Objective(Protocol):
    """The training objective of a kind of task."""

    identity: str  # part of the fingerprint that distinguishes its outputs from those of other kinds

    def encode(
        self, examples: Shards, split: str, tokenizer: Encoder, max_tokens: int, truncation_side: str
    ) -> Encoded: ...

    def network(self, cfg: Any, decoder: "Decoder", examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        """The network before its first step, and its config.json.

        With cfg.initialisation "random" only the shape of the decoder is used.
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
    """Settings of fine-tuning; a kind of task adds its own. The defaults were chosen on the validation split of the
    sarcasm headlines."""

    initialisation: Annotated[
        Literal["pretrained", "random"],
        "Start from the pretrained weights, or from random ones, to see what pretraining is worth.",
    ] = "pretrained"
    epochs: Annotated[Count, "Number of passes over the training examples."] = 2
    rows: Annotated[Count, "Number of examples per update."] = 128
    max_tokens: Annotated[
        int | None,
        Ge(2),
        "Largest number of tokens per text, including the end-of-text token at its start; without a value the context"
        " of the base model.",
    ] = None
    truncation_side: Annotated[
        Literal["right", "left"],
        "Side of a text with more than max_tokens tokens that is not read: right is its end, left its beginning.",
    ] = "right"
    muon_lr: Annotated[Positive, "Peak learning rate of the hidden matrices, which Muon trains."] = 0.02
    adamw_lr: Annotated[Positive, "Peak learning rate of embedding, norms and head, which AdamW trains."] = 0.004
    muon_weight_decay: Annotated[
        float,
        Ge(0),
        "Decoupled weight decay of the hidden matrices, multiplied by the learning rate; 0 turns it off.",
    ] = 0.0
    adamw_weight_decay: Annotated[
        float,
        Ge(0),
        "Decoupled weight decay of embedding and head, multiplied by the learning rate; 0 turns it off. Norms are"
        " never decayed.",
    ] = 0.0
    warmup_fraction: Annotated[
        Fraction, "Fraction of the updates at the start in which learning rates rise linearly from 0."
    ] = 0.1
    seed: Annotated[int, "Seed for new weights and the order of the examples."] = 0
    validate_every: Annotated[Count, "Evaluate on the validation split every N updates."] = field(
        default=200, metadata=NOT_IDENTITY
    )
    checkpoint_every: Annotated[Count, "Save a checkpoint every N updates."] = field(
        default=200, metadata=NOT_IDENTITY
    )

    def __post_init__(self) -> None:
        check_values(self)
        train_config(self, n_examples=self.rows)


def train_config(cfg: FinetuneConfig, n_examples: int) -> TrainConfig:
    """The plan for `n_examples`. Raises ValueError for a setting that breaks a rule."""
    rows = min(cfg.rows, n_examples)
    return TrainConfig(
        n_steps=cfg.epochs * n_batches(n_examples, rows),
        rows=rows,
        seq_len=1,  # for token windows; examples have their own lengths
        micro_batch=max(n for n in range(1, min(rows, LARGEST_MICRO_BATCH) + 1) if rows % n == 0),
        muon_lr=cfg.muon_lr,
        adamw_lr=cfg.adamw_lr,
        muon_weight_decay=cfg.muon_weight_decay,
        adamw_weight_decay=cfg.adamw_weight_decay,
        beta2=0.98,  # the runs are short: with 0.999 the first gradients of the new head would dominate too long
        schedule="linear",
        warmup_fraction=cfg.warmup_fraction,
        decay_fraction=0.0,
        seed=cfg.seed,
        checkpoint_every=cfg.checkpoint_every,
        keep_checkpoints=1,
        validate_every=cfg.validate_every,
    )


def n_batches(n_examples: int, rows: int) -> int:
    """Batches per epoch: enough for all examples, with at most `rows` in a batch."""
    return -(-n_examples // rows)


class ExampleBatches:
    """Global batch k as a pure function of (examples, rows, seed, k). A batch contains texts of similar
    length.

    An epoch shuffles all examples, sorts pools of them by length, cuts batches and shuffles these. It reads every
    example once: if they do not fill all batches, some batches have one row less, because a small last batch would
    move the weights as far as a full one.
    """

    def __init__(self, examples: Encoded, *, rows: int, seed: int) -> None:
        self.examples, self.seed = examples, seed
        self.batches_per_epoch = n_batches(len(examples.ids), rows)
        shares = np.array_split(np.arange(len(examples.ids)), self.batches_per_epoch)
        self.borders = np.cumsum([len(share) for share in shares])  # of the batches of an epoch
        self.order: tuple[int, list[np.ndarray]] | None = None  # epoch, its batches: a cache, not state

    def n_rows(self, k: int) -> int:
        """Rows of the whole batch `k`."""
        return len(self.places(k))

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> "dict[str, Tensor]":
        """Process `rank`'s rows of batch `k`."""
        return self.examples.batch(self.places(k)[rows_of_rank(self.n_rows(k), rank, n_ranks)])

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the examples in batch `k`."""
        return [self.examples.ids[place] for place in self.places(k)]

    def places(self, k: int) -> np.ndarray:
        epoch, position = divmod(k, self.batches_per_epoch)
        if self.order is None or self.order[0] != epoch:
            self.order = epoch, self.epoch_order(epoch)
        return self.order[1][position]

    def epoch_order(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed % 2**64, epoch])
        shuffled = rng.permutation(len(self.examples.ids))
        pools = [
            pool[np.argsort(self.examples.lengths[pool], kind="stable")]
            for pool in np.split(shuffled, self.borders[POOL_BATCHES - 1 :: POOL_BATCHES])
        ]
        batches = np.split(np.concatenate(pools), self.borders[:-1])
        return [batches[place] for place in rng.permutation(self.batches_per_epoch)]


def finetune(kind: Objective, cfg: FinetuneConfig, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when base and examples do not fit."""
    from model.network.registry import load_decoder, save_model
    from model.training.loop import Interrupted
    from model.training.machine import training_device
    from model.training.run import Job, run

    base, examples = inputs
    decoder = load_decoder(base.directory)
    tokenizer = load_model_tokenizer(base.directory, decoder.cfg.vocab_size)
    max_tokens = min(cfg.max_tokens or decoder.cfg.max_seq_len, decoder.cfg.max_seq_len)
    training, held_out = (
        kind.encode(examples, split, tokenizer, max_tokens, cfg.truncation_side) for split in ("train", "validation")
    )
    warn_of_cuts(cfg, training, max_tokens, decoder.cfg.max_seq_len)
    train = train_config(cfg, len(training.ids))
    network, description = kind.network(cfg, decoder, examples)
    description |= {"max_tokens": max_tokens, "truncation_side": cfg.truncation_side}
    job = Job(
        model=network.to(training_device()),
        cfg=train,
        description=description,
        batches=ExampleBatches(training, rows=train.rows, seed=cfg.seed),
        loss_function=kind.loss(cfg),
        validate=lambda network: kind.validate(network, held_out),
        made_from={"base": base.digest, "examples": examples.digest},
        min_spike_rise=MIN_SPIKE_RISE,
    )
    told = {name: value for name, value in description.items() if name not in ("kind", "model")}
    work.observer.started(work.fingerprint, dataclasses.asdict(cfg) | {"n_steps": train.n_steps, **told}, inputs)
    try:
        run(work.directory, job, work.observer, paced(lambda done, total: work.progress(done, total, "steps")))
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    save_model(work.directory, job.model, description)
    for name in TOKENIZER_FILES:
        link_or_copy(base.directory / "tokenizer" / name, work.directory / "tokenizer" / name)
    return Outcome(
        rows=train.n_steps,
        measures={
            **kind.validate(job.model, held_out),
            "train_examples": len(training.ids),
            **cuts({"train": training, "validation": held_out}),
        },
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


def cuts(encoded: Mapping[str, Encoded]) -> dict[str, float]:
    """Per split the number and the fraction of examples of which a part is not read."""
    return {
        name: value
        for split, examples in encoded.items()
        for name, value in (
            (f"{split}_n_cut", examples.n_cut),
            (f"{split}_cut_fraction", examples.n_cut / len(examples.ids)),
        )
    }


def warn_of_cuts(cfg: FinetuneConfig, training: Encoded, max_tokens: int, context: int) -> None:
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
            "torch",
            DEVICE,
        ),  # another version may round, draw or split differently
        variant=kind.identity,
    )


def random_baseline(cfg: FinetuneConfig) -> FinetuneConfig:
    """The same training without pretraining, with the learning rates that were best for it on validation data."""
    return dataclasses.replace(cfg, initialisation="random")
