"""Labelled texts from a file: JSON lines or Parquet with a column of texts and one of labels.

In: a path, the names of two columns. Out: LabelledTexts; ValueError names the file, and the first row without a text
or a label. A label is text; true, false and whole numbers are written as in JSON. Without a file of validation
examples a tenth of the texts is held out, chosen by a hash of the text, so that equal texts are on one side.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import json as pa_json
from pyarrow import parquet

HELD_OUT = 10  # one text in so many


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    where: str  # the file, for messages
    ids: tuple[str, ...]  # rows of the file, from 1
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def label_names(self) -> tuple[str, ...]:
        """All labels, sorted: the order of a model's classes. Raises ValueError when there are fewer than two."""
        names = tuple(sorted(set(self.labels)))
        if len(names) < 2:
            raise ValueError(f"{self.where}: the labels are {list(names)}, a classification needs at least 2")
        return names

    def digest(self) -> str:
        """Fingerprint of texts and labels in their order."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()

    def divided(self) -> "tuple[LabelledTexts, LabelledTexts]":
        """Nine tenths to train on and one tenth held out. Raises ValueError when one of them is empty."""
        is_held_out = [hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0 for text in self.texts]
        parts = self._where(is_held_out, False), self._where(is_held_out, True)
        if not all(part.texts for part in parts):
            raise ValueError(
                f"{self.where}: {len(self.texts)} examples are too few to hold out a tenth of them; give a file of"
                " validation examples"
            )
        return parts

    def _where(self, flags: list[bool], wanted: bool) -> "LabelledTexts":
        columns = (self.ids, self.texts, self.labels)
        kept = (tuple(v for v, flag in zip(column, flags, strict=True) if flag == wanted) for column in columns)
        return LabelledTexts(self.where, *kept)


def read_labelled(path: Path, text: str = "text", label: str = "label") -> LabelledTexts:
    """The rows of a .parquet file, or of a file of JSON lines."""
    is_parquet = path.suffix == ".parquet"
    try:
        table = parquet.read_table(path) if is_parquet else pa_json.read_json(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as {'Parquet' if is_parquet else 'JSON lines'} ({error})") from error
    if missing := [name for name in (text, label) if name not in table.column_names]:
        raise ValueError(f"{path}: no column {missing[0]!r}; there are {', '.join(table.column_names)}")
    texts, labels = table[text].to_pylist(), [label_text(value) for value in table[label].to_pylist()]
    for row, (one, name) in enumerate(zip(texts, labels, strict=True), start=1):
        if not isinstance(one, str) or not one.strip() or not name:
            fault = f"{label} is {table[label][row - 1].as_py()!r}" if not name else f"{text} is {one!r}"
            raise ValueError(f"{path}: row {row}: {fault}; every row needs a text and a label")
    return LabelledTexts(str(path), tuple(str(row) for row in range(1, len(texts) + 1)), tuple(texts), tuple(labels))


def label_text(value: Any) -> str:
    """A label as text; empty where it is missing or of another type."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    return value.strip() if isinstance(value, str) else ""
