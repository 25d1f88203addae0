"""Fine-tunes a pretrained decoder or encoder on labelled texts: from a description to a finished classifier.

In: the folder of such a model with its tokenizer, labelled examples, settings. Out: a folder with model.safetensors,
config.json (shape, labels), tokenizer/, curve.jsonl and the last checkpoint, and where adapters were trained also
adapter/; a training that was stopped there continues. Steps: encode the examples with the base's tokenizer; copy the
base's trunk under a new head, or start from random weights for comparison; train all weights, adapters and the head,
or the head alone, on batches of texts of similar length, which augmentation draws anew in every epoch. The last
weights are the result, because the learning rate falls to 0: the best of several validations on few examples is best
by luck, too. With `patience` the training ends while the rate is high, and the weights of its best validation are the
result.

`job_of` and `finetune` serve any kind of task that brings its network, examples, loss and validation; the functions
after them are those of classification.

Legend: N examples, C classes.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.data.augment import epoch_seed
from model.data.examples import EncodedExamples, Encoder, ExampleBatches, Examples, encoded
from model.data.labelled import LabelledTexts
from model.data.tokenizer import TOKENIZER, Tokenizer, load_model_tokenizer
from model.evaluate import classification_metrics, outputs_of_texts
from model.network.heads import SequenceClassifier, classifier_from, new_classifier, pooled
from model.network.registry import Network, describe, load_base_network
from model.training.adapters import save_trained, start_adapters, start_head
from model.training.distributed import is_main
from model.training.files import WEIGHTS, sha256
from model.training.finetune_settings import FinetuneSettings, resolved, selection, train_config
from model.training.loss import LossFunction, classification_loss
from model.training.machine import training_device
from model.training.pretraining import only_training, refuse_other_models
from model.training.run import Job, Observer, run
from model.training.selection import Ending

OUTSIDE_TRAIN_CONFIG = (  # settings of identity
    "initialisation", "tuning", "lora_rank", "lora_alpha", "lora_targets", "max_tokens", "truncation_side",
    "label_smoothing", "augment_typos", "augment_case", "augment_word_dropout", "validations_per_epoch",
)  # fmt: skip
# Nats above the last losses from which a spike is reported: one wrong answer in a batch of 16 is no spike.
MIN_SPIKE_RISE = 1.0
SELECTS = ("validation_macro_f1", True)  # of a classification


@dataclass(frozen=True, slots=True)
class Base:
    directory: Path
    network: Network
    tokenizer: Tokenizer

    def max_tokens(self, cfg: FinetuneSettings) -> int:
        """Largest number of tokens of a text that the fine-tuned model reads."""
        context = self.network.cfg.max_seq_len
        return min(cfg.max_tokens or context, context)


def load_base(directory: Path) -> Base:
    """Raises ValueError when the folder holds neither a decoder nor an encoder, or the tokenizer of another one."""
    network = load_base_network(directory)
    return Base(directory, network, load_model_tokenizer(directory, network.cfg.vocab_size))


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is learned: a network before its first step, and what it learns from."""

    network: nn.Module
    description: Mapping[str, Any]  # config.json, without the settings of the texts
    training: Examples
    loss_function: LossFunction  # a sum and a count, so that micro-batches and several processes are exact
    validate: Callable[[nn.Module], Mapping[str, float]]
    selects: tuple[str, bool]  # the value of `validate` that chooses the best weights, and whether higher is better
    of_epoch: Callable[[int], Examples] | None = None  # the examples as augmented; None = always `training`


def job_of(base: Base, task: Task, cfg: FinetuneSettings, made_from: Mapping[str, str]) -> Job:
    """What model/training/run.py needs, from resolved settings; the network is on this process's device, and has
    adapters if these are trained."""
    device, train = training_device(), train_config(cfg, len(task.training.ids))
    if not isinstance(task.training, EncodedExamples):
        # Conversations may be long: their memory decides how many of them pass at once.
        train = replace(train, micro_batch=None, seq_len=int(task.training.lengths.max()), document_mask=True)
    max_tokens = base.max_tokens(cfg)
    longest = max_tokens if device.type == "cuda" else None
    description = {**task.description, "max_tokens": max_tokens, "truncation_side": cfg.truncation_side}
    if cfg.lora is not None:
        description = start_adapters(task.network, description, cfg.lora, base.directory, cfg.seed)
    if cfg.tuning == "head":
        description = start_head(task.network, description, base.directory)
    metric, higher_is_better = task.selects
    chosen = selection(cfg, metric, higher_is_better=higher_is_better)
    return Job(
        model=task.network.to(device),
        cfg=train,
        description=description,
        batches=ExampleBatches(
            task.training, rows=train.rows, seed=cfg.seed, longest=longest, of_epoch=task.of_epoch
        ),
        has_varying_lengths=True,
        loss_function=task.loss_function,
        validate=task.validate,
        selection=chosen,
        made_from={**made_from, "selection": str(chosen)},
        min_spike_rise=MIN_SPIKE_RISE,
    )


def finetune(
    directory: Path,
    job: Job,
    observer: Observer,
    progress: Callable[[int, int], None] = lambda done, total: None,
    finish: Callable[[nn.Module], Mapping[str, Any]] = lambda network: {},
) -> Ending:
    """Train to the end and write the model; `finish` of it is added to its config.json. Raises as `run` does."""
    ending = run(directory, job, observer, progress)
    added = finish(job.model.eval())
    save_trained(directory, job.model, {**job.description, **added})
    return ending


# Classification.


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetuning:
    base: Path  # a decoder or an encoder with its tokenizer
    out: Path  # of the classifier; a training that was stopped there continues
    training: LabelledTexts
    validation: LabelledTexts
    cfg: FinetuneSettings

    @property
    def n_examples(self) -> int:
        return len(self.training.texts) + len(self.validation.texts)


@dataclass(frozen=True, slots=True)
class Finetuned:
    ending: Ending
    values: dict[str, float]  # of the validation examples


def finetune_classifier(plan: Finetuning, observer: Observer) -> Finetuned:
    """Train to the end, write the model with its tokenizer and return its validation metrics.

    Raises Interrupted after a signal, once all that was done is saved; ValueError when base, examples or an earlier
    training in the folder do not fit, or a loss is not finite.
    """
    refuse_other_models(plan.out)
    base = load_base(plan.base)
    cfg = resolved(plan.cfg, base.network.cfg.d_model, plan.n_examples)
    task = classification_task(base, plan, cfg)
    made_from = {
        "base": sha256(plan.base / WEIGHTS),
        "training": plan.training.digest(),
        "validation": plan.validation.digest(),
        **{name: str(getattr(cfg, name)) for name in OUTSIDE_TRAIN_CONFIG},
    }
    job = job_of(base, task, cfg, made_from)
    with only_training(plan.out):
        ending = finetune(plan.out, job, observer)
        if is_main():
            shutil.copytree(plan.base / TOKENIZER, plan.out / TOKENIZER, dirs_exist_ok=True)
    return Finetuned(ending, dict(task.validate(job.model)))


def classification_task(base: Base, plan: Finetuning, cfg: FinetuneSettings) -> Task:
    labels, max_tokens = plan.training.label_names(), base.max_tokens(cfg)

    def encode(texts: LabelledTexts) -> EncodedExamples:
        return encoded_texts(texts, labels, base.tokenizer, max_tokens, cfg.truncation_side)

    def of_epoch(epoch: int) -> EncodedExamples:
        return encode(plan.training.augmented(cfg.augmentation, epoch_seed(cfg.seed, epoch)))

    held_out = encode(plan.validation)
    network, description = classifier_network(base.network, labels, cfg.initialisation, cfg.seed)
    return Task(
        network=network,
        description=description,
        training=encode(plan.training),
        loss_function=partial(classification_loss, label_smoothing=cfg.label_smoothing),
        validate=lambda network: classification_values(network, held_out),
        selects=SELECTS,
        of_epoch=of_epoch if cfg.augmentation.changes_texts else None,
    )


def classifier_network(
    base: Network,
    labels: Sequence[str],
    initialisation: str,
    seed: int,
    *,
    pooling: str | None = None,
    rates: np.ndarray | None = None,
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """A classifier before its first step, and its config.json. With "random" only the base's shape is used.

    `pooling` of an encoder: first or mean, None = the base's. `rates`: where a text may have several labels, the
    share of the examples that have each of them; an encoder's head then begins with these probabilities
    (arXiv:1708.02002 section 4.1), because at small learning rates many steps pass until rare labels are rarely
    predicted.
    """
    cfg = pooled(base.cfg, pooling)
    if initialisation == "random":
        classifier = new_classifier(cfg, len(labels), seed)
    else:
        classifier = classifier_from(base, len(labels), seed, pooling)
    if rates is not None and classifier.score.bias is not None:
        with torch.no_grad():
            classifier.score.bias.copy_(torch.logit(torch.from_numpy(rates), eps=1e-4))
    return classifier, describe(cfg, tuple(labels))


def encoded_texts(
    texts: LabelledTexts, labels: Sequence[str], tokenizer: Encoder, max_tokens: int, truncation_side: str
) -> EncodedExamples:
    """Examples with labels_B, the number of each label in `labels`. Raises ValueError for a label outside them."""
    numbers = {label: i for i, label in enumerate(labels)}
    if unknown := sorted(set(texts.labels) - numbers.keys()):
        raise ValueError(f"{texts.where}: no training example has the label {unknown[0]!r}; there are {list(labels)}")
    tokens, is_cut = encoded(tokenizer, texts.texts, max_tokens, truncation_side)
    classes = np.array([numbers[label] for label in texts.labels], np.int64)
    return EncodedExamples(list(texts.ids), tokens, {"labels_B": classes}, int(is_cut.sum()))


def classification_values(network: nn.Module, held_out: EncodedExamples) -> dict[str, float]:
    """validation_loss (nats per example), validation_accuracy and validation_macro_f1."""
    probabilities_NC = outputs_of_texts(network, held_out.tokens, lambda logits_BC: logits_BC.softmax(dim=-1))
    metrics = classification_metrics(probabilities_NC, held_out.targets["labels_B"])
    return {f"validation_{name}": value for name, value in metrics.items()}
