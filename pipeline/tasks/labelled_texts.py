"""What the kinds of task whose rows have a text and labels share: settings of their rows, and checks of texts and
labels.

In: the parts of a row, or all examples. Out: a `Row` with its text or a drop reason; a ValueError where nothing can
be learned from the labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc

from model.data.examples import repaired
from pipeline.corpus.examples.protocol import ExamplesConfig
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import refuse_empty_splits
from pipeline.store.settings import Text
from pipeline.tasks.label_values import label_names, names_of, shown

MOST_LABELS = 100  # in the data; more are probably a wrong column


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledTextsConfig(ExamplesConfig):
    """Settings for reading rows with a text and labels."""

    text: Annotated[
        Text, "Column that holds the text, or the keys and list positions that lead to it, joined by dots."
    ]
    label: Annotated[
        Text, "Column that holds the label, or the keys and list positions that lead to it, joined by dots."
    ]
    labels: Annotated[
        tuple[str, ...],
        "Labels to keep, each as value=name: the value in the data and the name of the label. An empty list makes"
        " every value in the data a label.",
    ] = ()
    rename: Annotated[
        tuple[str, ...],
        "Labels to write otherwise, each as value=name: the value in the data and the label to make of it. All other"
        " labels stay as they are.",
    ] = ()

    def __post_init__(self) -> None:
        ExamplesConfig.__post_init__(self)
        names_of(self.rename)
        if self.text == self.label:
            raise ValueError(f"text and label are both {self.text!r}; they must be two columns")

    def names(self) -> Mapping[str, str]:
        """Value in the data -> name of the label; empty = as found."""
        return names_of(self.labels)


def with_label_names(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of a table of tasks.toml, with `labels` and `rename` as the settings have them."""
    renamed = {"rename": label_names(table["rename"], where, "rename")} if "rename" in table else {}
    return {**table, "labels": label_names(table.get("labels", []), where), **renamed}


def text_row(text: Any) -> Row:
    """A row with this text, or its drop reason."""
    row = Row(repaired(text) if isinstance(text, str) else "")
    if not row.text:
        is_missing = text is None or isinstance(text, str) or (isinstance(text, float) and math.isnan(text))
        row.reason, row.detail = ("no_text", "") if is_missing else ("not_text", shown(text))
    return row


def check_labels(
    examples: pa.Table,
    labels_in: Callable[[pa.Table], Sequence[str]],
    cfg: LabelledTextsConfig,
    name: str,
    *,
    if_many: str,
    if_few: str,
) -> None:
    """Raises ValueError for too many or too few labels, for empty splits, and for a label that no training example
    has. `labels_in` gives the labels of examples, sorted; `if_many` and `if_few` end a message."""
    found = labels_in(examples)
    if not cfg.labels and len(found) > MOST_LABELS:
        raise ValueError(
            f"{name}: {cfg.label!r} has {len(found)} different labels; more than {MOST_LABELS} need to be"
            f" declared: labels = [...]; {if_many}"
        )
    if len(found) < 2:
        raise ValueError(
            f"{name}: {examples.num_rows} usable rows with the labels {found}; at least 2 labels are needed in"
            f" {cfg.label!r}{if_few}"
        )
    refuse_empty_splits(examples, name)
    learned = labels_in(examples.filter(pc.field("split") == "train"))
    declared = sorted(set(cfg.names().values())) or found
    if missing := [label for label in declared if label not in learned]:
        raise ValueError(f"{name}: no training example has the label {missing[0]!r}; add rows or remove the label")
