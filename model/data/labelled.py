"""Labelled texts from a file: JSON lines or Parquet with a column of texts and one of labels.

In: a path, the names of two columns. Out: LabelledTexts; ValueError names the file, and the first row without a text
or a label. Texts are repaired as where the model is applied. A label is text; true, false and whole numbers are
written as in JSON. Without a file of validation examples a tenth of the texts is held out, chosen by a hash of the
text, so that equal texts are on one side.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from model.data.augment import Augmentation, augmented_texts
from model.data.examples import repaired

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

    def augmented(self, settings: Augmentation, seed: int) -> "LabelledTexts":
        """The same examples with texts as `settings` change them."""
        texts = augmented_texts(self.ids, self.texts, settings, seed)
        return LabelledTexts(self.where, self.ids, tuple(texts), self.labels)

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
    is_parquet = path.suffix.lower() == ".parquet"
    try:
        rows, columns = _parquet(path, (text, label)) if is_parquet else _json_lines(path)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as {'Parquet' if is_parquet else 'JSON lines'} ({error})") from error
    if rows and (missing := [name for name in (text, label) if name not in columns]):
        raise ValueError(f"{path}: no column {missing[0]!r}; there are {', '.join(columns)}")
    texts: list[str] = []
    labels = [label_text(row.get(label)) for row in rows]
    for number, (one, name) in enumerate(zip((row.get(text) for row in rows), labels, strict=True), start=1):
        if not isinstance(one, str) or not one.strip() or not name:
            fault = f"{label} is {rows[number - 1].get(label)!r}" if not name else f"{text} is {one!r}"
            raise ValueError(
                f"{path}: row {number}: {fault}; every row needs a text and a label"
                " (text, true, false or a whole number)"
            )
        texts.append(repaired(one))
    numbers = tuple(str(number) for number in range(1, len(texts) + 1))
    return LabelledTexts(str(path), numbers, tuple(texts), tuple(labels))


def _parquet(path: Path, wanted: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with those of the `wanted` columns that exist, and the names of all columns."""
    table = parquet.read_table(path)
    return table.select([name for name in table.column_names if name in wanted]).to_pylist(), table.column_names


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects in the lines of a file, and all names in them. ValueError names the line."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique) if line.strip() else None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if line.strip() and not isinstance(row, dict):
            raise ValueError(f"line {number} is a {type(row).__name__}, expected an object")
        rows += [] if row is None else [row]
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a name occurs twice among {', '.join(name for name, _ in pairs)}")
    return found


def label_text(value: Any) -> str:
    """A label as text; empty where it is missing or of another type."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    return repaired(value) if isinstance(value, str) else ""
