"""Fine-tune a pretrained decoder into a text classifier: the stage `finetune`.

In: a base Checkpoint and labelled examples. Out: a Checkpoint folder: model.safetensors, config.json (shape, labels),
tokenizer/, curve.jsonl and the last checkpoints. Steps: encode the training examples with the base's tokenizer; copy
the base's trunk under a new head, or start from random weights for comparison; train all weights on batches of like
length; the last weights are the result, because the learning rate falls to 0 and the number of epochs was chosen on
validation data. The validation split is only measured, the test split never read.

torch is imported where it is used: Dagster loads this module for its config alone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np

from model.config import TrainConfig
from model.tokenizer import load_model_tokenizer
from pipeline.corpus.examples.stage import labels_of, read_examples
from pipeline.corpus.tokens.tokenizer_files import TOKENIZER_FILES
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import link_or_copy
from pipeline.store.store import Outcome, Stage, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

POOL_BATCHES = 50  # batches whose examples are sorted by length together: enough to pad little, few enough to shuffle
LARGEST_MICRO_BATCH = 256  # rows that pass through the model at once


class Encoder(Protocol):
    """The part of a tokenizer that encoding needs."""

    @property
    def end_of_text(self) -> int: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """How a classifier is trained. The defaults were chosen on the validation split of the sarcasm headlines."""

    initialisation: Annotated[
        Literal["pretrained", "random"], "random = weights as before pretraining, to see what pretraining is worth"
    ] = "pretrained"
    epochs: Annotated[int, "passes over the training examples, at least 1"] = 2
    rows: Annotated[int, "examples a step, at least 1"] = 128
    max_tokens: Annotated[int | None, "tokens of a text that are read; None = the base's context"] = None
    muon_lr: Annotated[float, "peak learning rate of hidden matrices, above 0 (Muon)"] = 0.02
    adamw_lr: Annotated[float, "peak learning rate of embedding, norms and head, above 0 (AdamW)"] = 0.004
    muon_weight_decay: Annotated[float, "decoupled, times the learning rate; 0 = none"] = 0.0
    adamw_weight_decay: Annotated[float, "decoupled, times the learning rate; 0 = none; never on norms"] = 0.0
    warmup_fraction: Annotated[float, "of the steps, at the start: linear from 0, between 0 and 1"] = 0.1
    label_smoothing: Annotated[float, "probability spread over all labels, 0 to below 1 (arXiv:1512.00567)"] = 0.0
    seed: Annotated[int, "of new weights and the order of the examples"] = 0
    validate_every: Annotated[int, "steps between two looks at the validation split, at least 1"] = 200
    checkpoint_every: Annotated[int, "steps between two checkpoints, at least 1"] = 200

    def __post_init__(self) -> None:
        for name in ("epochs", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.initialisation not in ("pretrained", "random"):
            raise ValueError(f"initialisation={self.initialisation!r} must be one of pretrained, random")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 2: the first one opens the text")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must lie between 0 and 1, without 1")
        train_config(self, n_examples=self.rows)


def train_config(cfg: FinetuneConfig, n_examples: int) -> TrainConfig:
    """The plan for `n_examples`. ValueError names a setting that breaks a rule."""
    rows = min(cfg.rows, n_examples)
    return TrainConfig(
        n_steps=cfg.epochs * (n_examples // rows),
        rows=rows,
        seq_len=1,  # of token windows; examples have their own lengths
        micro_batch=max(n for n in range(1, min(rows, LARGEST_MICRO_BATCH) + 1) if rows % n == 0),
        muon_lr=cfg.muon_lr,
        adamw_lr=cfg.adamw_lr,
        muon_weight_decay=cfg.muon_weight_decay,
        adamw_weight_decay=cfg.adamw_weight_decay,
        beta2=0.98,  # the runs are short: 0.999 would remember what the new head did at its start
        schedule="linear",
        warmup_fraction=cfg.warmup_fraction,
        decay_fraction=0.0,
        seed=cfg.seed,
        checkpoint_every=cfg.checkpoint_every,
        keep_checkpoints=1,
        validate_every=cfg.validate_every,
    )


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Examples as token ids, right-aligned with nothing: each has its own length."""

    ids: list[str]
    tokens: list[np.ndarray]  # int64, at least one each
    labels: np.ndarray  # int64, class


def encode_texts(tokenizer: Encoder, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Ids of each text behind the end-of-text token, which opens documents in pretraining too; the end is cut."""
    encoded = tokenizer.encode_batch(list(texts))
    return [np.array([tokenizer.end_of_text, *ids[: max_tokens - 1]], np.int64) for ids in encoded]


def encode_examples(examples: Shards, split: str, tokenizer: Encoder, max_tokens: int) -> EncodedExamples:
    table = read_examples(examples.directory, split)
    place = {label: i for i, label in enumerate(labels_of(examples.directory))}
    return EncodedExamples(
        ids=table["id"].to_pylist(),
        tokens=encode_texts(tokenizer, table["text"].to_pylist(), max_tokens),
        labels=np.array([place[label] for label in table["label"].to_pylist()], np.int64),
    )


class ExampleBatches:
    """Global batch k as a pure function of (examples, rows, seed, k). A batch holds texts of like length.

    An epoch shuffles all examples, sorts pools of them by length, cuts batches and shuffles those. What does not
    fill a batch sits out one epoch, and falls to others in the next.
    """

    def __init__(self, examples: EncodedExamples, *, rows: int, seed: int) -> None:
        self.examples, self.rows, self.seed = examples, rows, seed
        self.batches_an_epoch = len(examples.ids) // rows
        self.lengths = np.array([len(tokens) for tokens in examples.tokens])
        self.order: tuple[int, np.ndarray] | None = None  # epoch, its batches (n, rows): only remembered, not a state

    def batch(self, k: int) -> "dict[str, Tensor]":
        return as_batch(self.examples, self.places(k))

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the examples in batch `k`."""
        return [self.examples.ids[place] for place in self.places(k)]

    def places(self, k: int) -> np.ndarray:
        epoch, position = divmod(k, self.batches_an_epoch)
        if self.order is None or self.order[0] != epoch:
            self.order = epoch, self.epoch_order(epoch)
        return self.order[1][position]

    def epoch_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed % 2**64, epoch])
        shuffled = rng.permutation(len(self.examples.ids))[: self.batches_an_epoch * self.rows]
        pools = [
            pool[np.argsort(self.lengths[pool], kind="stable")]
            for first in range(0, len(shuffled), POOL_BATCHES * self.rows)
            for pool in [shuffled[first : first + POOL_BATCHES * self.rows]]
        ]
        batches = np.concatenate(pools).reshape(self.batches_an_epoch, self.rows)
        return batches[rng.permutation(self.batches_an_epoch)]


def as_batch(examples: EncodedExamples, places: np.ndarray) -> "dict[str, Tensor]":
    """ids_BT padded on the right, lengths_B and labels_B of the examples at `places`."""
    import torch

    lengths = [len(examples.tokens[place]) for place in places]
    ids = np.zeros((len(places), max(lengths)), np.int64)
    for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
        ids[row, :length] = examples.tokens[place]
    return {
        "ids_BT": torch.from_numpy(ids),
        "lengths_B": torch.tensor(lengths),
        "labels_B": torch.from_numpy(examples.labels[places]),
    }


def finetune(cfg: FinetuneConfig, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function. Raises Terminated after a signal, ValueError when base and examples do not fit."""
    from model.checkpoint import describe, load_decoder, save_model
    from model.distributed import training_device
    from model.loss import classification_loss
    from model.run import Job, run
    from model.train import Interrupted

    base, examples = inputs
    decoder = load_decoder(base.directory)
    tokenizer = load_model_tokenizer(base.directory, decoder.cfg.vocab_size)
    labels = labels_of(examples.directory)
    max_tokens = min(cfg.max_tokens or decoder.cfg.max_seq_len, decoder.cfg.max_seq_len)
    training = encode_examples(examples, "train", tokenizer, max_tokens)
    train = train_config(cfg, len(training.ids))
    validate = validation(encode_examples(examples, "validation", tokenizer, max_tokens))
    job = Job(
        model=classifier(cfg, decoder, len(labels)).to(training_device()),
        cfg=train,
        description=describe(decoder.cfg, tuple(labels)) | {"max_tokens": max_tokens},
        batches=ExampleBatches(training, rows=train.rows, seed=cfg.seed),
        loss_function=partial(classification_loss, label_smoothing=cfg.label_smoothing),
        validate=validate,
        made_from={"base": base.digest, "examples": examples.digest},
    )
    params = dataclasses.asdict(cfg) | {"n_steps": train.n_steps, "labels": len(labels), "max_tokens": max_tokens}
    work.observer.started(work.fingerprint, params, inputs)
    try:
        run(work.directory, job, work.observer, lambda done, total: work.progress(done, total, "steps"))
    except Interrupted as stop:
        raise Terminated(str(stop)) from stop
    save_model(work.directory, job.model, job.description)
    for name in TOKENIZER_FILES:
        link_or_copy(base.directory / "tokenizer" / name, work.directory / "tokenizer" / name)
    return Outcome(
        rows=train.n_steps,
        measures=validate(job.model) | {"train_examples": len(training.ids)},
        content=("model.safetensors", "config.json", "tokenizer/*"),
    )


FINETUNE = Stage(
    name="finetune", version=2, function=finetune, handle=Checkpoint, libraries=("torch",)
)  # torch: another version may round otherwise


def random_baseline(cfg: FinetuneConfig) -> FinetuneConfig:
    """The same training without pretraining, with the learning rates that suit it best (chosen on validation)."""
    return dataclasses.replace(cfg, initialisation="random")


def classifier(cfg: FinetuneConfig, decoder, n_classes: int) -> "nn.Module":
    from model.heads import classifier_from_decoder, new_classifier

    if cfg.initialisation == "random":
        return new_classifier(decoder.cfg, n_classes, cfg.seed)
    return classifier_from_decoder(decoder, n_classes)


def class_probabilities(model: "nn.Module", examples: EncodedExamples, rows: int = 256) -> np.ndarray:
    """Probability of every class (N, C), float64, in the order of the examples."""
    import torch

    device = next(model.parameters()).device
    lengths = np.array([len(tokens) for tokens in examples.tokens])
    order = np.argsort(lengths, kind="stable")
    parts = []
    with torch.inference_mode():
        for first in range(0, len(order), rows):
            batch = as_batch(examples, order[first : first + rows])
            logits_BC = model(batch["ids_BT"].to(device), batch["lengths_B"].to(device))
            parts.append(logits_BC.double().softmax(dim=-1).cpu().numpy())
    sorted_NC = np.concatenate(parts)
    probabilities_NC = np.empty_like(sorted_NC)
    probabilities_NC[order] = sorted_NC
    return probabilities_NC


def validation(examples: EncodedExamples):
    """A function of the model: validation_loss (nats an example) and validation_accuracy."""

    def validate(model: "nn.Module") -> dict[str, float]:
        probabilities_NC = class_probabilities(model, examples)
        of_label = probabilities_NC[np.arange(len(examples.labels)), examples.labels]
        return {
            "validation_loss": float(-np.log(np.maximum(of_label, 1e-300)).mean()),
            "validation_accuracy": float((probabilities_NC.argmax(axis=1) == examples.labels).mean()),
        }

    return validate
