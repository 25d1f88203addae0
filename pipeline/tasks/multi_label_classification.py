"""The kind of task `multi_label_classification`: the labels that a text has, any number of a fixed list.

In: rows with a text and its labels: a list, a text with a separator, an object of 0 and 1, or a column of 0 and 1 for
each label. A row without any label is an example, too. Out: the labels of a text with their probabilities.

Each label is a decision of its own, with binary cross entropy as its loss. It is answered if its probability reaches
its threshold, the one with the best F1 on the validation examples; the thresholds are stored in config.json by label.
Baselines are the most frequent set of labels, logistic regression on TF-IDF with thresholds chosen in the same way,
and the same network without pretraining.

Legend: N examples, C labels.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.examples import EncodedExamples, Encoder, encoded
from pipeline.corpus.examples.paths import fields_of
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.answers import column
from pipeline.evaluation.classification_metrics import (
    accuracy,
    calibration_error,
    f1_metrics,
    ranking_metrics,
    reliability_figure,
)
from pipeline.evaluation.comparisons import compared_results
from pipeline.evaluation.intervals import Counted
from pipeline.evaluation.label_sets import best_thresholds, f1_table, label_matrix, tfidf_label_sets
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import SPLITS, Shards
from pipeline.store.settings import Text
from pipeline.store.shards import read_table, shard_paths
from pipeline.tasks.classification import Pooling
from pipeline.tasks.kind import Kind
from pipeline.tasks.label_overview import label_counts, label_table, label_warnings
from pipeline.tasks.label_values import label_text, listed_labels, marked, named, names_of, shown, too_long
from pipeline.tasks.labelled_texts import LabelledTextsConfig, check_labels, text_row, with_label_names
from pipeline.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

JOINT = ","  # between the cells of label_columns: marks of 0 and 1 do not contain it
EXAMPLE = """
[comments]
kind = "multi_label_classification"
base = "minilm"
data = { path = "comments.csv" }
text = "text"
label = "labels"
separator = "," # instead of both: label_columns = ["rude", "sad"], columns of 0 and 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiLabelExamplesConfig(LabelledTextsConfig):
    """Settings for reading rows with any number of labels."""

    label: Annotated[
        Text,
        "Column that holds the labels, or the keys and list positions that lead to them, joined by dots: a list, an"
        " object of 0 and 1, or a text.",
    ]
    label_columns: Annotated[
        tuple[str, ...],
        "Columns that are a label each, with 1 in the rows that have it and 0 in the others; instead of label.",
    ] = ()
    separator: Annotated[str | None, "What is between two labels in a text; without a value a text is one label."] = (
        None
    )

    def __post_init__(self) -> None:
        LabelledTextsConfig.__post_init__(self)
        if self.label_columns and self.label != joined(self.label_columns):
            raise ValueError(
                f"label={self.label!r} and label_columns={list(self.label_columns)} both name the labels; give one"
            )
        if self.separator == "":
            raise ValueError("separator is empty; give the text between two labels, such as ';', or leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiLabelFinetuneConfig(FinetuneConfig):
    """Settings for training a classifier of several labels."""

    pooling: Pooling = None


@dataclass(frozen=True, slots=True)
class LabelSets(EncodedExamples):
    """Examples with labels_BC, and the names of these labels."""

    labels: tuple[str, ...] = ()


class MultiLabelClassifier(Predictor):
    """The labels of each text, the most probable one first, with their probabilities."""

    inputs: ClassVar = {"text": "string"}
    outputs: ClassVar = {"labels": ["string"], "probabilities": ["double"]}

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_classifier

        model, self.labels = load_classifier(directory)
        return model

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answer, and as `of_labels` the probabilities of all labels in their order."""
        thresholds = self.description.get("thresholds", {})  # a model made elsewhere has none
        thresholds_C = np.array([thresholds.get(label, 0.5) for label in self.labels])
        answers = []
        for row_C in self.probabilities([str(row["text"]) for row in rows]):
            places = [int(place) for place in np.argsort(-row_C, kind="stable")]
            chosen = [place for place in places if row_C[place] >= thresholds_C[place]]
            answer = {"labels": [self.labels[place] for place in chosen]}
            answers.append(answer | {"probabilities": [float(row_C[place]) for place in chosen], "of_labels": row_C})
        return answers

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of every label for every text, float64 (N, C); those of a text do not sum to 1."""
        return self.of_texts(texts, lambda logits_BC: logits_BC.sigmoid())


class MultiLabelClassification(Kind):
    name = identity = "multi_label_classification"
    evaluation_version, libraries = 1, ("scikit-learn", "scipy")
    predictor = MultiLabelClassifier
    examples, finetune, evaluation = MultiLabelExamplesConfig, MultiLabelFinetuneConfig, TaskEvaluationConfig
    example = EXAMPLE
    summary = "The base model with a head that decides for each label of the task whether a text has it."
    keys, parts = ("text", "label", "label_columns", "separator", "labels", "rename"), ("text", "label")
    columns = (pa.field("labels", pa.list_(pa.string()), nullable=False),)  # names, sorted
    metrics = (
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "subset_accuracy",
        "roc_auc",
        "average_precision",
        "calibration_error",
    )
    decides, must_beat = ("macro_f1", True), ("macro_f1", "majority")
    selects = ("validation_macro_f1", True)

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = with_label_names(table, where)
        if "label_columns" in table:
            columns = table["label_columns"]
            if "label" in table:
                raise ValueError(f"{where}: label and label_columns both name the labels; keep one of them")
            if not isinstance(columns, list) or not all(isinstance(one, str) and one for one in columns):
                raise ValueError(f"{where}: label_columns is {columns!r}, expected a list of names of columns")
            found["label"] = joined(columns)
        return found

    def row(self, parts: Mapping[str, Any], cfg: MultiLabelExamplesConfig) -> Row:
        row, value = text_row(parts["text"]), parts["label"]
        if row.reason is not None:
            return row
        if value is None or (isinstance(value, float) and math.isnan(value)):
            row.reason = "no_label"
        else:
            row.values, row.reason, row.detail = _labelled(value, cfg)
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return values["labels"]

    def check_examples(self, examples: pa.Table, cfg: MultiLabelExamplesConfig, name: str) -> None:
        check_labels(
            *(examples, labels_in, cfg, name),
            if_many="or does a text hold several labels, and separator is not set?",
            if_few='. Whether texts have a single label is a task of kind = "classification"',
        )
        for split in SPLITS[1:]:
            if not labels_in(examples.filter(pc.field("split") == split)):
                raise ValueError(
                    f"{name}: no {split} example has a label, so that macro F1 has no value there; add rows with"
                    " labels"
                )

    def describe_examples(self, examples: pa.Table) -> str:
        sizes = Counter(examples["labels"].combine_chunks().value_lengths().to_pylist())
        rows = [[f"{size:,}", f"{n:,}"] for size, n in sorted(sizes.items())]
        return (
            f"{label_table(label_counts(examples))}\n## Labels per example\n\n{table(['labels', 'examples'], rows)}"
        )

    def example_warnings(self, examples: pa.Table) -> list[str]:
        counts, n_rows = label_counts(examples), examples.num_rows
        everywhere = [label for label, of in counts.items() if of.total() == n_rows]
        told = [f"every example has the label {label!r}, so that there is nothing to learn" for label in everywhere]
        return [*label_warnings(counts), *told]

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: Encoder, max_tokens: int, truncation_side: str
    ) -> EncodedExamples:
        tokens, is_cut = encoded(tokenizer, rows["text"].to_pylist(), max_tokens, truncation_side)
        labels = labels_of(examples.directory)
        targets = {"labels_BC": label_matrix(rows["labels"].to_pylist(), labels).astype(np.float32)}
        return LabelSets(rows["id"].to_pylist(), tokens, targets, int(is_cut.sum()), labels=tuple(labels))

    def network(
        self, cfg: MultiLabelFinetuneConfig, base: Any, examples: Shards
    ) -> "tuple[nn.Module, dict[str, Any]]":
        from model.training.finetuning import classifier_network

        labels = labels_of(examples.directory)
        train = read_examples(examples.directory, "train", ["labels"])
        rates_C = label_matrix(train["labels"].to_pylist(), labels).mean(axis=0)
        network, description = classifier_network(
            base, labels, cfg.initialisation, cfg.seed, pooling=cfg.pooling, rates=rates_C
        )
        return network, description | {"problem": "multi_label"}

    def loss(self, cfg: MultiLabelFinetuneConfig) -> Any:
        from model.training.loss import multi_label_loss

        return multi_label_loss

    def validate(self, network: "nn.Module", encoded: EncodedExamples) -> dict[str, float]:
        """validation_loss (nats per decision) and, with the best thresholds on these examples, F1."""
        probabilities_NC, has_NC = self._decisions(network, encoded)
        likelihood_NC = np.where(has_NC, probabilities_NC, 1 - probabilities_NC)
        predicted_NC = probabilities_NC >= best_thresholds(probabilities_NC, has_NC)
        f1_C, _, _ = f1_table(has_NC, predicted_NC)
        n_right = (has_NC & predicted_NC).sum()
        return {
            "validation_loss": float(-np.log(np.maximum(likelihood_NC, 1e-300)).mean()),
            "validation_macro_f1": float(f1_C[has_NC.any(axis=0)].mean()) if has_NC.any() else 0.0,
            "validation_micro_f1": float(2 * n_right / max(1, has_NC.sum() + predicted_NC.sum())),
        }

    def finish(self, cfg: Any, network: "nn.Module", held_out: EncodedExamples) -> dict[str, Any]:
        """The threshold of each label, by its name."""
        assert isinstance(held_out, LabelSets)
        thresholds_C = best_thresholds(*self._decisions(network, held_out))
        return {"thresholds": dict(zip(held_out.labels, map(float, thresholds_C), strict=True))}

    def _decisions(self, network: "nn.Module", encoded: EncodedExamples) -> tuple[np.ndarray, np.ndarray]:
        from model.evaluate import outputs_of_texts

        probabilities_NC = outputs_of_texts(network, encoded.tokens, lambda logits_BC: logits_BC.sigmoid())
        return probabilities_NC, encoded.targets["labels_BC"] > 0

    def baselines(self, train: pa.Table, held_out: pa.Table) -> dict[str, Sequence[Answer]]:
        sets = train["labels"].to_pylist()
        frequent = Counter(map(tuple, sets))
        majority = list(min(frequent, key=lambda one: (-frequent[one], one)))
        texts, judged, groups = train["text"].to_pylist(), held_out["text"].to_pylist(), train["group_id"]
        return {
            "majority": [{"labels": majority}] * len(judged),
            "tfidf_logistic": tfidf_label_sets(texts, sets, groups.to_pylist(), judged),
        }

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The resampled unit is the example."""
        count = partial(counted, judged.description["labels"])
        return compared_results(judged, count, seed, lower_is_better=("calibration_error",))

    def details(self, judged: Judged) -> dict[str, float]:
        """F1 of each label that an example has."""
        true_NC = _matrix(judged, judged.examples)
        f1_C, _, _ = f1_table(true_NC, _matrix(judged, judged.model))
        of_label = zip(judged.description["labels"], f1_C, true_NC.sum(axis=0), strict=True)
        return {f"f1_{label}": float(f1) for label, f1, n_true in of_label if n_true}

    def mistakes(self, judged: Judged) -> Iterator[Mistake]:
        """Texts with a wrong or a missed label; the confidence is that of the decision that is wrong most clearly."""
        place = {label: i for i, label in enumerate(judged.description["labels"])}
        for row, (example, answer) in enumerate(zip(judged.examples, judged.model, strict=True)):
            expected, answered = {*example["labels"]}, {*answer["labels"]}
            of_labels = {label: float(answer["of_labels"][place[label]]) for label in expected ^ answered}
            if of_labels:
                confidence = max(p if label in answered else 1 - p for label, p in of_labels.items())
                yield Mistake(row, ", ".join(example["labels"]), ", ".join(sorted(answered)), confidence)

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        labels, true_NC = judged.description["labels"], _matrix(judged, judged.examples)
        f1_C, precision_C, recall_C = f1_table(true_NC, _matrix(judged, judged.model))
        rows = []
        for i, label in enumerate(labels):
            n_true, values = int(true_NC[:, i].sum()), (f1_C[i], precision_C[i], recall_C[i])
            shown_values = [f"{value:.4f}" if n_true else "-" for value in values]
            threshold = f"{judged.description['thresholds'][label]:.3f}"
            rows.append([plain(label), *shown_values, threshold, f"{n_true:,}"])
        header = ["label", "F1", "precision", "recall", "threshold", "examples"]
        return (
            "\n## Labels\n\nA label is answered if its probability is at least its threshold, which was chosen on the"
            " validation examples.\n\n" + table(header, rows)
        )

    def figures(self, judged: Judged) -> "dict[str, Figure]":
        probabilities_NC = np.asarray(column(judged.model, "of_labels"))
        return {"reliability": reliability_figure(probabilities_NC, _matrix(judged, judged.examples))}


KIND = MultiLabelClassification()


def joined(columns: Sequence[str]) -> str:
    """The template of several columns as one part of a row."""
    return JOINT.join(f"{{{column}}}" for column in columns)


def labels_in(examples: pa.Table) -> list[str]:
    """All labels that some of the examples have, sorted."""
    return sorted(examples["labels"].combine_chunks().flatten().unique().to_pylist())


def labels_of(directory: Path) -> list[str]:
    """Names of all labels of the examples, sorted: the order of a model's classes."""
    return labels_in(pa.concat_tables([read_table(path, columns=["labels"]) for path in shard_paths(directory)]))


def _labelled(value: Any, cfg: MultiLabelExamplesConfig) -> tuple[dict[str, Any], str | None, str]:
    """The values of a row, or its drop reason with details."""
    try:
        if cfg.label_columns:
            values = marked(dict(zip(fields_of(cfg.label), value.split(JOINT), strict=True)))
        else:
            values = listed_labels(value, cfg.separator)
    except ValueError as error:
        return {}, "not_labels", str(error)
    names, renamed, found = cfg.names(), names_of(cfg.rename), set()
    for one in values:
        one = named(one, renamed) or one
        label = named(one, names) if names else label_text(one)
        if label is None:
            return {}, "unknown_label", shown(one)
        if fault := too_long(label):
            return {}, "long_label", fault
        found.add(label)
    return {"labels": sorted(found)}, None, ""


def _matrix(judged: Judged, rows: Sequence[Answer]) -> np.ndarray:
    return label_matrix(column(rows, "labels"), judged.description["labels"])


def counted(labels: Sequence[str], examples: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, Counted]:
    """What is counted for each metric; those of probabilities need `of_labels` in the answers."""
    true_NC, chosen_NC = (label_matrix(column(rows, "labels"), labels) for rows in (examples, answers))
    found = {**f1_metrics(true_NC, chosen_NC, labels), "subset_accuracy": accuracy(true_NC, chosen_NC)}
    if len(answers) and "of_labels" in answers[0]:
        probabilities_NC = np.asarray(column(answers, "of_labels"))
        found |= ranking_metrics(probabilities_NC, true_NC, labels)
        found["calibration_error"] = calibration_error(probabilities_NC, true_NC)
    return found
