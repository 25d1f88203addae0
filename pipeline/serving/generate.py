"""Applies a trained model: continues a text, or predicts the answer of a task.

In: a Checkpoint folder and text. Out: text, or the predictor of a fine-tuned model. Loaded models are cached by
folder. What controls a text is in control.py.

torch is imported where it is used, because Dagster loads this module.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model.data.tokenizer import TOKENIZER, load_model_tokenizer
from model.generation.sample_config import SampleConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.store import verify

if TYPE_CHECKING:
    from model.data.tokenizer import Tokenizer
    from model.generation.constraints import Constraint

MODELS_CACHED = 4
P = TypeVar("P", bound=Predictor)


def generate_text(directory: Path, prompt: str, cfg: SampleConfig, n_samples: int = 1) -> list[str]:
    """What the decoder in `directory` writes after `prompt`, `n_samples` times, without the prompt.

    The prompt may be empty. A sample ends early when the model ends the document, and before a stop string. Sample i
    depends on prompt, config and i, not on the number of samples. Raises ValueError when `directory` contains no
    decoder, the prompt is longer than its context (unless cfg.keep_prompt_end), n_samples is below 1, or the device
    has no room for as many.
    """
    texts = [""] * n_samples
    for sample, piece in stream_text(directory, prompt, cfg, n_samples):
        texts[sample] += piece
    return texts


def stream_text(
    directory: Path,
    prompt: str,
    cfg: SampleConfig,
    n_samples: int = 1,
    *,
    constraint: "Constraint | None" = None,
    told: str = "",
) -> Iterator[tuple[int, str]]:
    """As `generate_text`, but yields the number of a sample and a piece of its text as soon as the piece is final.

    `constraint`: what a sample may write. `told`: a message of the user; the prompt is the beginning of its answer.
    """
    from model.generation.decode import pack
    from model.generation.generate import stream_text
    from model.training.placement import each_explained

    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least 1")
    decoder, tokenizer = loaded_decoder(directory)
    ids, stops = prompt_ids(directory, tokenizer, prompt, told)
    cfg = dataclasses.replace(cfg, stop_ids=(*cfg.stop_ids, *stops))
    model, prompts = pack(decoder, n_samples), [ids] * n_samples
    pieces = stream_text(model, prompts, cfg, tokenizer.decode_bytes, constraints=constraint)
    return each_explained(pieces, f"{n_samples:,} samples are written at once; ask for fewer")


def prompt_ids(
    directory: Path, tokenizer: "Tokenizer", prompt: str, told: str = ""
) -> tuple[list[int], tuple[int, ...]]:
    """What the decoder in `directory` reads of a prompt, and the ids that end its text."""
    if not told:
        return [*tokenizer.opening, *tokenizer.encode(prompt)], tuple(sorted(tokenizer.stops))
    from model.data.chat import Message, load_chat_template, with_system

    template = load_chat_template(tokenizer, directory / TOKENIZER)
    messages = with_system([Message("user", told)], own_system_message(directory))
    return [*template.prompt(messages), *tokenizer.encode(prompt)], tuple(sorted(template.stops))


def own_system_message(directory: Path) -> str | None:
    """That of the conversations without one in the training of the model."""
    from model.training.files import CONFIG, read_json

    return read_json(directory / CONFIG).get("chat", {}).get("system")


def loaded_decoder(directory: Path) -> tuple[Any, Any]:
    """The decoder in `directory`, which `pack` may have changed in place, and its tokenizer."""
    return _decoder(directory.resolve(), written_at(directory))


def predictor_in(kind: type[P], directory: Path) -> P:
    """The predictor of a fine-tuned model. Raises ValueError when `directory` contains no model of this kind."""
    return _predictor(kind, directory.resolve(), written_at(directory))


def written_at(directory: Path) -> int | None:
    """A key that changes when a cached model becomes stale; None if there is no model, which loading will report."""
    weights = directory / "model.safetensors"
    return weights.stat().st_mtime_ns if weights.exists() else None


@functools.lru_cache(maxsize=MODELS_CACHED)
def _decoder(directory: Path, written_at: int | None) -> tuple[Any, Any]:
    from model.network.registry import load_decoder
    from model.training.placement import for_generation

    verify(directory, whole=True)
    decoder = for_generation(load_decoder(directory))
    return decoder, load_model_tokenizer(directory, decoder.cfg.vocab_size)


@functools.lru_cache(maxsize=MODELS_CACHED)
def _predictor(kind: type[P], directory: Path, written_at: int | None) -> P:
    verify(directory, whole=True)
    return kind(directory)
