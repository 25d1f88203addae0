"""The code that MLflow stores with a registered model and runs when it is loaded.

In: a table with the input columns of the kind of task, a list, or one value if there is one such column. Out: a
table of answers. A registered model contains this file, predictor.py and the predictor class of the kind as one file
("models from code", see tracking/packaging.py), so that it needs nothing of this repository.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TaskModel(PythonModel):
    """A fine-tuned model as an MLflow model, which answers with the predictor of its kind of task."""

    def __init__(self, predictor: type) -> None:
        self.kind_of_predictor = predictor

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = self.kind_of_predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> Any:
        answers = self.predictor.answer(rows_of(model_input, self.predictor.inputs))
        return pd.DataFrame(answers, columns=list(self.predictor.outputs))


def rows_of(model_input: Any, inputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Raises ValueError when a table lacks an input. If there is one input, a single column may have any name."""
    columns = list(inputs)
    if not isinstance(model_input, pd.DataFrame):
        values = [model_input] if isinstance(model_input, str) else list(model_input)
        return [value if isinstance(value, dict) else {columns[0]: value} for value in values]
    if len(columns) == 1 and len(model_input.columns) == 1:
        model_input = model_input.set_axis(columns, axis=1)
    if missing := [column for column in columns if column not in model_input.columns]:
        raise ValueError(f"the table has columns {list(model_input.columns)}, expected one named {missing[0]!r}")
    return [dict(zip(columns, row, strict=True)) for row in model_input[columns].itertuples(index=False)]
