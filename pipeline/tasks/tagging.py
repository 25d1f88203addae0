"""The kind of task `tagging`: finds named entities, or other spans of a text, and their labels.

In: texts with entities as spans of characters, or files of columns with a tag per token (corpus/examples/conll.py).
Out: the entities of a text as spans of characters with label and probability. The head tags each word, by B and I of
every label and O, at the first piece of the word; the loss is cross entropy over words. A text that is longer than
the context is read in windows, so that nothing of it is cut off (model/data/tagged_texts.py). Baselines are a list of
the training entities (gazetteer), no entities at all (majority), and the same network without pretraining.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.examples import EncodedExamples, valid
from model.data.spans import Span, is_widened, tag_names, tags_of_spans
from model.data.words import word_spans
from pipeline.corpus.examples.conll import FORMATS, Columns, Scheme, conll_records
from pipeline.corpus.examples.labelled_file import Record, suffix_of
from pipeline.corpus.examples.protocol import ExamplesConfig
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import refuse_empty_splits, with_column
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.classification_metrics import refuse_unknown_labels
from pipeline.evaluation.comparisons import compared_results
from pipeline.evaluation.entity_metrics import entity_counts, entity_mistakes, f1, metrics_of, precision, recall
from pipeline.evaluation.gazetteer import Gazetteer
from pipeline.evaluation.intervals import Counted
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import SPLITS, Shards
from pipeline.store.settings import Text
from pipeline.store.shards import read_table, shard_paths
from pipeline.tasks.entity_rows import Refused, spans_in, struct_of
from pipeline.tasks.kind import Kind
from pipeline.tasks.label_values import label_names, names_of
from pipeline.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from torch import nn

ENTITY = pa.struct(
    [
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
    ]
)
EXAMPLE = """
[places]
kind = "tagging"
base = "minilm"
data = { path = "places.conll" }  # a line per token: the token first, the tag last; or rows of texts with spans
"""
CONTEXT = 60  # characters around a mistake
SHOWN_TEXTS = 3  # entities of a label in the description of the examples


@dataclass(frozen=True, kw_only=True, slots=True)
class TaggingExamplesConfig(ExamplesConfig):
    """Settings for reading texts with entities."""

    text: Annotated[
        Text, "Column that holds the text, or the keys and list positions that lead to it, joined by dots."
    ] = "text"
    entities: Annotated[
        Text,
        "Column that holds the list of entities, or the keys and list positions that lead to it. Each is an object,"
        " or a list [start, end, label].",
    ] = "entities"
    start: Annotated[Text, "Key of an entity's first character, counted from 0."] = "start"
    end: Annotated[Text, "Key of the character after its last one."] = "end"
    label: Annotated[Text, "Key of its label."] = "label"
    labels: Annotated[
        tuple[str, ...],
        "Labels to keep, each as value=name: the value in the data and the name of the label. Entities of other"
        " labels are left out. An empty list makes every value in the data a label.",
    ] = ()
    token_column: Annotated[int, "Column of the token in a file of columns, from 1, or from the last = -1."] = 1
    tag_column: Annotated[int, "Column of the tag in a file of columns, from 1, or from the last = -1."] = -1
    scheme: Annotated[
        Scheme,
        "How tags in a file of columns mark entities: bio, iob1, iobes, bilou, or io = labels alone. auto = the one"
        " that the fewest entities of the file break.",
    ] = "auto"
    text_of: Annotated[
        Literal["sentence", "document"],
        "What becomes one text: a sentence of a file of columns, or all those between two lines -DOCSTART-.",
    ] = "sentence"

    def __post_init__(self) -> None:
        ExamplesConfig.__post_init__(self)
        names_of(self.labels)
        if not self.token_column or not self.tag_column or self.token_column == self.tag_column:
            raise ValueError(
                f"token_column={self.token_column} and tag_column={self.tag_column} must be two columns, counted"
                " from 1 or, from the last, from -1"
            )


class Tagger(Predictor):
    """The entities of each text, in their order."""

    inputs: ClassVar = {"text": "string"}
    outputs: ClassVar = {
        "entities": [
            {"start": "long", "end": "long", "text": "string", "label": "string", "probability": "double"},
        ]
    }

    def load_network(self, directory: Path) -> Any:
        from model.data.spans import labels_of_tags
        from model.network.registry import load_model

        model, tags = load_model(directory, "cpu", "token_classifier")
        self.labels = labels_of_tags(tags or ())
        return model

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Offsets are characters of the text as it was given."""
        from model.data.examples import valid
        from model.data.tagged_texts import text_windows
        from model.generation.entities import entities_of

        texts = [valid(str(row["text"])) for row in rows]  # as in training
        windows = text_windows(self.tokenizer, texts, self.description["max_tokens"])
        found = entities_of(self.model, windows, self.labels)
        return [
            {"entities": [{**one, "text": text[one["start"] : one["end"]]} for one in of_text]}
            for text, of_text in zip(texts, found, strict=True)
        ]

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        return 0  # a text that is longer than the context is read in windows


class Tagging(Kind):
    name = identity = "tagging"
    evaluation_version, libraries = 1, ("scipy",)
    predictor = Tagger
    examples, finetune, evaluation = TaggingExamplesConfig, FinetuneConfig, TaskEvaluationConfig
    summary = "A base model with a head that tags words, trained on texts with entities."
    example = EXAMPLE
    keys = (
        *("text", "entities", "start", "end", "label", "labels"),
        *("token_column", "tag_column", "scheme", "text_of"),
    )
    parts = ("text", "entities")
    columns = (
        pa.field("entities", pa.list_(ENTITY), nullable=False),  # sorted, without overlap
        pa.field("n_mended", pa.int64(), nullable=False),  # entities whose tags break the scheme of the file
        pa.field("n_widened", pa.int64(), nullable=False),  # entities that do not begin and end where words do
    )
    metrics = ("f1", "precision", "recall", "macro_f1")
    decides, must_beat = ("f1", True), ("f1", "gazetteer")
    selects = ("validation_f1", True)

    # The examples.

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {**table, "labels": label_names(table.get("labels", []), where)}

    def records(
        self, name: str, content: bytes, cfg: ExamplesConfig, stray_quotes: list[int]
    ) -> Iterator[Record | str]:
        assert isinstance(cfg, TaggingExamplesConfig)
        if suffix_of(name) not in FORMATS:
            return super().records(name, content, cfg, stray_quotes)
        columns = Columns(token=cfg.token_column, tag=cfg.tag_column, scheme=cfg.scheme, text_of=cfg.text_of)
        return conll_records(name, content, columns)

    def row(self, parts: Mapping[str, Any], cfg: TaggingExamplesConfig) -> Row:
        text, entities = parts["text"], parts["entities"]
        if not isinstance(text, str) or not text.strip():
            is_missing = text is None or isinstance(text, str)
            return Row(
                "", reason="no_text" if is_missing else "not_text", detail="" if is_missing else repr(text)[:60]
            )
        row, keys = Row(valid(text)), {key: getattr(cfg, key) for key in ("start", "end", "label")}
        try:
            spans = spans_in(row.text, entities, keys, names_of(cfg.labels))
        except Refused as refused:
            row.reason, row.detail = refused.reason, refused.detail
            return row
        words_W2 = word_spans(row.text) if spans else np.zeros((0, 2), np.int64)
        is_mended = [one.get("is_mended") for one in entities if isinstance(one, dict)]
        row.values = {
            "entities": struct_of(spans),
            "n_mended": sum(map(bool, is_mended)),
            "n_widened": sum(is_widened(words_W2, span) for span in spans),
        }
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return sorted({one["label"] for one in values["entities"]})

    def check_examples(self, examples: pa.Table, cfg: TaggingExamplesConfig, name: str) -> None:
        refuse_empty_splits(examples, name)
        if not entity_labels(examples.filter(pc.field("split") == "train")):
            among = f" with one of the labels {', '.join(names_of(cfg.labels))}" if cfg.labels else ""
            raise ValueError(
                f"{name}: none of the training examples has an entity{among}; set `entities` to the column of the"
                " entities, or tag_column to that of the tags"
            )

    def describe_examples(self, examples: pa.Table) -> str:
        counts: dict[str, Counter[str]] = {}
        texts: dict[str, Counter[str]] = {}
        rows = zip(*(examples[name].to_pylist() for name in ("text", "split", "entities")), strict=True)
        for text, split, entities in rows:
            for one in entities:
                counts.setdefault(one["label"], Counter())[split] += 1
                texts.setdefault(one["label"], Counter())[text[one["start"] : one["end"]]] += 1
        cells = [
            [
                plain(label),
                *(f"{counts[label][split]:,}" for split in SPLITS),
                plain(", ".join(one for one, _ in texts[label].most_common(SHOWN_TEXTS))),
            ]
            for label in sorted(counts, key=lambda label: -counts[label].total())
        ]
        header = ["label", *(f"entities in {split}" for split in SPLITS), "most frequent"]
        return table(header, cells)

    def example_warnings(self, examples: pa.Table) -> list[str]:
        n_all = sum(map(len, examples["entities"].to_pylist()))
        n_mended, n_widened = (int(examples[name].to_numpy().sum()) for name in ("n_mended", "n_widened"))
        learned = set(entity_labels(examples.filter(pc.field("split") == "train")))
        unlearned = [label for label in entity_labels(examples) if label not in learned]
        warnings = []
        if n_mended:
            warnings.append(
                f"the tags of {n_mended:,} of {n_all:,} entities break the scheme of the file; they were mended"
            )
        if n_widened:
            warnings.append(
                f"{n_widened:,} of {n_all:,} entities do not begin and end where words do; the model learns them with"
                " the whole words, and is judged by the entities as they are"
            )
        if unlearned:
            warnings.append(f"no training example has an entity with the label {', '.join(unlearned)}")
        return warnings

    # Training.

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: Any, max_tokens: int, truncation_side: str
    ) -> EncodedExamples:
        from model.data.tagged_texts import supervised, text_windows

        del truncation_side  # nothing is cut
        numbers = {label: i for i, label in enumerate(labels_of(examples.directory))}
        texts = list(text_windows(tokenizer, rows["text"].to_pylist(), max_tokens))
        spans = (spans_of(entities) for entities in rows["entities"].to_pylist())
        tags = [tags_of_spans(text.words_W2, of, numbers) for text, of in zip(texts, spans, strict=True)]
        return supervised(rows["id"].to_pylist(), texts, tags)

    def augmented(self, rows: pa.Table, cfg: FinetuneConfig, seed: int) -> pa.Table:
        from model.data.augment import augmented_text, generator

        texts, entities = [], []
        for name, text, of_text in zip(*(rows[one].to_pylist() for one in ("id", "text", "entities")), strict=True):
            borders = [(one["start"], one["end"]) for one in of_text]
            changed, moved = augmented_text(text, borders, generator(seed, name), cfg.settings().augmentation)
            texts.append(changed)
            entities.append(
                [{**one, "start": start, "end": end} for one, (start, end) in zip(of_text, moved, strict=True)]
            )
        return with_column(with_column(rows, "text", texts), "entities", entities)

    def network(self, cfg: FinetuneConfig, base: Any, examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        from model.network.heads import new_token_classifier, token_classifier_from
        from model.network.registry import describe

        tags = tag_names(labels_of(examples.directory))
        description = describe(base.cfg, tuple(tags), kind="token_classifier")
        if cfg.initialisation == "random":
            return new_token_classifier(base.cfg, len(tags), cfg.seed), description
        return token_classifier_from(base, len(tags), cfg.seed), description

    def loss(self, cfg: FinetuneConfig) -> Any:
        from model.training.loss import token_loss

        return token_loss

    def validate(self, network: "nn.Module", encoded: EncodedExamples) -> dict[str, float]:
        """validation_loss (nats per word) and validation_f1 (of entities as the words that they have)."""
        from model.generation.entities import tagging_values

        return tagging_values(network, encoded)

    # Evaluation.

    def baselines(self, train: pa.Table, held_out: pa.Table) -> dict[str, Sequence[Answer]]:
        texts, entities = train["text"].to_pylist(), train["entities"].to_pylist()
        gazetteer = Gazetteer(texts, [spans_of(of_text) for of_text in entities])
        judged = held_out["text"].to_pylist()
        return {
            "gazetteer": [{"entities": struct_of(gazetteer.find(text))} for text in judged],
            "majority": [{"entities": []}] * len(judged),  # most words are in no entity
        }

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The resampled unit is the text."""
        return compared_results(judged, partial(counted, labels_in(judged)), seed)

    def details(self, judged: Judged) -> dict[str, float]:
        """F1 of each label that an entity has."""
        counts_L3 = counts_of(labels_in(judged), judged.examples, judged.model).sum(axis=0)
        return {
            f"f1_{label}": float(f1(of_label_3))
            for label, of_label_3 in zip(labels_in(judged), counts_L3, strict=True)
            if of_label_3[2]
        }

    def mistakes(self, judged: Judged) -> Iterator[Mistake]:
        for row, (example, answer) in enumerate(zip(judged.examples, judged.model, strict=True)):
            true, found = spans_of(example["entities"]), spans_of(answer["entities"])
            probabilities = {one["start"]: one["probability"] for one in answer["entities"]}
            for one in entity_mistakes(true, found):
                text = example["text"]
                shown = text[max(0, one.span.start - CONTEXT) : one.span.end + CONTEXT]
                expected, answered = (shown_span(text, span) for span in (one.true, one.found))
                confidence = probabilities[one.found.start] if one.found else 0.0
                yield Mistake(row, expected, f"{answered} ({one.kind})", confidence, shown)

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        labels, kinds = labels_in(judged), Counter[str]()
        counts_L3 = counts_of(labels, judged.examples, judged.model).sum(axis=0)
        for example, answer in zip(judged.examples, judged.model, strict=True):
            mistakes = entity_mistakes(spans_of(example["entities"]), spans_of(answer["entities"]))
            kinds.update(one.kind for one in mistakes)
        rows = [
            [
                plain(label),
                *(f"{value(one):.4f}" for value in (f1, precision, recall)),
                *(f"{n:,}" for n in one[::-1]),
            ]
            for label, one in zip(labels, counts_L3, strict=True)
        ]
        header = ["label", "F1", "precision", "recall", "true", "found", "right"]
        parts = [
            "\n## Labels\n\nAn entity is right if its first and last character and its label are.\n",
            table(header, rows),
            "\n## Mistakes by kind\n",
            table(["mistake", "entities"], [[kind, f"{n:,}"] for kind, n in kinds.most_common()]),
        ]
        return "\n".join(parts if kinds else parts[:2])


KIND = Tagging()


def spans_of(entities: Sequence[Mapping[str, Any]]) -> list[Span]:
    return [Span(one["start"], one["end"], one["label"]) for one in entities]


def entity_labels(examples: pa.Table) -> list[str]:
    """The labels of all entities, sorted."""
    return sorted({one["label"] for of_text in examples["entities"].to_pylist() for one in of_text})


def labels_of(directory: Path) -> list[str]:
    """The labels of all examples, sorted: the order of the tags of a model."""
    return entity_labels(
        pa.concat_tables([read_table(path, columns=["entities"]) for path in shard_paths(directory)])
    )


def labels_in(judged: Judged) -> list[str]:
    from model.data.spans import labels_of_tags

    return labels_of_tags(judged.description["labels"])


def counts_of(labels: Sequence[str], examples: Sequence[Answer], answers: Sequence[Answer]) -> np.ndarray:
    """Right, found and true entities per text and label, int64 (N, L, 3). Raises ValueError for a label that the
    model does not know."""
    true, found = ([spans_of(row["entities"]) for row in rows] for rows in (examples, answers))
    refuse_unknown_labels((span.label for of in true for span in of), labels)
    return entity_counts(true, found, labels)


def counted(labels: Sequence[str], examples: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, Counted]:
    return metrics_of(counts_of(labels, examples, answers))


def shown_span(text: str, span: Span | None) -> str:
    return "nothing" if span is None else f"{span.label}: {text[span.start : span.end]}"
