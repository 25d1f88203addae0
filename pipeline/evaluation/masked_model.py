"""Evaluates an encoder on held-out documents: what the stage `evaluate_model` does with a masked language model.

In: a checkpoint and documents that it was not trained on, and the base of a model that was trained further. Out:
results.json with masked_accuracy and masked_perplexity, each with a 95 % bootstrap interval over documents, and what
changed since the base; report.md; samples.md (masked texts, and what the model puts in the gaps); figures.

Every token of every document is predicted once, while it and about a seventh of the others are masked
(model/evaluate_masked.py). The baseline guesses by the frequencies of the tokens in the training text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.data.mixture import sources_of
from model.data.token_shards import TokenShard, read_token_shards
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.continued_model import BASE, MASKED, MODEL, change_figure, mixture_of_model, what_changed
from pipeline.evaluation.metrics import perplexity, ratio
from pipeline.evaluation.results import Result, note_lines, quoted, result_of, save_figure
from pipeline.store.shards import write_text
from pipeline.store.store import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from model.data.masking import MaskVocabulary
    from model.network.encoder import MaskedLM
    from pipeline.evaluation.language_model import LanguageModelEvaluationConfig

METRICS = ("masked_accuracy", "masked_perplexity")
GAPS_EVERY = 7  # one token in so many is masked in a sample


@dataclass(frozen=True, slots=True)
class MaskedScores:
    """Per held-out document: nats and right tokens by model, the encoder first, and predicted tokens."""

    nats: dict[str, np.ndarray]
    n_right: dict[str, np.ndarray]
    n_tokens: np.ndarray


def write_masked_report(
    cfg: "LanguageModelEvaluationConfig",
    model: Path,
    tokens: Path,
    shards: Sequence[TokenShard],
    base: Path | None,
    work: Work,
) -> list[Result]:
    """Write the report of the encoder in the folder `model` on `shards`, chosen from `tokens`, and return its
    results."""
    from model.data.masking import mask_vocabulary
    from model.network.registry import load_model
    from model.training.placement import for_evaluation

    if not sum(int(shard.n_bytes.sum()) for shard in shards):
        raise ValueError(f"{tokens} has no {cfg.split} documents to evaluate on; add documents to the sources")
    encoder = for_evaluation(load_model(model, "cpu", "masked_lm")[0])
    vocabulary = mask_vocabulary(tokens, encoder.cfg.vocab_size, model / "tokenizer")
    before = None if base is None else for_evaluation(load_model(base, "cpu", "masked_lm")[0])
    scores = scores_of(encoder, before, vocabulary, shards, read_token_shards(tokens, "train"), work)
    results = masked_results(scores, cfg.seed)
    report = masked_report(scores, results, cfg)
    save_figure(accuracy_figure(results[0]), work.directory / "figures" / "masked_accuracy.png")
    if base is not None:
        mixture, sources = mixture_of_model(model), sources_of(shards).tolist()
        changes, more = what_changed(scores.nats, scores.n_tokens, sources, mixture, cfg.seed, MASKED)
        results, report = [*results, *changes], f"{report}\n{more}"
        save_figure(change_figure(changes, MASKED), work.directory / "figures" / "change.png")
    write_text(work.directory / "results.json", json.dumps(results, indent=1))
    write_text(work.directory / "report.md", report)
    samples = samples_of(encoder, vocabulary, model, shards, cfg.n_samples, cfg.sample_tokens)
    write_text(work.directory / "samples.md", samples)
    return results


def scores_of(
    encoder: "MaskedLM",
    before: "MaskedLM | None",
    vocabulary: "MaskVocabulary",
    shards: Sequence[TokenShard],
    training: Sequence[TokenShard],
    work: Work,
) -> MaskedScores:
    from model.evaluate_masked import masked_document_losses

    counts_V = np.ones(encoder.cfg.vocab_size)  # one more than there are: no token is impossible
    for shard in training:
        counts_V += np.bincount(shard.tokens, minlength=len(counts_V))
    counts_V[[vocabulary.opening, vocabulary.mask_id]] = 0  # never masked, and so never the answer
    with np.errstate(divide="ignore"):
        nats_V = -np.log(counts_V / counts_V.sum())
    work.progress(1, 2, "models")
    by_frequency = [_by_frequency(shard, nats_V, int(counts_V.argmax())) for shard in shards]
    models = {MODEL: encoder} | ({} if before is None else {BASE: before})
    losses = {name: masked_document_losses(one, shards, vocabulary) for name, one in models.items()}
    work.progress(2, 2, "models")
    nats, right = (np.concatenate(parts) for parts in zip(*by_frequency, strict=True))
    return MaskedScores(
        nats={**{name: one.nats for name, one in losses.items()}, "unigram": nats},
        n_right={**{name: one.n_right for name, one in losses.items()}, "unigram": right},
        n_tokens=losses[MODEL].n_tokens,
    )


def _by_frequency(shard: TokenShard, nats_V: np.ndarray, likeliest: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and right tokens of each document without its first token, by the frequencies alone."""
    owner = np.repeat(np.arange(len(shard.document_ids)), np.diff(shard.offsets))
    is_predicted = np.ones(len(shard.tokens), bool)
    is_predicted[shard.offsets[:-1][np.diff(shard.offsets) > 0]] = False
    owner, tokens = owner[is_predicted], shard.tokens[is_predicted]
    n_documents = len(shard.document_ids)
    return np.bincount(owner, nats_V[tokens], n_documents), np.bincount(owner, tokens == likeliest, n_documents)


def masked_results(scores: MaskedScores, seed: int) -> list[Result]:
    """Intervals of masked_accuracy and masked_perplexity; the resampled unit is the document."""
    accuracy = {name: ratio(right, scores.n_tokens, seed) for name, right in scores.n_right.items()}
    per_token = {name: perplexity(nats, scores.n_tokens, seed) for name, nats in scores.nats.items()}
    return [
        result_of(metric, found.pop("model"), {name: e.value for name, e in found.items()}, higher=higher)
        for metric, found, higher in (("masked_accuracy", accuracy, True), ("masked_perplexity", per_token, False))
    ]


def masked_report(scores: MaskedScores, results: Sequence[Result], cfg: "LanguageModelEvaluationConfig") -> str:
    """A table of the model and the baselines with their intervals."""
    seed = cfg.seed
    rows = [
        [name, str(ratio(scores.n_right[name], scores.n_tokens, seed)), str(perplexity(nats, scores.n_tokens, seed))]
        for name, nats in scores.nats.items()
    ]
    return "\n".join(
        (
            "# Evaluation of the encoder\n",
            f"{len(scores.n_tokens):,} {cfg.split} documents, {scores.n_tokens.sum():,} tokens. Every token is"
            f" predicted once, from its own document only, while it and about one in {GAPS_EVERY} of the other tokens"
            " are masked. In brackets: 95 % percentile interval over 1,000 resamples of whole documents.\n",
            *([cfg.limits] if cfg.limits else []),
            table(["model", "masked accuracy", "masked perplexity per token"], rows),
            note_lines(results),
        )
    )


def samples_of(
    encoder: "MaskedLM",
    vocabulary: "MaskVocabulary",
    model: Path,
    shards: Sequence[TokenShard],
    n_samples: int,
    n_tokens: int,
) -> str:
    """Beginnings of held-out documents with gaps, and what the model puts there."""
    import torch

    from model.data.tokenizer import load_tokenizer

    tokenizer, n_tokens = load_tokenizer(model / "tokenizer"), min(n_tokens, encoder.cfg.max_seq_len - 1)
    device = next(encoder.parameters()).device
    documents = [
        (shard.document_ids[i].as_py(), shard.tokens[shard.offsets[i] + 1 : shard.offsets[i + 1]][:n_tokens].tolist())
        for shard in shards
        for i in range(len(shard.offsets) - 1)
        if shard.offsets[i + 1] - shard.offsets[i] > GAPS_EVERY
    ]
    parts = ["# Samples\n", "What the model puts where tokens of held-out documents are masked (____).\n"]
    for number in range(min(n_samples, len(documents))):
        document_id, ids = documents[number * len(documents) // n_samples]
        gaps = list(range(GAPS_EVERY - 1, len(ids), GAPS_EVERY))
        masked = [vocabulary.mask_id if place in gaps else token for place, token in enumerate(ids)]
        with torch.inference_mode():
            logits_TV = encoder(torch.tensor([[vocabulary.opening, *masked]], device=device))[0, 1:]
        guessed = {place: int(logits_TV[place].argmax()) for place in gaps}
        shown = [" ____ " if place in guessed else tokenizer.decode([token]) for place, token in enumerate(ids)]
        filled = tokenizer.decode([guessed[place] if place in guessed else ids[place] for place in range(len(ids))])
        n_right = sum(ids[place] == token for place, token in guessed.items())
        parts.append(f"## {number + 1}. Document {document_id}: {n_right} of {len(gaps)} right\n")
        parts.append(f"Masked:\n\n{quoted(''.join(shown))}\n\nModel:\n\n{quoted(filled)}\n")
    return "\n".join(parts)


def accuracy_figure(result: Result) -> "Figure":
    """Masked accuracy of the model and its baseline as bars, the model's with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.0), layout="constrained")
    axes = figure.subplots()
    values = {"model": result["value"], **result["baselines"]}
    axes.barh(list(values), list(values.values()), color=["#1f6f8b"] + ["#c9d6df"] * len(result["baselines"]))
    if result["low"] is not None:
        below, above = result["value"] - result["low"], result["high"] - result["value"]
        axes.errorbar([result["value"]], ["model"], xerr=[[below], [above]], color="black", capsize=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of masked tokens that are restored (higher is better)")
    return figure
