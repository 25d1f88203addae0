"""Evaluates an encoder on held-out documents: what the stage `evaluate_model` does with a masked language model.

In: a checkpoint and documents that it was not trained on, and the base of a model that was trained further. Out:
results.json with masked_accuracy and masked_perplexity, each with a 95 % bootstrap interval over documents, and what
changed since the base; report.md; samples.md (masked texts, and what the model puts in the gaps); figures.

Every token of every document is predicted once, while it and about a seventh of the others are masked
(model/evaluate_masked.py). The baseline guesses by the frequencies of the tokens in the training text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.data.mixture import sources_of
from model.data.selection import spread_documents
from model.data.token_shards import TokenShard, read_token_shards
from model.data.tokenizer import TOKENIZER
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.continued_model import BASE, MASKED, MODEL, mixture_of_model, with_change
from pipeline.evaluation.intervals import ratio
from pipeline.evaluation.language_metrics import perplexity
from pipeline.evaluation.results import Evaluation, Result, baselines_figure, note_lines, quoted, result_of
from pipeline.store.store import Work

if TYPE_CHECKING:
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


def evaluate_masked_model(
    cfg: "LanguageModelEvaluationConfig",
    model: Path,
    tokens: Path,
    shards: Sequence[TokenShard],
    base: Path | None,
    work: Work,
) -> Evaluation:
    """The evaluation of the encoder in the folder `model` on `shards`, chosen from `tokens`."""
    from model.data.masking import mask_vocabulary
    from model.network.registry import load_model
    from model.training.placement import for_evaluation

    if not sum(int(shard.n_bytes.sum()) for shard in shards):
        raise ValueError(f"{tokens} has no {cfg.split} documents to evaluate on; add documents to the sources")
    encoder = for_evaluation(load_model(model, "cpu", "masked_lm")[0])
    vocabulary = mask_vocabulary(tokens, encoder.cfg.vocab_size, model / TOKENIZER)
    before = None if base is None else for_evaluation(load_model(base, "cpu", "masked_lm")[0])
    scores = scores_of(encoder, before, vocabulary, shards, read_token_shards(tokens, "train"), work)
    results = masked_results(scores, cfg.seed)
    label = "share of masked tokens that are restored (higher is better)"
    found = Evaluation(
        n_rows=len(scores.n_tokens),
        results=results,
        report=masked_report(scores, results, cfg),
        samples=samples_of(encoder, vocabulary, model, shards, cfg.n_samples, cfg.sample_tokens),
        figures={"masked_accuracy": baselines_figure(results[0], label, highest=1.0)},
    )
    if base is None:
        return found
    mixture, sources = mixture_of_model(model), sources_of(shards).tolist()
    return with_change(found, scores.nats, scores.n_tokens, sources, mixture, cfg.seed, MASKED)


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

    tokenizer, n_tokens = load_tokenizer(model / TOKENIZER), min(n_tokens, encoder.cfg.max_seq_len - 1)
    device = next(encoder.parameters()).device
    parts = ["# Samples\n", "What the model puts where tokens of held-out documents are masked (____).\n"]
    for number, (document_id, tokens) in enumerate(spread_documents(shards, n_samples, GAPS_EVERY + 1)):
        ids = tokens[:n_tokens].tolist()
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
