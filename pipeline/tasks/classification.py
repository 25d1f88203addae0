"""Classification: what a fine-tuned classifier is worth on test examples, beside simple baselines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from pipeline.corpus.examples.leaks import occurring
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.baselines import majority_predictions, tfidf_logistic_predictions
from pipeline.evaluation.metrics import (
    Comparison,
    accuracy_of,
    compare,
    confusion_matrix,
    estimate,
    f1_of,
    macro_f1_of,
)
from pipeline.evaluation.results import CONTENT, Result, markdown_table, result_of, save_figure
from pipeline.serving.generate import label_probabilities
from pipeline.store.records import Checkpoint, Handle, Report, Shards
from pipeline.store.shards import read_table, shard_paths, write_text
from pipeline.store.store import Outcome, Stage, Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = "examples_seen_in_pretraining"  # measure: judged examples whose words stand in the pretraining text


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationEvaluationConfig:
    """How a classifier is judged."""

    split: Annotated[Literal["test", "validation"], "examples; validation was used to choose the settings"] = "test"
    seed: Annotated[int, "of the resamples"] = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclass(frozen=True, slots=True)
class Judged:
    """What each model says about the held-out examples."""

    labels: tuple[str, ...]
    truth: list[str]
    predictions: dict[str, list[str]]  # model first, then the baselines

    def matrix(self, name: str) -> np.ndarray:
        return confusion_matrix(self.truth, self.predictions[name], self.labels)


def evaluate_classification(cfg: ClassificationEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: the model's Checkpoint, that of its random baseline if any, the examples, and the
    corpus of the pretraining if test examples are to be looked for in it."""
    models = [handle for handle in inputs if isinstance(handle, Checkpoint)]
    examples, *corpora = [handle for handle in inputs if isinstance(handle, Shards)]
    judged = judge(cfg, models, examples, work)
    results = classification_results(judged, cfg.seed)
    compared = (
        compare(judged.truth, judged.predictions["model"], judged.predictions["random_init"], cfg.seed)
        if "random_init" in judged.predictions
        else None
    )
    write_text(work.directory / "results.json", json.dumps(results, indent=1))
    write_text(work.directory / "report.md", classification_report(judged, cfg, compared))
    matrix_CC = judged.matrix("model")
    save_figure(confusion_figure(matrix_CC, judged.labels), work.directory / "figures" / "confusion_matrix.png")
    measures = {result["metric"]: result["value"] for result in results}
    measures |= {f"f1_{label}": float(f1) for label, f1 in zip(judged.labels, f1_of(matrix_CC), strict=True)}
    if corpora:
        texts = read_examples(examples.directory, cfg.split)["text"].to_pylist()
        measures[SEEN] = len(occurring(texts, training_texts(corpora[0])))
    return Outcome(rows=len(judged.truth), measures=measures, content=CONTENT)


def training_texts(corpus: Shards) -> Iterator[str]:
    """Texts of the train split, one shard in memory at a time."""
    for path in shard_paths(corpus.directory):
        table = read_table(path, columns=["text", "split"])
        rows = zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True)
        yield from (text for text, split in rows if split == "train")


def judge(cfg: ClassificationEvaluationConfig, models: Sequence[Checkpoint], examples: Shards, work: Work) -> Judged:
    train, held_out = (read_examples(examples.directory, split) for split in ("train", cfg.split))
    texts, truth = held_out["text"].to_pylist(), held_out["label"].to_pylist()
    predictions: dict[str, list[str]] = {}
    labels: tuple[str, ...] = ()
    for number, (name, model) in enumerate(zip(("model", "random_init"), models, strict=False)):
        labels, probabilities_NC = label_probabilities(model.directory, texts)
        predictions[name] = [labels[best] for best in probabilities_NC.argmax(axis=1)]
        work.progress(number + 1, len(models) + 2, "models")
    if unknown := sorted(set(truth) - set(labels)):
        raise ValueError(f"{models[0].directory} knows the labels {labels}, the examples also have {unknown}")
    train_texts, train_labels = train["text"].to_pylist(), train["label"].to_pylist()
    predictions["majority"] = majority_predictions(train_labels, len(texts))
    predictions["tfidf_logistic"] = tfidf_logistic_predictions(train_texts, train_labels, texts)
    work.progress(len(models) + 2, len(models) + 2, "models")
    return Judged(labels, truth, predictions)


def classification_results(judged: Judged, seed: int) -> list[Result]:
    """accuracy and macro_f1; the resampled unit is the example."""
    results = []
    for metric, function in (("accuracy", accuracy_of), ("macro_f1", macro_f1_of)):
        values = {name: float(function(judged.matrix(name))) for name in judged.predictions if name != "model"}
        results.append(result_of(metric, estimate(function, judged.matrix("model"), seed), values, higher=True))
    return results


def classification_report(judged: Judged, cfg: ClassificationEvaluationConfig, compared: Comparison | None) -> str:
    rows = [
        [name, *(str(estimate(metric, judged.matrix(name), cfg.seed)) for metric in (accuracy_of, macro_f1_of))]
        for name in judged.predictions
    ]
    matrix_CC = judged.matrix("model")
    by_label = [
        [label, f"{f1:.4f}", f"{count:,}"]
        for label, f1, count in zip(judged.labels, f1_of(matrix_CC), matrix_CC.sum(axis=1), strict=True)
    ]
    confusions = [[label, *(f"{n:,}" for n in row)] for label, row in zip(judged.labels, matrix_CC, strict=True)]
    parts = [
        "# Evaluation of the classifier\n",
        f"{len(judged.truth):,} {cfg.split} examples. In brackets: 95 % percentile interval over 1,000 resamples of"
        " the examples.\n",
        markdown_table(["model", "accuracy", "macro F1"], rows),
        "\nBy label:\n",
        markdown_table(["label", "F1", "examples"], by_label),
        "\nConfusion matrix (rows: true label, columns: predicted):\n",
        markdown_table(["", *judged.labels], confusions),
    ]
    if compared is not None:
        parts.append(
            f"\nAgainst the same network without pretraining: accuracy {compared.difference.value:+.4f}"
            f" ({compared.difference.low:+.4f} to {compared.difference.high:+.4f});"
            f" {compared.only_first_right} examples only the model has right, {compared.only_second_right} only the"
            f" other; exact McNemar test p = {compared.p_value:.3f}.\n"
        )
    return "\n".join(parts)


def confusion_figure(matrix_CC: np.ndarray, labels: Sequence[str]) -> "Figure":
    """The confusion matrix as shades of its row shares, with the counts."""
    from matplotlib.figure import Figure

    side = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares_CC = matrix_CC / np.maximum(matrix_CC.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    for row, counts in enumerate(matrix_CC):
        for column, count in enumerate(counts):
            color = "white" if shares_CC[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}\n{shares_CC[row, column]:.1%}", ha="center", va="center", color=color)
    return figure


EVALUATE_CLASSIFICATION = Stage(
    name="evaluate_classification",
    version=1,
    function=evaluate_classification,
    handle=Report,
    libraries=("torch", "scikit-learn"),
)
