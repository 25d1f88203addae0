"""Answers as columns: the same rows, in less memory."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation import answers
from pipeline.evaluation.answers import Rows, TableRows, column, packed, pieces_of, taken

ANSWERS = [
    {"label": "good", "probability": 0.5, "probabilities": np.array([0.5, 0.5]), "entities": [{"start": 1}]},
    {"label": "bad", "probability": 1, "probabilities": np.array([0.0, 1.0]), "entities": []},
    {"label": "good", "probability": 0.75, "probabilities": np.array([0.25, 0.75]), "entities": [{"start": 2}]},
]


def test_packed_rows_are_the_rows_that_were_given():
    rows = packed([ANSWERS[:2], [], ANSWERS[2:]])
    assert len(rows) == 3
    for row, again, expected in zip(rows, (rows[i] for i in range(3)), ANSWERS, strict=True):
        for one in (row, again):
            assert {**one, "probabilities": one["probabilities"].tolist()} == {
                **expected,
                "probabilities": expected["probabilities"].tolist(),
            }
    assert [row["label"] for row in rows[1:]] == ["bad", "good"] and rows[-1]["probability"] == 0.75
    with pytest.raises(IndexError):
        rows[3]


def test_packed_numbers_are_arrays_and_equal_texts_are_one_object():
    rows = packed([ANSWERS[:1], ANSWERS[1:]])
    assert column(rows, "probability").tolist() == [0.5, 1, 0.75]
    assert column(rows, "probabilities").dtype == np.float32 and column(rows, "probabilities").shape == (3, 2)
    labels = column(rows, "label")
    assert labels == ["good", "bad", "good"] and labels[0] is labels[2]
    assert column(rows, "entities") == [[{"start": 1}], [], [{"start": 2}]]


def test_packed_arrays_of_unequal_length_stay_arrays():
    rows = packed([[{"x": np.zeros(2)}], [{"x": np.zeros(3)}]])
    assert [len(value) for value in column(rows, "x")] == [2, 3]


def test_packed_of_nothing_is_empty():
    assert len(packed([])) == 0 and list(packed([[]])) == []


def test_table_rows_are_read_a_piece_at_a_time(monkeypatch):
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 2)
    table = pa.table({"text": ["a", "b", "c", "d", "e"], "size": [1, 2, 3, 4, 5]})
    rows = TableRows(table)
    assert [piece.num_rows for piece in pieces_of(table)] == [2, 2, 1]
    assert list(rows) == table.to_pylist() and rows[-1] == {"text": "e", "size": 5}
    assert list(rows[1:5:2]) == [table.to_pylist()[1], table.to_pylist()[3]]
    with pytest.raises(IndexError):
        rows[5]


@pytest.mark.parametrize("kind", [list, packed, TableRows])
def test_rows_at_some_places_and_columns_are_alike_in_every_form(kind):
    plain = [{"text": text, "size": size} for text, size in zip("abc", (1.0, 2.0, 3.0), strict=True)]
    rows = {list: plain, packed: packed([plain]), TableRows: TableRows(pa.Table.from_pylist(plain))}[kind]
    assert list(taken(rows, np.array([0, 2]))) == [plain[0], plain[2]]
    assert column(rows, "text") == ["a", "b", "c"] and column(rows, "size").tolist() == [1, 2, 3]


def test_rows_need_columns_of_one_length():
    with pytest.raises(ValueError):
        list(Rows({"a": [1], "b": [1, 2]}, 1))
