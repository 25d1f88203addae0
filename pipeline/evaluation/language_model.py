"""Evaluates a language model on held-out documents: the stage `evaluate_model`.

In: a checkpoint and documents that it was not trained on. Out: a Report folder: results.json (one entry per metric,
with 95 % bootstrap interval and baselines), report.md (tables), samples.md (texts that the decoder writes),
figures/*.png. An encoder is evaluated by masked_model.py.

The model predicts every token of every held-out document once; its baselines are n-gram models fitted on all training
tokens and evaluated on the same tokens, over the same bytes. Figures are not part of the content digest: their bytes
depend on fonts. torch and matplotlib are imported where they are used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from model.data.mixture import sources_of
from model.data.selection import beginnings, few_documents, spread_documents
from model.data.token_shards import TokenShard, read_description, read_token_shards
from model.data.tokenizer import TOKENIZER, load_tokenizer
from model.generation.sample_config import SampleConfig
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.baselines import fit_ngrams
from pipeline.evaluation.continued_model import BASE, BITS, MODEL, mixture_of_model, with_change
from pipeline.evaluation.language_metrics import bits_per_byte, perplexity
from pipeline.evaluation.masked_model import evaluate_masked_model
from pipeline.evaluation.results import (
    Evaluation,
    Result,
    baselines_figure,
    note_lines,
    quoted,
    result_of,
    written,
)
from pipeline.serving.generate import generate_text
from pipeline.store.records import Handle, Report
from pipeline.store.settings import Count, Natural, OptionalCount, check_values
from pipeline.store.store import DEVICE, Outcome, Stage, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelEvaluationConfig:
    """How a language model is evaluated. Windows and sampling are those of a decoder."""

    split: Annotated[
        Literal["test", "validation"],
        "Split whose documents the model is evaluated on; validation was already used during training.",
    ] = "test"
    stride: Annotated[
        int | None,
        Ge(1),
        "Number of tokens by which the window over a document advances; without a value half the context.",
    ] = None
    n_samples: Annotated[Natural, "Number of sample texts that the model writes for the report."] = 3
    prompt_tokens: Annotated[Count, "Number of tokens of a held-out document that each sample text begins with."] = 16
    sample_tokens: Annotated[Count, "Number of tokens that the model adds to each sample text."] = 80
    temperature: Annotated[
        float, Ge(0), "Sampling temperature of the sample texts; 0 always takes the most likely token."
    ] = 0.8
    top_k: Annotated[Count, "Sample each token of the sample texts from this many most likely tokens."] = 50
    max_documents: Annotated[
        OptionalCount,
        "Evaluate on at most this many documents of each source, which are chosen by a hash of their text; without a"
        " value on all.",
    ] = None
    max_document_tokens: Annotated[
        int | None,
        Ge(2),
        "Evaluate on at most this many tokens from the beginning of each document; without a value on all.",
    ] = None
    seed: Annotated[Natural, "Seed for the bootstrap resamples and the sample texts."] = 0

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def limits(self) -> str:
        """Which part of the held-out text the numbers are of; "" for all of it."""
        parts = []
        if self.max_documents is not None:
            parts.append(f"at most {self.max_documents:,} documents of each source, chosen by a hash of their text")
        if self.max_document_tokens is not None:
            parts.append(f"at most the first {self.max_document_tokens:,} tokens of each document")
        return f"Not all held-out text was read: {', and '.join(parts)}.\n" if parts else ""


@dataclass(frozen=True, slots=True)
class Losses:
    """Per held-out document: nats by model, predicted tokens, bytes, source."""

    nats: dict[str, np.ndarray]  # the model first, then the baselines
    n_tokens: np.ndarray
    n_bytes: np.ndarray
    sources: list[str] | None  # None for shards without the column

    def of(self, mask: np.ndarray) -> "Losses":
        return Losses({k: v[mask] for k, v in self.nats.items()}, self.n_tokens[mask], self.n_bytes[mask], None)


def evaluate_model(cfg: LanguageModelEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: Checkpoint, token Shards, and for a continued model the Checkpoint of its base."""
    from model.training.files import CONFIG, read_json

    model, tokens, *bases = inputs
    shards = chosen_documents(cfg, read_token_shards(tokens.directory, cfg.split), model.directory)
    base = bases[0].directory if bases else None
    if read_json(model.directory / CONFIG).get("kind") == "masked_lm":
        found = evaluate_masked_model(cfg, model.directory, tokens.directory, shards, base, work)
        return written(found, work.directory)
    losses = document_losses_of(cfg, model.directory, tokens.directory, shards, base, work)
    results = language_model_results(losses, cfg.seed)
    found = Evaluation(
        n_rows=len(losses.n_bytes),
        results=results,
        report=language_model_report(losses, results, cfg),
        samples=samples_of(cfg, model.directory, shards),
        figures={"bits_per_byte": baselines_figure(results[0], "bits per byte of held-out text (lower is better)")},
    )
    if bases:
        assert losses.sources is not None
        mixture = mixture_of_model(model.directory)
        found = with_change(found, losses.nats, losses.n_bytes, losses.sources, mixture, cfg.seed, BITS)
    return written(found, work.directory)


def chosen_documents(
    cfg: LanguageModelEvaluationConfig, shards: Sequence[TokenShard], model: Path
) -> Sequence[TokenShard]:
    """The documents, or parts of them, that the model is evaluated on."""
    if cfg.max_documents is not None:
        shards = few_documents(shards, cfg.max_documents)
    if cfg.max_document_tokens is not None:
        tokenizer = load_tokenizer(model / TOKENIZER)
        shards = [beginnings(shard, cfg.max_document_tokens, tokenizer) for shard in shards]
    return shards


def document_losses_of(
    cfg: LanguageModelEvaluationConfig,
    model: Path,
    tokens: Path,
    shards: Sequence[TokenShard],
    base: Path | None,
    work: Work,
) -> Losses:
    from model.evaluate import document_losses
    from model.network.registry import load_decoder
    from model.training.placement import for_evaluation

    description = read_description(tokens)
    decoder = for_evaluation(load_decoder(model))
    if decoder.cfg.vocab_size != description["vocab_size"]:
        raise ValueError(
            f"{model} has a vocabulary of {decoder.cfg.vocab_size}, {tokens} one of {description['vocab_size']}:"
            " they were made with different tokenizers"
        )
    if not sum(int(shard.n_bytes.sum()) for shard in shards):
        raise ValueError(f"{tokens} has no {cfg.split} documents to evaluate on; add documents to the sources")
    ngrams = fit_ngrams(read_token_shards(tokens, "train"), decoder.cfg.vocab_size, description["end_of_text"])
    work.progress(1, 3, "models")
    baselines = ngrams.document_nats(shards, description["end_of_text"])
    work.progress(2, 3, "models")
    ours = document_losses(decoder, shards, stride=cfg.stride)
    work.progress(3, 3, "models")
    if base is not None:
        del decoder  # before the next one is loaded
        before = document_losses(for_evaluation(load_decoder(base)), shards, stride=cfg.stride)
        baselines = {BASE: before.nats, **baselines}
    has_sources = all(shard.sources is not None for shard in shards)
    sources = sources_of(shards).tolist() if has_sources else None
    return Losses({MODEL: ours.nats, **baselines}, ours.n_tokens, ours.n_bytes, sources)


def language_model_results(losses: Losses, seed: int) -> list[Result]:
    """Intervals of bits_per_byte and perplexity; the resampled unit is the document."""
    bits = {name: bits_per_byte(nats, losses.n_bytes, seed) for name, nats in losses.nats.items()}
    per_token = {name: perplexity(nats, losses.n_tokens, seed) for name, nats in losses.nats.items()}
    return [
        result_of("bits_per_byte", bits.pop("model"), {name: e.value for name, e in bits.items()}, higher=False),
        result_of(
            "perplexity", per_token.pop("model"), {name: e.value for name, e in per_token.items()}, higher=False
        ),
    ]


def language_model_report(losses: Losses, results: Sequence[Result], cfg: LanguageModelEvaluationConfig) -> str:
    """Tables of every model with its interval, and of bits per byte by source."""
    rows = [
        [name, str(bits_per_byte(nats, losses.n_bytes, cfg.seed)), str(perplexity(nats, losses.n_tokens, cfg.seed))]
        for name, nats in losses.nats.items()
    ]
    parts = [
        "# Evaluation of the language model\n",
        f"{len(losses.n_bytes):,} {cfg.split} documents, {losses.n_tokens.sum():,} tokens, {losses.n_bytes.sum():,}"
        " bytes of text. Every token is predicted once, from its own document only. In brackets: 95 % percentile"
        " interval over 1,000 resamples of whole documents.\n",
        *([cfg.limits] if cfg.limits else []),
        table(["model", "bits per byte", "perplexity per token"], rows),
        note_lines(results),
    ]
    if losses.sources is not None:
        names = np.array(losses.sources)
        by_source = []
        for source in sorted(set(losses.sources)):
            part = losses.of(names == source)
            cells = [f"{nats.sum() / math.log(2) / max(part.n_bytes.sum(), 1):.4f}" for nats in part.nats.values()]
            by_source.append([plain(source), f"{len(part.n_bytes):,}", f"{part.n_bytes.sum():,}", *cells])
        parts += [
            "\nBits per byte by source:\n",
            table(["source", "documents", "bytes", *losses.nats], by_source),
        ]
    return "\n".join(parts)


def samples_of(cfg: LanguageModelEvaluationConfig, model: Path, shards: Sequence[TokenShard]) -> str:
    """Continuations of the beginnings of held-out documents, which are spread evenly over all of them."""
    tokenizer = load_tokenizer(model / TOKENIZER)
    documents = spread_documents(shards, cfg.n_samples, cfg.prompt_tokens + 1)
    parts = [
        "# Samples\n",
        f"What the model writes after the first {cfg.prompt_tokens} tokens of documents that it was not trained on"
        f" (temperature {cfg.temperature}, top {cfg.top_k}).\n",
    ]
    for number, (document_id, tokens) in enumerate(documents):
        prompt = tokenizer.decode(tokens[: cfg.prompt_tokens].tolist()).rstrip("\ufffd")  # a split character
        sampling = SampleConfig(
            max_new_tokens=cfg.sample_tokens,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            seed=cfg.seed + number,
            keep_prompt_end=True,
        )
        (added,) = generate_text(model, prompt, sampling)
        parts.append(f"## {number + 1}. Document {document_id}, seed {cfg.seed + number}\n")
        parts.append(f"Prompt:\n\n{quoted(prompt)}\n\nModel:\n\n{quoted(added)}\n")
    return "\n".join(parts)


EVALUATE_MODEL = Stage(
    name="evaluate_model",
    version=7,
    function=evaluate_model,
    handle=Report,
    libraries=("numpy", "regex", "scikit-learn", "scipy", "tiktoken", "tokenizers", "torch", DEVICE),
)
