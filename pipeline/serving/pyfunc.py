"""The code that MLflow stores with a registered model and runs when it is loaded.

In: a table with the input columns of the kind of task, in any order and with any others beside them; records or
columns of the same names. Without MLflow's check of the signature, which asks for names, also a list or one value if
there is one input. Out: a table of answers with the index of the question, a row for a row. A row with a missing
input gets a missing answer. A registered model contains this file, predictor.py and the predictor class of the kind
as one file ("models from code", see tracking/packaging.py), so that it needs nothing of this repository.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TaskModel(PythonModel):
    """A fine-tuned model as an MLflow model, which answers with the predictor of its kind of task."""

    def __init__(self, predictor: type) -> None:
        self.kind_of_predictor = predictor

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = self.kind_of_predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> Any:
        table = table_of(model_input, self.predictor.inputs)
        is_missing = table.isna().any(axis=1).to_numpy()
        answers = iter(self.predictor.answer(pd.DataFrame(table[~is_missing]).to_dict("records")))
        empty = dict.fromkeys(self.predictor.outputs)
        rows = [empty if missing else next(answers) for missing in is_missing]
        columns = list(self.predictor.outputs)
        answered = pd.DataFrame(rows, columns=columns, index=table.index, dtype=object)
        # columns of lists, objects and texts keep None, which a server answers as null
        doubles = [column for column, kind in self.predictor.outputs.items() if kind == "double"]
        return answered.astype(dict.fromkeys(doubles, "float64"))


def table_of(model_input: Any, inputs: Mapping[str, str]) -> pd.DataFrame:
    """The inputs as a table. Raises MlflowException, which a server passes on, when a column is missing or a cell is
    no text where one is expected."""
    table, columns = _as_table(model_input, list(inputs)), list(inputs)
    if missing := [column for column in columns if column not in table.columns]:
        raise MlflowException.invalid_parameter_value(
            f"the table has the columns {list(table.columns)}, expected one named {missing[0]!r}"
        )
    table = pd.DataFrame(table[columns])
    for place, cells in enumerate(table.itertuples(index=False, name=None)):
        for (column, kind), cell in zip(inputs.items(), cells, strict=True):
            if (
                kind == "string"
                and not isinstance(cell, str)
                and not (pd.api.types.is_scalar(cell) and pd.isna(cell))
            ):
                shown = f"{type(cell).__name__} {str(cell)[:40]!r}"
                raise MlflowException.invalid_parameter_value(
                    f"row {place} (index {table.index[place]}) has the {shown} in {column!r}, expected a text"
                )
    return table


def _as_table(given: Any, columns: list[str]) -> pd.DataFrame:
    if isinstance(given, pd.Series):
        given = given.to_frame(given.name if given.name in columns else columns[0])
    if isinstance(given, Mapping):
        given = pd.DataFrame([given]) if all(map(pd.api.types.is_scalar, given.values())) else pd.DataFrame(given)
    if not isinstance(given, pd.DataFrame):
        values = [given] if pd.api.types.is_scalar(given) else list(given)
        is_records = bool(values) and all(isinstance(value, Mapping) for value in values)
        return pd.DataFrame(values if is_records else {columns[0]: pd.Series(values, dtype=object)})
    if len(given) == 1 and all(isinstance(given[column].iloc[0], list) for column in columns if column in given):
        # a mapping of columns, which MLflow takes for one row
        return pd.DataFrame({column: given[column].iloc[0] for column in columns if column in given})
    return given
