"""Recipes of fine-tuning side by side, on validation examples alone: which one to choose, and what augmentation does.

In: a data folder that `gristmill demo` has filled (GRISTMILL_DATA, else data/). Out: a line of JSON per recipe and
seed in --out, where finished ones are not trained again, and a markdown table of all, with TF-IDF and logistic
regression on the same examples. Every recipe is measured on the texts as they are, and with typing errors, in another
case, and without some words.

    .venv/bin/python -m bench.finetune_recipes --out runs.jsonl [--task sarcasm] [--only plain mean] [--seed 0]
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.data.augment import Augmentation
from model.data.examples import ExampleBatches
from model.data.labelled import LabelledTexts
from model.evaluate import outputs_of_texts
from model.network.heads import SequenceClassifier, mean_of_real
from model.training.finetune_settings import FinetuneSettings, resolved, train_config
from model.training.finetuning import Base, Finetuning, classification_task, load_base
from model.training.step import new_state, train_step
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.baselines import tfidf_logistic_predictions
from pipeline.evaluation.intervals import mcnemar
from pipeline.store.layout import layout_from_environment, load_current

# Settings; and `pooling` of the hidden states (ours: the last), `averaged`: the share of the updates, at the
# end, whose weights are averaged (arXiv:1803.05407), and `final`: the part of the peak rate that is left then.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean of all tokens": {"pooling": "mean"},
    "last token + mean": {"pooling": "both"},
    "averaged weights": {"averaged": 0.4, "final": 0.3},
    "augmented": {"augment_word_dropout": 0.1, "augment_typos": 0.1, "augment_case": 0.2},
    "word dropout, 3 epochs": {"augment_word_dropout": 0.1, "epochs": 3},
    "lower rates, 3 epochs": {"muon_lr": 0.01, "adamw_lr": 0.002, "epochs": 3},
    "layer_decay 0.7": {"layer_decay": 0.7},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
}
NOISE = {
    "typos": Augmentation(typos=0.2),
    "another case": Augmentation(case=1.0),
    "missing words": Augmentation(word_dropout=0.1),
}
NOISE_SEED = 99


class Pooled(SequenceClassifier):
    """A decoder's classifier that reads all hidden states."""

    pooling = "mean"

    def forward(self, ids_BT: Tensor, lengths_B: Tensor, types_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.hidden_states(ids_BT, lengths_B, types_BT)
        pooled_BD = mean_of_real(x_BTD, lengths_B)
        if self.pooling == "both":
            pooled_BD = pooled_BD + x_BTD[torch.arange(len(x_BTD)), lengths_B - 1]
        return self.score(pooled_BD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sarcasm")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    layout = layout_from_environment()
    base = load_base(load_current(layout, "foundation_model").directory)
    examples = load_current(layout, f"{args.task}_examples").directory
    training, validation = (texts_of(examples, split) for split in ("train", "validation"))
    guessed = tfidf_logistic_predictions(training.texts, training.labels, validation.texts)
    is_right_N = np.array([a == b for a, b in zip(guessed, validation.labels, strict=True)])
    done = {(one["recipe"], one["seed"]) for one in read(args.out)}
    for recipe in args.only:
        if (recipe, args.seed) not in done:
            measured = trained(base, training, validation, {**RECIPES[recipe], "seed": args.seed}, is_right_N)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"recipe": recipe, "seed": args.seed, **measured}) + "\n")
    print(f"{args.task}: {len(validation.texts):,} validation examples; TF-IDF: {is_right_N.mean():.4f}\n")
    print_table(read(args.out))


def texts_of(directory: Path, split: str) -> LabelledTexts:
    table = read_examples(directory, split)
    return LabelledTexts(split, *(tuple(table[name].to_pylist()) for name in ("id", "text", "label")))


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []


def trained(
    base: Base, training: LabelledTexts, validation: LabelledTexts, recipe: dict[str, Any], is_right_N: np.ndarray
) -> dict[str, Any]:
    """What one training costs, and what its model gets right."""
    own = {name: recipe.pop(name) for name in ("pooling", "averaged", "final") if name in recipe}
    cfg = resolved(FinetuneSettings(**recipe), base.network.cfg.d_model)
    plan = Finetuning(base=base.directory, out=Path(), training=training, validation=validation, cfg=cfg)
    task = classification_task(base, plan, cfg)
    if "pooling" in own:
        task.network.__class__ = type("Pooled", (Pooled,), {"pooling": own["pooling"]})
    train = train_config(cfg, len(task.training.ids))
    train = dataclasses.replace(train, final_lr_fraction=own.get("final", 0.0))
    batches = ExampleBatches(task.training, rows=train.rows, seed=cfg.seed, of_epoch=task.of_epoch)
    state, mean = new_state(task.network, train), Averaged(task.network)
    started, wall = time.process_time(), time.perf_counter()
    for k in range(train.n_steps):
        train_step(state, batches.batch(k), train, task.loss_function, batches.n_rows(k))
        if k >= (1 - own.get("averaged", 0.0)) * train.n_steps:
            mean.add()
    seconds = {"cpu_seconds": time.process_time() - started, "seconds": time.perf_counter() - wall}
    if "averaged" in own:
        mean.load()
    return {**seconds, **measures(base, plan, task.network.eval(), is_right_N)}


class Averaged:
    """The mean of a network's weights at several moments."""

    def __init__(self, network: nn.Module) -> None:
        self.weights, self.n = list(network.parameters()), 0
        self.mean = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def add(self) -> None:
        self.n += 1
        for mean, weight in zip(self.mean, self.weights, strict=True):
            mean.lerp_(weight, 1 / self.n)

    @torch.no_grad()
    def load(self) -> None:
        for mean, weight in zip(self.mean, self.weights, strict=True):
            weight.copy_(mean)


def measures(base: Base, plan: Finetuning, network: nn.Module, is_right_N: np.ndarray) -> dict[str, float]:
    """Accuracy on the validation texts as they are and changed; on the former a paired test with TF-IDF."""
    labels = plan.training.label_names()
    truth_N = np.array([labels.index(label) for label in plan.validation.labels])

    def rights(texts: LabelledTexts) -> np.ndarray:
        ids = [[*base.tokenizer.opening, *one] for one in base.tokenizer.encode_batch(list(texts.texts))]
        tokens = [np.array(one[: base.max_tokens(plan.cfg)], np.int64) for one in ids]
        return outputs_of_texts(network, tokens, lambda logits_BC: logits_BC).argmax(axis=1) == truth_N

    ours_N = rights(plan.validation)
    p = mcnemar(int((ours_N & ~is_right_N).sum()), int((is_right_N & ~ours_N).sum()))
    noisy = {name: rights(plan.validation.augmented(noise, NOISE_SEED)).mean() for name, noise in NOISE.items()}
    return {"accuracy": float(ours_N.mean()), "p": p, **{name: float(value) for name, value in noisy.items()}}


def print_table(runs: list[dict[str, Any]]) -> None:
    columns = ("accuracy", "p", *NOISE, "cpu_seconds")
    print(f"| recipe | seed | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for one in runs:
        print(f"| {one['recipe']} | {one['seed']} | {' | '.join(f'{one[name]:.4g}' for name in columns)} |")


if __name__ == "__main__":
    main()
