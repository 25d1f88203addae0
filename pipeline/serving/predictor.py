"""The base class of predictors, which apply a fine-tuned model of one kind of task.

In: the folder of a Checkpoint, and rows of inputs. Out: an answer per row. This file and the class of the kind are
part of every registered model (pipeline/serving/pyfunc.py): both may import the standard library, numpy, torch
and `model`, and nothing of `pipeline`. Heavy libraries are imported where they are used.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class Predictor:
    """A subclass defines its columns, loads its network and answers; it may use what this file imports."""

    inputs: ClassVar[Mapping[str, str]]  # column -> its type in MLflow: string, double, long or boolean
    libraries: ClassVar[tuple[str, ...]] = ()  # packages that it needs besides those of every kind
    outputs: ClassVar[Mapping[str, Any]]  # the same for an answer; [type] is a list, {name: type} an object

    def __init__(self, directory: Path) -> None:
        from model.data.tokenizer import load_model_tokenizer
        from model.training.files import CONFIG, read_json
        from model.training.placement import for_evaluation

        self.model = for_evaluation(self.load_network(directory))
        self.description = read_json(directory / CONFIG)
        self.tokenizer = load_model_tokenizer(directory, self.description["model"]["vocab_size"])

    def load_network(self, directory: Path) -> Any:
        """The network on the CPU in evaluation mode. Raises ValueError when `directory` has none of this kind."""
        raise NotImplementedError

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One answer (columns of `outputs`) per row (columns of `inputs`), in the same order."""
        return [{name: one[name] for name in self.outputs} for one in self.examine(rows)]

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers, perhaps with what only an evaluation needs, such as the probability of every label."""
        raise NotImplementedError

    def of_texts(self, texts: Sequence[str], function: Callable[[Any], Any]) -> np.ndarray:
        """`function` applied to the network's outputs for each text, float64 (N, ...). Texts are repaired as in
        training."""
        if not texts:
            return np.zeros((0, 0))
        from model.evaluate import outputs_of_texts

        return outputs_of_texts(self.model, self._encoded(texts)[0], function)

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many rows have a text that is longer than the model reads, so that a part of it is cut off."""
        columns = [name for name, kind in self.inputs.items() if kind == "string"]
        cut = [self._encoded([str(row[name]) for row in rows])[1] for name in columns]
        return int(np.any(cut, axis=0).sum()) if cut else 0

    def _encoded(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        from model.data.examples import encoded, repaired

        side = self.description.get("truncation_side", "right")
        return encoded(self.tokenizer, [repaired(text) for text in texts], self.description["max_tokens"], side)
