"""The file that MLflow keeps and runs when somebody loads a registered model: a text classifier.

In: texts, as a table with a column `text`, a list, or one text. Out: a table with `label` and `probability`, a row a
text. The weights, config and tokenizer lie beside it as files; nothing is unpickled. Needs this package installed,
because the network is defined there once.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TextClassifier(PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        self.directory = Path(context.artifacts["model"])

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> Any:
        from pipeline.serving.generate import classify_text

        answers = classify_text(self.directory, texts_of(model_input))
        return pd.DataFrame(answers, columns=["label", "probability"])


def texts_of(model_input: Any) -> list[str]:
    """ValueError when a table has no column `text` and more than one column."""
    if isinstance(model_input, str):
        return [model_input]
    if isinstance(model_input, pd.DataFrame):
        if "text" not in model_input.columns and len(model_input.columns) != 1:
            raise ValueError(f"the table has columns {list(model_input.columns)}, expected one named `text`")
        column = "text" if "text" in model_input.columns else model_input.columns[0]
        return [str(text) for text in model_input[column]]
    return [str(text) for text in model_input]


set_model(TextClassifier())
