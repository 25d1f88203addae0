"""The base class of predictors, which apply a fine-tuned model of one kind of task.

In: the folder of a Checkpoint, and rows of inputs. Out: an answer per row. This file and the class of the kind are
shipped with every registered model (pipeline/serving/pyfunc.py): both may import the standard library, numpy, torch
and `model`, and nothing of `pipeline`. Heavy libraries are imported where they are used.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROWS_AT_ONCE = 256


class Predictor:
    """A subclass defines its columns, loads its network and answers; it may use what this file imports."""

    inputs: ClassVar[Mapping[str, str]]  # column -> its type in MLflow: string, double, long or boolean
    outputs: ClassVar[Mapping[str, str]]  # the same for an answer

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
        raise NotImplementedError

    def of_texts(self, texts: Sequence[str], function: Callable[[Any], Any]) -> np.ndarray:
        """`function` applied to the network's outputs for each text, float64 (N, ...). Texts are repaired as in
        training."""
        if not texts:
            return np.zeros((0, 0))
        return of_tokens(self.model, self._encoded(texts)[0], function)

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many rows have a text that is longer than the model reads, so that a part of it is cut off."""
        columns = [name for name, kind in self.inputs.items() if kind == "string"]
        cut = [self._encoded([str(row[name]) for row in rows])[1] for name in columns]
        return int(np.any(cut, axis=0).sum()) if cut else 0

    def _encoded(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        repaired = [unicodedata.normalize("NFC", text.encode(errors="replace").decode()).strip() for text in texts]
        side = self.description.get("truncation_side", "right")
        return encoded(self.tokenizer, repaired, self.description["max_tokens"], side)


def encoded(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, truncation_side: str = "right"
) -> tuple[list[np.ndarray], np.ndarray]:
    """Ids of each text after the end-of-text token, which also opens documents in pretraining, at most `max_tokens`;
    and whether the text was cut: its end on the side "right", its beginning on the side "left"."""
    most = max_tokens - 1
    ids_of_texts = tokenizer.encode_batch(list(texts))
    kept = [ids[:most] if truncation_side == "right" else ids[-most:] for ids in ids_of_texts]
    is_sharded = np.array([len(ids) > most for ids in ids_of_texts], bool)
    return [np.array([tokenizer.end_of_text, *ids], np.int64) for ids in kept], is_sharded


def padded(tokens: Sequence[np.ndarray]) -> dict[str, Any]:
    """ids_BT, padded on the right, and lengths_B."""
    import torch

    lengths = [len(ids) for ids in tokens]
    ids_BT = np.zeros((len(tokens), max(lengths)), np.int64)
    for row, ids in enumerate(tokens):
        ids_BT[row, : len(ids)] = ids
    return {"ids_BT": torch.from_numpy(ids_BT), "lengths_B": torch.tensor(lengths)}


def of_tokens(
    model: Any, tokens: Sequence[np.ndarray], function: Callable[[Any], Any], rows: int = ROWS_AT_ONCE
) -> np.ndarray:
    """`function` applied to the outputs (B, ...) of `model`, float64 (N, ...) in the order of `tokens`.

    Texts of similar length share a batch. `function` gets the outputs of one batch at a time, in double precision.
    """
    import torch

    from model.training.machine import precision
    from model.training.placement import memory_explained

    device = next(model.parameters()).device
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    parts = []
    with torch.inference_mode(), precision(device), memory_explained(f"{rows} texts passed at once; predict fewer"):
        for first in range(0, len(order), rows):
            batch = padded([tokens[place] for place in order[first : first + rows]])
            outputs = model(batch["ids_BT"].to(device), batch["lengths_B"].to(device))
            parts.append(function(outputs.double()).cpu().numpy())
    in_order = np.concatenate(parts)
    answers = np.empty_like(in_order)
    answers[order] = in_order
    return answers
