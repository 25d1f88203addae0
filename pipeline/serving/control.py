"""Controls what a decoder writes: its form by constraints, its content by the classifier of a task.

In: the folder of a decoder, and choices or a JSON Schema, or the predictor of a classification and one of its labels.
Out: a constraint for `stream_text`, or texts that have the label. The predictor may be that of any task that gives
labels probabilities.

torch is imported where it is used, because Dagster loads modules of this folder.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.generation.sample_config import SampleConfig
from pipeline.serving.generate import MODELS_CACHED, loaded_decoder, prompt_ids, written_at

if TYPE_CHECKING:
    from model.generation.constraints import TextConstraint
    from model.generation.guided import Guidance
    from model.generation.text_tokens import TextTokens

LEAST_PROBABILITY = 1e-9  # of a label, so that its logarithm is a number


def json_constraint(directory: Path, schema: Any = None) -> "TextConstraint":
    """A value of JSON, or of a JSON Schema. Raises ValueError for a schema that is not supported."""
    from model.generation.constraints import json_value

    return json_value(_text_tokens(directory.resolve(), written_at(directory)), schema)


def choice_constraint(directory: Path, prompt: str, texts: Sequence[str]) -> "TextConstraint":
    """One of `texts`. Behind a prompt that ends with a word, a space is put before each: models write words so."""
    from model.generation.constraints import choices

    gap = " " if prompt and not prompt[-1].isspace() else ""
    spaced = [text if text[:1].isspace() or not text else gap + text for text in texts]
    return choices(_text_tokens(directory.resolve(), written_at(directory)), spaced)


@functools.lru_cache(maxsize=MODELS_CACHED)
def _text_tokens(directory: Path, written: int | None) -> "TextTokens":
    from model.generation.text_tokens import TextTokens

    return TextTokens(loaded_decoder(directory)[1])


def label_score(predictor: Any, label: str) -> Callable[[Sequence[str]], np.ndarray]:
    """The log-probability of a label for whole texts, float64 (N,)."""
    labels = getattr(predictor, "labels", None)
    if labels is None or not hasattr(predictor, "probabilities"):
        raise ValueError("the judge gives no probabilities of labels; take a task of kind classification")
    if label not in labels:
        raise ValueError(f"the judge has no label {label!r}; it has {', '.join(labels)}")
    place = list(labels).index(label)

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.log(np.maximum(predictor.probabilities(list(texts))[:, place], LEAST_PROBABILITY))

    return score


def guided_text(
    directory: Path,
    prompt: str,
    cfg: SampleConfig,
    score: Callable[[Sequence[str]], np.ndarray],
    guidance: "Guidance",
    n_samples: int = 1,
) -> list[str]:
    """What the decoder in `directory` writes after `prompt` so that `score` of both together is high, `n_samples`
    times, without the prompt. Raises ValueError as `generate_text`."""
    from model.generation.decode import pack
    from model.generation.guided import controlled_text

    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least 1")
    decoder, tokenizer = loaded_decoder(directory)
    ids, stops = prompt_ids(directory, tokenizer, prompt)
    cfg = dataclasses.replace(cfg, stop_ids=(*cfg.stop_ids, *stops))
    model = pack(decoder, n_samples * guidance.n_samples)
    openings = [prompt] * n_samples
    return controlled_text(model, tokenizer, [ids] * n_samples, cfg, score, guidance, openings=openings)
