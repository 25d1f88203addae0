"""Use a trained model: continue a text, or tell the label of texts.

In: a Checkpoint folder and text. Out: text, or label and probability. Models are kept in memory between calls, by
folder, because the command line asks once and a served model asks for ever.

torch is imported where it is used: Dagster loads this module.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.sample_config import SampleConfig
from model.tokenizer import load_model_tokenizer
from pipeline.training.finetune import EncodedExamples, class_probabilities, encode_texts

MODELS_REMEMBERED = 4


def generate_text(directory: Path, prompt: str, cfg: SampleConfig, n_samples: int = 1) -> list[str]:
    """What the decoder in `directory` writes after `prompt`, `n_samples` times, without the prompt.

    The prompt may be empty. Ends early where the model ends the document, and before a stop string. Sample i depends
    on prompt, config and i, not on the number of samples. Raises ValueError when `directory` holds no decoder, the
    prompt is longer than its context (unless cfg.keep_prompt_end), or n_samples is below 1.
    """
    texts = [""] * n_samples
    for sample, piece in stream_text(directory, prompt, cfg, n_samples):
        texts[sample] += piece
    return texts


def stream_text(directory: Path, prompt: str, cfg: SampleConfig, n_samples: int = 1) -> Iterator[tuple[int, str]]:
    """As `generate_text`: number of the sample and a piece of its text, as soon as the piece is certain."""
    from model.generate import stream_text

    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be at least 1")
    step, tokenizer = _decoder(directory.resolve(), _written_at(directory))
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    cfg = dataclasses.replace(cfg, stop_ids=(*cfg.stop_ids, tokenizer.end_of_text))
    return stream_text(step, [ids] * n_samples, cfg, tokenizer.decode_bytes)


def classify_text(directory: Path, texts: Sequence[str]) -> list[tuple[str, float]]:
    """The likeliest label of each text with its probability, by the classifier in `directory`.

    Raises ValueError when `directory` holds no classifier.
    """
    labels, probabilities_NC = label_probabilities(directory, texts)
    best_N = probabilities_NC.argmax(axis=1)
    return [(labels[best], float(row_C[best])) for best, row_C in zip(best_N, probabilities_NC, strict=True)]


def label_probabilities(directory: Path, texts: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """All labels, and the probability of each for every text (N, C), float64. Texts are repaired as in training."""
    from pipeline.corpus.examples.stage import repaired

    model, labels, max_tokens, tokenizer = _classifier(directory.resolve(), _written_at(directory))
    if not texts:
        return labels, np.zeros((0, len(labels)))
    tokens = encode_texts(tokenizer, [repaired(text) for text in texts], max_tokens)
    examples = EncodedExamples([""] * len(texts), tokens, np.zeros(len(texts), np.int64))
    return labels, class_probabilities(model, examples)


def _written_at(directory: Path) -> int | None:
    """What makes a remembered model stale; None where there is no model, which loading will say."""
    weights = directory / "model.safetensors"
    return weights.stat().st_mtime_ns if weights.exists() else None


@functools.lru_cache(maxsize=MODELS_REMEMBERED)
def _decoder(directory: Path, written_at: int | None) -> tuple[Any, Any]:
    """Its DecodeStep, which keeps the weights laid out for generation, and its tokenizer."""
    from model.checkpoint import load_decoder
    from model.decode_step import DecodeStep

    decoder = load_decoder(directory)
    return DecodeStep(decoder), load_model_tokenizer(directory, decoder.cfg.vocab_size)


@functools.lru_cache(maxsize=MODELS_REMEMBERED)
def _classifier(directory: Path, written_at: int | None) -> tuple[Any, tuple[str, ...], int, Any]:
    from model.checkpoint import CONFIG, load_classifier, read_json

    model, labels = load_classifier(directory)
    tokenizer = load_model_tokenizer(directory, model.cfg.vocab_size)
    return model, labels, read_json(directory / CONFIG)["max_tokens"], tokenizer
