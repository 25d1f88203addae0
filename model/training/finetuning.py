"""Fine-tunes a pretrained decoder or encoder on labelled texts: from a description to a finished classifier.

In: the folder of such a model with its tokenizer, labelled examples, settings. Out: a folder with model.safetensors,
config.json (shape, labels), tokenizer/, curve.jsonl and the last checkpoint, and where adapters were trained also
adapter/; a training that was stopped there continues. Steps: encode the examples with the base's tokenizer; copy the
base's trunk under a new head, or start from random weights for comparison; train all weights, or adapters and the
head, on batches of texts of similar length. The last weights are the result, because the learning rate falls to 0 and
the number of epochs was chosen on validation data. Validation examples are only measured.

`job_of` and `finetune` serve any kind of task that brings its network, examples, loss and validation; the functions
after them are those of classification.

Legend: N examples, C classes.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.data.examples import EncodedExamples, Encoder, ExampleBatches, encoded
from model.data.labelled import LabelledTexts
from model.data.tokenizer import TOKENIZER, Tokenizer, load_model_tokenizer
from model.evaluate import classification_metrics, outputs_of_texts
from model.network.heads import SequenceClassifier, classifier_from, new_classifier, pooled
from model.network.registry import Network, describe, load_base_network
from model.training.adapters import save_trained, start_adapters
from model.training.distributed import is_main
from model.training.files import WEIGHTS, sha256
from model.training.finetune_settings import FinetuneSettings, train_config
from model.training.loss import LossFunction, classification_loss
from model.training.machine import training_device
from model.training.pretraining import only_training, refuse_other_models
from model.training.run import Job, Observer, run

OUTSIDE_TRAIN_CONFIG = (  # settings of identity
    "initialisation", "tuning", "lora_rank", "lora_alpha", "lora_targets", "max_tokens", "truncation_side",
    "label_smoothing",
)  # fmt: skip
# Nats above the last losses from which a spike is reported: one wrong answer in a batch of 16 is no spike.
MIN_SPIKE_RISE = 1.0


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
    training: EncodedExamples
    loss_function: LossFunction  # a sum and a count, so that micro-batches and several processes are exact
    validate: Callable[[nn.Module], Mapping[str, float]]


def job_of(base: Base, task: Task, cfg: FinetuneSettings, made_from: Mapping[str, str]) -> Job:
    """What model/training/run.py needs; the network is on this process's device, and has adapters if these are
    trained."""
    device, train = training_device(), train_config(cfg, len(task.training.ids))
    max_tokens = base.max_tokens(cfg)
    longest = max_tokens if device.type == "cuda" else None
    description = {**task.description, "max_tokens": max_tokens, "truncation_side": cfg.truncation_side}
    if cfg.lora is not None:
        description = start_adapters(task.network, description, cfg.lora, base.directory, cfg.seed)
    return Job(
        model=task.network.to(device),
        cfg=train,
        description=description,
        batches=ExampleBatches(task.training, rows=train.rows, seed=cfg.seed, longest=longest),
        has_varying_lengths=True,
        loss_function=task.loss_function,
        validate=task.validate,
        made_from=made_from,
        min_spike_rise=MIN_SPIKE_RISE,
    )


def finetune(
    directory: Path, job: Job, observer: Observer, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Train to the end and write the model. Raises as `run` does."""
    run(directory, job, observer, progress)
    save_trained(directory, job.model, job.description)


# Classification.


@dataclass(frozen=True, kw_only=True, slots=True)
class Finetuning:
    base: Path  # a decoder or an encoder with its tokenizer
    out: Path  # of the classifier; a training that was stopped there continues
    training: LabelledTexts
    validation: LabelledTexts
    cfg: FinetuneSettings


def finetune_classifier(plan: Finetuning, observer: Observer) -> dict[str, float]:
    """Train to the end, write the model with its tokenizer and return its validation metrics.

    Raises Interrupted after a signal, once all that was done is saved; ValueError when base, examples or an earlier
    training in the folder do not fit, or a loss is not finite.
    """
    refuse_other_models(plan.out)
    base = load_base(plan.base)
    labels = plan.training.label_names()
    training, held_out = (
        encoded_texts(texts, labels, base.tokenizer, base.max_tokens(plan.cfg), plan.cfg.truncation_side)
        for texts in (plan.training, plan.validation)
    )
    made_from = {
        "base": sha256(plan.base / WEIGHTS),
        "training": plan.training.digest(),
        "validation": plan.validation.digest(),
        **{name: str(getattr(plan.cfg, name)) for name in OUTSIDE_TRAIN_CONFIG},
    }
    job = job_of(base, classification_task(base, labels, training, held_out, plan.cfg), plan.cfg, made_from)
    with only_training(plan.out):
        finetune(plan.out, job, observer)
        if is_main():
            shutil.copytree(plan.base / TOKENIZER, plan.out / TOKENIZER, dirs_exist_ok=True)
    return classification_values(job.model, held_out)


def classification_task(
    base: Base,
    labels: Sequence[str],
    training: EncodedExamples,
    held_out: EncodedExamples,
    cfg: FinetuneSettings,
) -> Task:
    network, description = classifier_network(base.network, labels, cfg.initialisation, cfg.seed)
    return Task(
        network=network,
        description=description,
        training=training,
        loss_function=partial(classification_loss, label_smoothing=cfg.label_smoothing),
        validate=lambda network: classification_values(network, held_out),
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
