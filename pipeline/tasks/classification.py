"""The kind of task `classification`: assigns each text one label of a fixed list.

In: rows with a text and a label. Out: the most likely label of a text, and its probability. The head reads the last
real token of a decoder, the only one that has seen the whole text, and the first token of an encoder or the mean of
all; the loss is cross entropy, optionally with smoothed labels, or with weights so that rare labels count as others.
Baselines are the majority class, TF-IDF with logistic regression, and the same network without pretraining.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Lt

from model.data.examples import EncodedExamples, Encoder
from model.data.labelled import LabelledTexts
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.answers import column
from pipeline.evaluation.baselines import tfidf_logistic_probabilities
from pipeline.evaluation.classification_metrics import (
    accuracy,
    calibration_error,
    f1_metrics,
    f1_of,
    mcc,
    one_hot,
    places_of,
    ranking_metrics,
    reliability_figure,
)
from pipeline.evaluation.comparisons import compared_results
from pipeline.evaluation.confusion import confusion_figure, confusion_matrix, confusion_tables
from pipeline.evaluation.intervals import Counted
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Answering, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Shards
from pipeline.store.shards import read_table, shard_paths
from pipeline.tasks.kind import Kind
from pipeline.tasks.label_overview import label_counts, label_table, label_warnings
from pipeline.tasks.label_values import label_text, marked, named, names_of, shown, too_long
from pipeline.tasks.labelled_texts import LabelledTextsConfig, check_labels, text_row, with_label_names
from pipeline.training.finetune import DEFAULTS, FinetuneConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

BALANCED = "balanced_B"  # target: the weight of each example with class_weights = balanced
EXAMPLE = """
[tickets]
kind = "classification"
base = "minilm"
data = { path = "tickets.csv" }
text = "subject"
label = "queue"
"""

Pooling = Annotated[
    Literal["first", "mean"] | None,
    "What an encoder classifies a text by: its first token, or the mean of all tokens; without a value as the base"
    " was made. A decoder has no such choice: it reads the last token.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationExamplesConfig(LabelledTextsConfig):
    """Settings for reading labelled rows."""

    def __post_init__(self) -> None:
        LabelledTextsConfig.__post_init__(self)
        if len(self.names()) == 1:
            raise ValueError(
                f"labels has one label, {next(iter(self.names().values()))!r}; a classification needs at least 2"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationFinetuneConfig(FinetuneConfig):
    """Settings for training a classifier."""

    label_smoothing: Annotated[
        float, Ge(0), Lt(1), "Probability that is spread evenly over all labels (arXiv:1512.00567)."
    ] = DEFAULTS.label_smoothing
    class_weights: Annotated[
        Literal["none", "balanced"],
        "Whether all examples count alike, or each label as a whole: with balanced an example counts the more, the"
        " rarer its label is. That finds more texts of rare labels, and makes the probabilities too high for them.",
    ] = "none"
    pooling: Pooling = None


class Classifier(Predictor):
    """The most likely label of each text with its probability."""

    inputs: ClassVar = {"text": "string"}
    outputs: ClassVar = {"label": "string", "probability": "double"}

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_classifier

        model, self.labels = load_classifier(directory)
        return model

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answer, and the probabilities of all labels in their order."""
        from model.evaluate import most_likely

        return most_likely(self.labels, self.probabilities([str(row["text"]) for row in rows]))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of every label for every text, float64 (N, C)."""
        return self.of_texts(texts, lambda logits_BC: logits_BC.softmax(dim=-1))


class Classification(Kind):
    name, identity = "classification", ""  # empty for the first kind, so that older outputs keep their fingerprint
    evaluation_version, libraries = 4, ("scikit-learn", "scipy")
    predictor = Classifier
    examples, finetune = ClassificationExamplesConfig, ClassificationFinetuneConfig
    evaluation = TaskEvaluationConfig
    example = EXAMPLE
    summary = "The base model with a head that decides between the labels of the task, trained on the examples."
    keys, parts = ("text", "label", "labels", "rename"), ("text", "label")
    columns = (pa.field("label", pa.string(), nullable=False),)  # name, not the value in the data
    metrics = (
        "accuracy",
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "mcc",
        "roc_auc",
        "average_precision",
        "calibration_error",
    )
    decides, must_beat = ("macro_f1", True), ("accuracy", "majority")
    can_be_prompted = True
    selects = ("validation_macro_f1", True)

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        return with_label_names(table, where)

    def row(self, parts: Mapping[str, Any], cfg: ClassificationExamplesConfig) -> Row:
        row, value = text_row(parts["text"]), parts["label"]
        if row.reason is not None:
            return row
        if isinstance(value, dict) and (label := _only_marked(value)) is not None:
            row.values, row.reason, row.detail = _labelled(label, cfg)
        elif isinstance(value, list | dict):
            row.reason, row.detail = "not_text_label", shown(value)
        else:
            row.values, row.reason, row.detail = _labelled(value, cfg)
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return (values["label"],)

    def check_examples(self, examples: pa.Table, cfg: ClassificationExamplesConfig, name: str) -> None:
        declared = f" (declared: {', '.join(cfg.names())})" if cfg.labels else ""
        check_labels(examples, labels_in, cfg, name, if_many="or is it another column?", if_few=declared)

    def describe_examples(self, examples: pa.Table) -> str:
        return label_table(label_counts(examples))

    def example_warnings(self, examples: pa.Table) -> list[str]:
        return list(label_warnings(label_counts(examples)))

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: Encoder, max_tokens: int, truncation_side: str
    ) -> EncodedExamples:
        from model.training.finetuning import encoded_texts

        columns = (tuple(rows[name].to_pylist()) for name in ("id", "text", "label"))
        texts = LabelledTexts(str(examples.directory), *columns)
        found = encoded_texts(texts, labels_of(examples.directory), tokenizer, max_tokens, truncation_side)
        balanced_B = balanced_weights(found.targets["labels_B"])
        return replace(found, targets={**found.targets, BALANCED: balanced_B})

    def network(
        self, cfg: ClassificationFinetuneConfig, base: Any, examples: Shards
    ) -> "tuple[nn.Module, dict[str, Any]]":
        from model.training.finetuning import classifier_network

        labels = labels_of(examples.directory)
        return classifier_network(base, labels, cfg.initialisation, cfg.seed, pooling=cfg.pooling)

    def loss(self, cfg: ClassificationFinetuneConfig) -> Any:
        from model.training.loss import classification_loss

        loss = balanced_loss if cfg.class_weights == "balanced" else classification_loss
        return partial(loss, label_smoothing=cfg.label_smoothing)

    def validate(self, network: "nn.Module", encoded: EncodedExamples) -> dict[str, float]:
        """validation_loss (nats per example), validation_accuracy and validation_macro_f1."""
        from model.training.finetuning import classification_values

        return classification_values(network, encoded)

    def baselines(self, train: pa.Table, held_out: pa.Table) -> dict[str, Sequence[Answer]]:
        from model.evaluate import most_likely

        texts, labels, judged = (column.to_pylist() for column in (train["text"], train["label"], held_out["text"]))
        names, counts = np.unique(np.array(labels), return_counts=True)
        probabilities = {
            "majority": np.broadcast_to(counts / counts.sum(), (len(judged), len(names))),
            "tfidf_logistic": tfidf_logistic_probabilities(texts, labels, judged),
        }
        return {name: most_likely(names.tolist(), of_texts_NC) for name, of_texts_NC in probabilities.items()}

    def prompted(self, base: Path, model: Mapping[str, Any]) -> Answering | None:
        from pipeline.tasks.prompting import zero_shot_answers

        return zero_shot_answers(base, model["labels"])

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The resampled unit is the example."""
        count = partial(counted, judged.description["labels"])
        return compared_results(judged, count, seed, lower_is_better=("calibration_error",))

    def details(self, judged: Judged) -> dict[str, float]:
        """F1 of each label that an example has."""
        counts, labels = _by_label(judged), judged.description["labels"]
        return {f"f1_{label}": float(f1) for label, f1, n_true in zip(labels, *counts, strict=True) if n_true}

    def mistakes(self, judged: Judged) -> Iterator[Mistake]:
        for row, (example, answer) in enumerate(zip(judged.examples, judged.model, strict=True)):
            if answer["label"] != example["label"]:
                yield Mistake(row, example["label"], answer["label"], answer["probability"])

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        labels, by_label = judged.description["labels"], zip(*_by_label(judged), strict=True)
        rows = [
            [plain(label), f"{f1:.4f}" if n_true else "-", f"{n_true:,}"]
            for label, (f1, n_true) in zip(labels, by_label, strict=True)
        ]
        parts = ["\n## Labels\n", table(["label", "F1", "examples"], rows)]
        return "\n".join([*parts, confusion_tables(matrix_of(judged), labels)])

    def figures(self, judged: Judged) -> "dict[str, Figure]":
        right_N = np.equal(_labels(judged.examples), _labels(judged.model))
        return {
            "confusion_matrix": confusion_figure(matrix_of(judged), judged.description["labels"]),
            "reliability": reliability_figure(column(judged.model, "probability"), right_N),
        }


KIND = Classification()


def balanced_weights(labels_B: np.ndarray) -> np.ndarray:
    """Weights with which all labels count alike, and whose sum is the number of examples; float32 (N,)."""
    _, place_B, n_examples = np.unique(labels_B, return_inverse=True, return_counts=True)
    return (len(labels_B) / len(n_examples) / n_examples).astype(np.float32)[place_B]


def balanced_loss(model: Any, batch: Any, label_smoothing: float) -> Any:
    """The sum over examples in proportion to their weights, and the sum of these."""
    from model.training.loss import classification_loss

    return classification_loss(model, {**batch, "weights_B": batch[BALANCED]}, label_smoothing)


def labels_in(examples: pa.Table) -> list[str]:
    """All labels of the examples, sorted."""
    return sorted(examples["label"].unique().to_pylist())


def labels_of(directory: Path) -> list[str]:
    """Names of all labels of the examples: the order of a model's classes."""
    return labels_in(pa.concat_tables([read_table(path, columns=["label"]) for path in shard_paths(directory)]))


def _only_marked(value: Mapping[str, Any]) -> str | None:
    """The label of an object such as {"positive": 1, "negative": 0}, None if not exactly one is marked."""
    try:
        labels = marked(value)
    except ValueError:
        return None
    return labels[0] if len(labels) == 1 else None


def _labelled(value: Any, cfg: ClassificationExamplesConfig) -> tuple[dict[str, Any], str | None, str]:
    """The values of a row with a label, or its drop reason with details."""
    judge = _judged_text if isinstance(value, str) else _judged
    label, reason, detail = judge(value, cfg.labels, cfg.rename)
    return ({} if label is None else {"label": label}), reason, detail


def _judged(value: Any, labels: tuple[str, ...], renamed: tuple[str, ...]) -> tuple[str | None, str | None, str]:
    """The label, or the drop reason with details."""
    names = names_of(labels)
    value = named(value, names_of(renamed)) or value
    label, name = label_text(value), named(value, names)
    if label is None and name is None:
        return None, "no_label", "" if value in (None, "") else shown(value)
    if names and name is None:
        return None, "unknown_label", shown(value)
    if not names and label is not None and (fault := too_long(label)):
        return None, "long_label", fault
    return (name if names else label), None, ""


_judged_text = lru_cache(maxsize=10_000)(_judged)  # few texts, in very many rows


def counted(labels: Sequence[str], examples: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, Counted]:
    """What is counted for each metric; those of probabilities need `probabilities` in the answers."""
    true_NC, chosen_NC = (one_hot(places_of(_labels(rows), labels), len(labels)) for rows in (examples, answers))
    found = {"accuracy": accuracy(true_NC, chosen_NC), **f1_metrics(true_NC, chosen_NC, labels)}
    found["mcc"] = mcc(true_NC, chosen_NC)
    if answers and "probabilities" in answers[0]:
        probabilities_NC = np.asarray(column(answers, "probabilities"))
        found |= ranking_metrics(probabilities_NC, true_NC, labels)
        right_N = np.asarray((true_NC & chosen_NC).any(axis=1))
        found["calibration_error"] = calibration_error(probabilities_NC[chosen_NC], right_N)
    return found


def _labels(rows: Sequence[Answer]) -> list[str]:
    return column(rows, "label")


def matrix_of(judged: Judged) -> np.ndarray:
    return confusion_matrix(_labels(judged.examples), _labels(judged.model), judged.description["labels"])


def _by_label(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """F1 and number of examples of each label."""
    matrix_CC = matrix_of(judged)
    n_true_C = matrix_CC.sum(axis=1)
    return f1_of(np.diagonal(matrix_CC), n_true_C, matrix_CC.sum(axis=0)), n_true_C
