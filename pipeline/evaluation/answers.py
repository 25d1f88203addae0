"""Answers and examples of an evaluation in memory: as columns, read as rows.

In: answers in pieces, or a table of examples. Out: a sequence of rows. A million dicts with an array of probabilities
each would take gigabytes; as columns they take what their numbers take, float32 for arrays of floats.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

ROWS_AT_ONCE = 4096  # rows of Python objects in memory
MOST_SHARED = 10_000  # different texts
Row = Mapping[str, Any]


class Rows(Sequence[Row]):
    """Rows of named columns of equal length."""

    def __init__(self, columns: Mapping[str, Sequence[Any] | np.ndarray], n_rows: int) -> None:
        self.columns, self.n_rows = columns, n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Rows({name: column[place] for name, column in self.columns.items()}, len(range(len(self))[place]))
        if not -self.n_rows <= place < self.n_rows:
            raise IndexError(place)
        return {name: column[place] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Row]:
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))


class TableRows(Sequence[Row]):
    """Rows of a table, of which only a piece is in memory as Python objects."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return TableRows(self.table.take(pa.array(range(len(self))[place], pa.int64())))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.table.slice(place % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Row]:
        for piece in pieces_of(self.table):
            yield from piece.to_pylist()


def pieces_of(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        yield table.slice(start, ROWS_AT_ONCE)


def column(rows: Sequence[Row], name: str) -> Any:
    """All values of a column: an array if they are numbers or arrays of one length, otherwise a list."""
    if isinstance(rows, Rows):
        values = rows.columns[name]
        return np.asarray(values) if isinstance(values, array) else values
    values = rows.table[name].to_pylist() if isinstance(rows, TableRows) else [row[name] for row in rows]
    return np.array(values) if _packs(values) else values


def taken(rows: Sequence[Row], places: np.ndarray) -> Sequence[Row]:
    """The rows at some places, in their order."""
    if isinstance(rows, TableRows):
        return TableRows(rows.table.take(pa.array(places, pa.int64())))
    return [rows[int(place)] for place in places]


def packed(pieces: Iterable[Sequence[Row]]) -> Rows:
    """All rows of the pieces, of which each is released before the next is made. All rows have the same columns."""
    parts: dict[str, list[Any]] = {}
    n_rows, shared = 0, {}
    for piece in pieces:
        n_rows += len(piece)
        for name in piece[0] if piece else ():
            parts.setdefault(name, []).append(_packed_values([row[name] for row in piece], shared))
    return Rows({name: _joined(of_column) for name, of_column in parts.items()}, n_rows)


def _packs(values: Sequence[Any]) -> bool:
    """Whether the values are numbers, or arrays of one shape."""
    if not values:
        return False
    if isinstance(values[0], np.ndarray):
        return all(isinstance(one, np.ndarray) and one.shape == values[0].shape for one in values)
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _packed_values(values: list[Any], shared: dict[str, str]) -> Any:
    if not _packs(values):
        return [_shared(one, shared) if isinstance(one, str) else one for one in values]
    if not isinstance(values[0], np.ndarray):
        return array("d", values)
    stacked = np.stack(values)
    return stacked.astype(np.float32) if stacked.dtype == np.float64 else stacked


def _shared(text: str, shared: dict[str, str]) -> str:
    """The one object for a text that occurs often, such as a label."""
    return shared.setdefault(text, text) if len(shared) < MOST_SHARED else shared.get(text, text)


def _joined(parts: list[Any]) -> Any:
    if len({(type(one), getattr(one, "shape", (0,))[1:]) for one in parts}) > 1:
        return [value for part in parts for value in part]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    joined = parts[0]
    for part in parts[1:]:
        joined.extend(part)
    return joined
