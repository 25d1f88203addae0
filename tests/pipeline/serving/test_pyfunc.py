"""The served model keeps the contract of tables: a row for a row, with the index of the question."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from pipeline.serving.pyfunc import table_of
from pipeline.tasks.kind import kind_named
from pipeline.tracking.packaging import column_type, write_package

INPUTS = {"text": "string"}
# In place of a network: the label is the first word, so that a shifted row is seen.
FIRST_WORD = """

class FirstWord:
    inputs = {"text": "string"}
    outputs = {"label": "string", "probability": "double"}
    def __init__(self, directory):
        self.labels = ()
    def answer(self, rows):
        return [{"label": row["text"].split()[0], "probability": 0.5} for row in rows]


set_model(TaskModel(FirstWord))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Any:
    """The package of a classifier, loaded as MLflow loads it, with a predictor that needs no weights."""
    package: Path = tmp_path_factory.mktemp("served") / "package"
    write_package(package, kind_named("classification"), "m-1", "r-1")
    code = package / "model_code.py"
    code.write_text(code.read_text("utf-8") + FIRST_WORD, "utf-8")
    return mlflow.pyfunc.load_model(str(package))


@pytest.mark.parametrize(
    "index",
    [
        [10, 11, 12],
        [2, 1, 0],
        [5, 5, 5],
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["shop", "day"]),
        pd.date_range("2026-01-01", periods=3),
    ],
    ids=["filtered", "reversed", "duplicates", "levels", "dates"],
)
def test_answer_has_the_index_of_the_question(served, index):
    """The answers were numbered from 0, so that a filtered table got labels of other rows, or none
    (mlflow/mlflow#25649, alteryx/evalml#1639)."""
    table = pd.DataFrame({"note": [1, 2, 3], "text": ["red x", "green y", "blue z"]}, index=index)
    answers = served.predict(table)
    assert answers.index.equals(table.index) and list(answers["label"]) == ["red", "green", "blue"]
    if table.index.is_unique:
        table["label"] = answers["label"]
        assert list(table["label"]) == ["red", "green", "blue"]


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA, pd.NaT])
def test_missing_text_gets_a_missing_answer_and_shifts_nobody(served, nothing):
    table = pd.DataFrame({"text": pd.Series(["red x", nothing, "blue z"], dtype=object, index=[7, 8, 9])})
    answers = served.predict(table)
    assert list(answers["label"].isna()) == list(answers["probability"].isna()) == [False, True, False]
    assert answers["probability"].dtype == "float64"
    assert answers.loc[9, "label"] == "blue"


@pytest.mark.parametrize("cell", [5, 2.5, True, b"red", ["red"], {"a": 1}])
def test_cell_that_is_no_text_is_an_error_that_names_the_row(served, cell):
    table = pd.DataFrame({"text": pd.Series(["red x", cell], dtype=object, index=["first", "second"])})
    with pytest.raises(MlflowException, match=r"row 1 \(index second\) has the .* in 'text', expected a text"):
        served.predict(table)


@pytest.mark.parametrize(
    "question",
    [
        pd.DataFrame({"text": ["red x", "blue z"]}),
        pd.Series(["red x", "blue z"], name="text"),
        {"text": ["red x", "blue z"]},
        [{"text": "red x"}, {"text": "blue z"}],
    ],
    ids=["table", "series", "columns", "records"],
)
def test_question_may_be_a_table_a_column_columns_or_records(served, question):
    assert list(served.predict(question)["label"]) == ["red", "blue"]


@pytest.mark.parametrize("question", ["red x", ["red x"], pd.Series(["red x"], name="other"), {"text": "red x"}])
def test_question_without_the_check_of_names_may_be_one_text_or_a_list(question):
    assert table_of(question, INPUTS).to_dict("list") == {"text": ["red x"]}


def test_empty_table_gets_an_empty_answer(served):
    for empty in (pd.DataFrame({"text": pd.Series([], dtype=object)}), pd.DataFrame({"text": ["x"]}).iloc[:0]):
        answers = served.predict(empty)
        assert len(answers) == 0 and list(answers) == ["label", "probability"]
        assert answers["probability"].dtype == "float64"


def test_table_without_the_column_is_an_error_that_names_it():
    with pytest.raises(MlflowException, match="expected one named 'text'"):
        table_of(pd.DataFrame({"a": ["x"], "b": ["y"]}), INPUTS)


def asked(served, body: dict) -> list[dict]:
    """What MLflow's scoring server answers to a request."""
    schema = served.metadata.get_input_schema()
    answer = invocations(json.dumps(body), "application/json", served, schema)
    assert answer.status == 200
    return json.loads(answer.response)["predictions"]


def test_scoring_server_answers_split_tables_records_and_columns(served):
    split = {"index": [4, 9], "columns": ["id", "text"], "data": [[1, "red x"], [2, "blue z"]]}
    for body in (
        {"dataframe_split": split},
        {"dataframe_records": [{"text": "red x"}, {"text": "blue z"}]},
        {"inputs": {"text": ["red x", "blue z"]}},
    ):
        assert [row["label"] for row in asked(served, body)] == ["red", "blue"]
    answers = asked(served, {"dataframe_split": {**split, "data": [[1, None], [2, "blue z"]]}})
    assert [row["label"] for row in answers] == [None, "blue"]
    with pytest.raises(MlflowException, match=r"row 0 \(index 4\)") as error:
        asked(served, {"dataframe_split": {**split, "data": [[1, ["red"]], [2, "blue z"]]}})
    assert error.value.get_http_status_code() == 400


FIRST_LETTERS = """

class FirstLetters:
    inputs = {"text": "string"}
    outputs = {"entities": [{"start": "long", "text": "string"}]}
    def __init__(self, directory):
        self.labels = ()
    def answer(self, rows):
        return [{"entities": [{"start": 0, "text": row["text"][:1]}]} for row in rows]


set_model(TaskModel(FirstLetters))
"""


def test_answer_may_hold_lists_of_objects(tmp_path):
    """An answer with several spans failed on `unhashable type: 'list'`, and had no signature."""
    package = tmp_path / "package"
    declared = column_type([{"start": "long", "text": "string"}]).to_dict()
    assert declared["items"]["properties"]["start"] == {"type": "long", "required": True}
    write_package(package, kind_named("classification"), "m-1", "r-1")
    code = package / "model_code.py"
    code.write_text(code.read_text("utf-8") + FIRST_LETTERS, "utf-8")
    served = mlflow.pyfunc.load_model(str(package))
    answers = served.predict(pd.DataFrame({"text": ["red", None]}))
    assert list(answers["entities"]) == [[{"start": 0, "text": "r"}], None]
