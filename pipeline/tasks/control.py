"""The kind of task `control`: a decoder learns to write texts with attributes that it is told, such as a sentiment.

In: rows with a text and a label. Out: a decoder with its chat template. Each row becomes a conversation: the message
of the user names attributes of the text (control codes, arXiv:1909.05858, as plain text), the answer is the text
itself. Beside the label it learns the length, which is measured on the text. Which attributes a row names is drawn by
its text, so that each can be asked for alone; a share of rows names none, so that the model still writes freely.
Training, evaluation and use are those of `instruction`; `gristmill generate --control` tells the attributes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from annotated_types import Ge, Lt

from model.data.chat import Message
from model.data.control_text import CONTROL, LENGTH, attributes_in, control_message, length_of
from pipeline.corpus.examples.conversations import MESSAGES
from pipeline.corpus.examples.protocol import Rows
from pipeline.corpus.examples.rows import Row
from pipeline.store.records import Shards
from pipeline.store.settings import Count, Text
from pipeline.store.shards import read_table, shard_paths, text_digest
from pipeline.tasks.classification import KIND as CLASSIFICATION
from pipeline.tasks.classification import labels_in
from pipeline.tasks.instruction import Instruction, InstructionConfig, conversations_overview
from pipeline.tasks.label_overview import label_counts, label_table, label_warnings
from pipeline.tasks.labelled_texts import LabelledTextsConfig, check_labels, with_label_names

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlExamplesConfig(LabelledTextsConfig):
    """Settings for making conversations of labelled texts."""

    attribute: Annotated[Text, "What the labels say about a text, in a word, such as sentiment, tone or style."]
    learn_length: Annotated[
        bool, "Also learn whether a text is short, medium or long, so that a length can be asked for."
    ] = True
    short_words: Annotated[Count, "A text with fewer words is short."] = 15
    long_words: Annotated[Count, "A text with at least so many words is long."] = 40
    free_share: Annotated[
        float,
        Ge(0),
        Lt(1),
        "Fraction of texts that are learned without any attribute, so that none has to be asked for.",
    ] = 0.1

    def __post_init__(self) -> None:
        LabelledTextsConfig.__post_init__(self)
        if self.attribute == LENGTH and self.learn_length:
            raise ValueError(f"attribute is {LENGTH!r}, which learn_length learns from the texts; set it to false")
        if self.short_words > self.long_words:
            raise ValueError(f"short_words={self.short_words} is above long_words={self.long_words}")


class Control(Instruction):
    name = identity = "control"
    examples = ControlExamplesConfig
    summary = "A decoder that was tuned to write texts with attributes that it is told."
    example = """
[reviews]
kind = "control"
base = "smollm2"                 # a decoder
data = { path = "reviews.csv" }
text = "review"
label = "stars"
labels = { "1" = "negative", "5" = "positive" }
attribute = "sentiment"
"""
    parts, optional = ("text", "label"), ()
    keys = ("text", "label", "labels", "rename", "attribute")
    columns = (pa.field("messages", MESSAGES, nullable=False), pa.field("label", pa.string(), nullable=False))
    records = Rows.records  # a file of labelled texts has no form of its own

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        return with_label_names(table, where)

    def row(self, parts: Mapping[str, Any], cfg: ControlExamplesConfig) -> Row:  # type: ignore[override]
        row = CLASSIFICATION.row(parts, cfg)  # type: ignore[arg-type]
        if row.reason is None:
            told = control_message(told_attributes(row.text, row.values["label"], cfg))
            row.values["messages"] = [
                {"role": message.role, "content": message.content}
                for message in (Message("user", told), Message("assistant", row.text))
            ]
        return row

    def strata(self, values: Mapping[str, Any]) -> Sequence[str]:
        return (values["label"],)

    def check_examples(self, examples: pa.Table, cfg: ControlExamplesConfig, name: str) -> None:  # type: ignore[override]
        check_labels(examples, labels_in, cfg, name, if_many="or is it another column?", if_few="")

    def describe_examples(self, examples: pa.Table) -> str:
        return f"{label_table(label_counts(examples))}\n\n{conversations_overview(examples)}"

    def example_warnings(self, examples: pa.Table) -> list[str]:
        return list(label_warnings(label_counts(examples)))

    def augmented(self, rows: pa.Table, cfg: Any, seed: int) -> pa.Table:
        del cfg, seed
        return rows  # attributes are told without typing errors

    def network(self, cfg: InstructionConfig, base: Any, examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        network, description = super().network(cfg, base, examples)
        return network, description | {CONTROL: learned_attributes(examples.directory)}


KIND = Control()


def told_attributes(text: str, label: str, cfg: ControlExamplesConfig) -> dict[str, str]:
    """The attributes of a text that its row names: some of them, drawn by the text, or none."""
    known = {cfg.attribute: label}
    if cfg.learn_length:
        known[LENGTH] = length_of(text, cfg.short_words, cfg.long_words)
    drawn = int(text_digest("control", text)[:12], 16) / 16**12
    if drawn < cfg.free_share:
        return {}
    # All of them, or one alone, each as often as the others.
    sets = [tuple(known), *((name,) for name in known)] if len(known) > 1 else [tuple(known)]
    place = int((drawn - cfg.free_share) / (1 - cfg.free_share) * len(sets))
    return {name: known[name] for name in sets[place]}


def learned_attributes(directory: Path) -> dict[str, list[str]]:
    """The values of each attribute that the examples name."""
    found = defaultdict[str, set[str]](set)
    for path in shard_paths(directory):
        for messages in read_table(path, columns=["messages"])["messages"].to_pylist():
            for name, value in attributes_in(messages[0]["content"]).items():
                found[name].add(value)
    return {name: sorted(found[name]) for name in sorted(found)}
