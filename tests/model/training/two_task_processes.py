"""What the children of test_distributed_tasks.py do: `two_task_processes.py DIRECTORY ACTION...`.

In: a folder with `decoder` and `encoder`, which are bases; actions `train:folder:trunk:head:tuning`. Out: in the
folder of each action the finished model of a task, as fine-tuning writes it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.data.batch_layout import IGNORE_INDEX
from model.data.examples import EncodedExamples
from model.network.heads import classifier_from, span_classifier_from, token_classifier_from
from model.network.registry import describe, load_base_network
from model.training.finetune_settings import FinetuneSettings, resolved
from model.training.finetuning import Base, Task, finetune, job_of
from model.training.loss import classification_loss, multi_label_loss, span_loss, token_loss
from tests.model.training.two_processes import Silent, group

LENGTHS = (5, 12, 7, 9, 12, 3, 8, 6, 4, 11, 10)  # an odd number, so that a batch has a row less than the others
LABELS = ("a", "b", "c")
KINDS = {
    "labels": ("sequence_classifier", classification_loss),
    "label_sets": ("sequence_classifier", multi_label_loss),
    "tokens": ("token_classifier", token_loss),
    "span": ("span_classifier", span_loss),
}
# Small steps from weights of usual size: where a gradient is near 0, AdamW makes a whole step of its roundings.
RATES = {"lora_lr": 1e-3, "head_lr": 1e-3, "adamw_lr": 1e-3}


def examples(head: str) -> EncodedExamples:
    """Rows with different numbers of targets; of tokens and spans some have none."""
    rng = np.random.default_rng(3)
    tokens = [rng.integers(1, 40, n) for n in LENGTHS]
    ids, n = [f"{i}" for i in range(len(tokens))], len(tokens)
    if head == "labels":
        return EncodedExamples(ids, tokens, {"labels_B": rng.integers(0, 3, n)})
    if head == "label_sets":
        return EncodedExamples(ids, tokens, {"labels_BC": rng.integers(-1, 2, (n, 3)).astype(np.float32)})
    if head == "tokens":
        labels = [rng.integers(0, 3, len(one)) for one in tokens]
        for row, of_row in enumerate(labels):
            of_row[row % 3 :] = IGNORE_INDEX
        return EncodedExamples(ids, tokens, {}, token_targets={"labels_BT": labels})
    starts = np.array([place % length for place, length in enumerate(LENGTHS)])
    allowed = [np.ones(length, bool) for length in LENGTHS]
    return EncodedExamples(ids, tokens, {"starts_B": starts, "ends_B": starts}, token_targets={"allowed_BT": allowed})


def new_model(base: Path, head: str) -> nn.Module:
    """The network before its first step; its head is drawn, because one of zeros gives adapters no gradient."""
    network = load_base_network(base)
    make = {"tokens": lambda: token_classifier_from(network, 3, 0), "span": lambda: span_classifier_from(network, 0)}
    model: Any = make.get(head, lambda: classifier_from(network, 3, 0))()
    torch.nn.init.normal_(model.score.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    return model


def train(directory: Path, trunk: str, head: str, tuning: str) -> None:
    folder = directory.parent / trunk
    (kind, loss), rows, model = KINDS[head], examples(head), new_model(folder, head)
    base = Base(folder, load_base_network(folder), None)  # type: ignore[arg-type]  (the examples are tokens)
    settings = FinetuneSettings(
        **{"tuning": tuning, "epochs": 3, "rows": 4, "optimizer": "adamw", "lora_rank": 2, **RATES},
        keep="best", validations_per_epoch=1,
    )  # fmt: skip
    task = Task(
        network=model,
        description=describe(base.network.cfg, None if head == "span" else LABELS, kind=kind),
        training=rows,
        loss_function=loss,
        validate=lambda network: {"validation_loss": mean_loss(network, rows, loss)},
        selects=("validation_loss", False),
    )
    directory.mkdir(parents=True, exist_ok=True)
    with group():
        finetune(directory, job_of(base, task, resolved(settings, 16, len(rows.ids)), {}), Silent())


@torch.inference_mode()
def mean_loss(network: nn.Module, rows: EncodedExamples, loss: Any) -> float:
    summed, n = loss(network, rows.batch(np.arange(len(rows.ids))))
    return float(summed / n)


if __name__ == "__main__":
    for action in sys.argv[2:]:
        _, name, *arguments = action.split(":")
        train(Path(sys.argv[1]) / name, *arguments)
