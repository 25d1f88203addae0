"""Judge models on held-out data: the stages `evaluate_foundation` and `evaluate_classification`.

In: checkpoints and the data they never trained on. Out: a Report folder: results.json (a metric each, with 95 %
bootstrap interval and baselines), report.md (tables), samples.md (what the decoder writes) and figures/*.png.

- A language model predicts every token of every held-out document once; its baselines are n-gram models fitted on
  all training tokens and judged on the same tokens, over the same bytes.
- A classifier's baselines are the majority class, TF-IDF + logistic regression, and the same network trained from
  random weights, where one is given.

Figures are no content: their bytes depend on fonts. torch, scikit-learn and matplotlib are imported where used.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from model.sample_config import SampleConfig
from model.token_shards import TokenShard, read_description, read_token_shards
from pipeline.stages.baselines import fit_ngrams, majority_predictions, tfidf_logistic_predictions
from pipeline.stages.examples import read_examples
from pipeline.stages.generate import generate_text, label_probabilities
from pipeline.stages.leaks import occurring
from pipeline.stages.metrics import (
    Comparison,
    Estimate,
    accuracy_of,
    bits_per_byte,
    compare,
    confusion_matrix,
    estimate,
    f1_of,
    macro_f1_of,
    perplexity,
)
from pipeline.stages.records import Checkpoint, Handle, Report, Shards
from pipeline.stages.shards import read_table, replacing, shard_paths, write_text
from pipeline.stages.store import Outcome, Stage, Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENT = ("results.json", "report.md", "samples.md")
SEEN = "examples_seen_in_pretraining"  # measure: judged examples whose words stand in the pretraining text
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundationEvaluationConfig:
    """How a decoder is judged."""

    split: Annotated[Literal["test", "validation"], "documents; validation was looked at in training"] = "test"
    stride: Annotated[
        int | None, "tokens between two windows over a document, at least 1; None = half the context"
    ] = None
    n_samples: Annotated[int, "texts that the model writes for the report, at least 0"] = 3
    prompt_tokens: Annotated[int, "tokens of a held-out document that each sample begins with, at least 1"] = 16
    sample_tokens: Annotated[int, "tokens that the model adds to each, at least 1"] = 80
    temperature: Annotated[float, "of the samples; 0 = always the likeliest token"] = 0.8
    top_k: Annotated[int, "of the samples: so many of the likeliest tokens are drawn from"] = 50
    seed: Annotated[int, "of the resamples and of the samples"] = 0

    def __post_init__(self) -> None:
        for name in ("stride", "prompt_tokens", "sample_tokens", "top_k"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("n_samples", "temperature", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationEvaluationConfig:
    """How a classifier is judged."""

    split: Annotated[Literal["test", "validation"], "examples; validation was used to choose the settings"] = "test"
    seed: Annotated[int, "of the resamples"] = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


# Language models.


@dataclass(frozen=True, slots=True)
class Losses:
    """Of every held-out document: nats by model, predicted tokens, bytes, source."""

    nats: dict[str, np.ndarray]  # model first, then the baselines
    n_tokens: np.ndarray
    n_bytes: np.ndarray
    sources: list[str] | None  # None where nobody told

    def of(self, mask: np.ndarray) -> "Losses":
        return Losses({k: v[mask] for k, v in self.nats.items()}, self.n_tokens[mask], self.n_bytes[mask], None)


def evaluate_foundation(cfg: FoundationEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: Checkpoint, token Shards; a TokenizerFile and the corpus in any order after them.

    The corpus (split Shards) is only needed to tell documents by source.
    """
    model, tokens = inputs[0], inputs[1]
    corpus = next((handle for handle in inputs[2:] if isinstance(handle, Shards)), None)
    shards = read_token_shards(tokens.directory, cfg.split)
    losses = document_losses_of(cfg, model.directory, tokens.directory, shards, corpus, work)
    results = foundation_results(losses, cfg.seed)
    samples = samples_of(cfg, model.directory, shards)
    write_text(work.directory / "results.json", json.dumps(results, indent=1))
    write_text(work.directory / "report.md", foundation_report(losses, results, cfg))
    write_text(work.directory / "samples.md", samples)
    save_figure(bits_figure(results[0]), work.directory / "figures" / "bits_per_byte.png")
    measures = {result["metric"]: result["value"] for result in results}
    return Outcome(rows=len(losses.n_bytes), measures=measures, content=CONTENT)


def document_losses_of(
    cfg: FoundationEvaluationConfig,
    model: Path,
    tokens: Path,
    shards: Sequence[TokenShard],
    corpus: Shards | None,
    work: Work,
) -> Losses:
    from model.checkpoint import load_decoder
    from model.evaluate import document_losses

    description = read_description(tokens)
    decoder = load_decoder(model)
    if decoder.cfg.vocab_size != description["vocab_size"]:
        raise ValueError(
            f"{model} has a vocabulary of {decoder.cfg.vocab_size}, {tokens} one of {description['vocab_size']}:"
            " they do not belong together"
        )
    if not sum(int(shard.n_bytes.sum()) for shard in shards):
        raise ValueError(f"{tokens} has no {cfg.split} documents to judge on; add documents to the sources")
    ngrams = fit_ngrams(read_token_shards(tokens, "train"), decoder.cfg.vocab_size, description["end_of_text"])
    work.progress(1, 3, "models")
    baselines = ngrams.document_nats(shards, description["end_of_text"])
    work.progress(2, 3, "models")
    ours = document_losses(decoder, shards, stride=cfg.stride)
    work.progress(3, 3, "models")
    sources = None
    if corpus is not None:
        found: dict[str, str] = {}
        for path in shard_paths(corpus.directory):
            table = read_table(path, columns=["id", "source"])
            found |= dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))
        sources = [found.get(document, "unknown") for document in ours.document_ids]
    return Losses({"model": ours.nats, **baselines}, ours.n_tokens, ours.n_bytes, sources)


def foundation_results(losses: Losses, seed: int) -> list[Result]:
    """bits_per_byte and perplexity; the resampled unit is the document."""
    bits = {name: bits_per_byte(nats, losses.n_bytes, seed) for name, nats in losses.nats.items()}
    per_token = {name: perplexity(nats, losses.n_tokens, seed) for name, nats in losses.nats.items()}
    return [
        _result("bits_per_byte", bits.pop("model"), {name: e.value for name, e in bits.items()}, higher=False),
        _result("perplexity", per_token.pop("model"), {name: e.value for name, e in per_token.items()}, higher=False),
    ]


def _result(metric: str, found: Estimate, baselines: Mapping[str, float], *, higher: bool) -> Result:
    return {
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "higher_is_better": higher,
        "baselines": dict(baselines),
    }


def foundation_report(losses: Losses, results: Sequence[Result], cfg: FoundationEvaluationConfig) -> str:
    """Tables: every model with its interval, and bits per byte by source."""
    rows = [
        [name, str(bits_per_byte(nats, losses.n_bytes, cfg.seed)), str(perplexity(nats, losses.n_tokens, cfg.seed))]
        for name, nats in losses.nats.items()
    ]
    parts = [
        "# Evaluation of the foundation model\n",
        f"{len(losses.n_bytes):,} {cfg.split} documents, {losses.n_tokens.sum():,} tokens, {losses.n_bytes.sum():,}"
        " bytes of text. Every token is predicted once, from its own document alone. In brackets: 95 % percentile"
        " interval over 1,000 resamples of whole documents.\n",
        markdown_table(["model", "bits per byte", "perplexity of a token"], rows),
    ]
    if losses.sources is not None:
        names = np.array(losses.sources)
        by_source = []
        for source in sorted(set(losses.sources)):
            part = losses.of(names == source)
            cells = [f"{nats.sum() / math.log(2) / max(part.n_bytes.sum(), 1):.4f}" for nats in part.nats.values()]
            by_source.append([source, f"{len(part.n_bytes):,}", f"{part.n_bytes.sum():,}", *cells])
        parts += [
            "\nBits per byte by source:\n",
            markdown_table(["source", "documents", "bytes", *losses.nats], by_source),
        ]
    return "\n".join(parts)


def samples_of(cfg: FoundationEvaluationConfig, model: Path, shards: Sequence[TokenShard]) -> str:
    """Continuations of the beginnings of held-out documents, spread evenly over them."""
    from model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model / "tokenizer")
    documents = [
        (shard.document_ids[i].as_py(), shard.tokens[shard.offsets[i] + 1 : shard.offsets[i + 1]])
        for shard in shards
        for i in range(len(shard.offsets) - 1)
        if shard.offsets[i + 1] - shard.offsets[i] > cfg.prompt_tokens
    ]
    parts = [
        "# Samples\n",
        f"What the model writes after the first {cfg.prompt_tokens} tokens of documents that it never saw"
        f" (temperature {cfg.temperature}, top {cfg.top_k}).\n",
    ]
    for number in range(min(cfg.n_samples, len(documents))):
        document_id, tokens = documents[number * len(documents) // cfg.n_samples]
        prompt = tokenizer.decode(tokens[: cfg.prompt_tokens].tolist()).rstrip("\ufffd")  # a character cut in half
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


def quoted(text: str) -> str:
    """As an indented block, so that nothing in the text is read as Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


# Classifiers.


@dataclass(frozen=True, slots=True)
class Judged:
    """What each model says about the held-out examples."""

    labels: tuple[str, ...]
    truth: list[str]
    predictions: dict[str, list[str]]  # model first, then the baselines

    def matrix(self, name: str) -> np.ndarray:
        return confusion_matrix(self.truth, self.predictions[name], self.labels)


def evaluate_classification(cfg: ClassificationEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: the model's Checkpoint, that of its random baseline if any, the examples, and the
    corpus of the pretraining if test examples are to be looked for in it."""
    models = [handle for handle in inputs if isinstance(handle, Checkpoint)]
    examples, *corpora = [handle for handle in inputs if isinstance(handle, Shards)]
    judged = judge(cfg, models, examples, work)
    results = classification_results(judged, cfg.seed)
    compared = (
        compare(judged.truth, judged.predictions["model"], judged.predictions["random_init"], cfg.seed)
        if "random_init" in judged.predictions
        else None
    )
    write_text(work.directory / "results.json", json.dumps(results, indent=1))
    write_text(work.directory / "report.md", classification_report(judged, cfg, compared))
    matrix_CC = judged.matrix("model")
    save_figure(confusion_figure(matrix_CC, judged.labels), work.directory / "figures" / "confusion_matrix.png")
    measures = {result["metric"]: result["value"] for result in results}
    measures |= {f"f1_{label}": float(f1) for label, f1 in zip(judged.labels, f1_of(matrix_CC), strict=True)}
    if corpora:
        texts = read_examples(examples.directory, cfg.split)["text"].to_pylist()
        measures[SEEN] = len(occurring(texts, training_texts(corpora[0])))
    return Outcome(rows=len(judged.truth), measures=measures, content=CONTENT)


def training_texts(corpus: Shards) -> Iterator[str]:
    """Texts of the train split, one shard in memory at a time."""
    for path in shard_paths(corpus.directory):
        table = read_table(path, columns=["text", "split"])
        rows = zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True)
        yield from (text for text, split in rows if split == "train")


def judge(cfg: ClassificationEvaluationConfig, models: Sequence[Checkpoint], examples: Shards, work: Work) -> Judged:
    train, held_out = (read_examples(examples.directory, split) for split in ("train", cfg.split))
    texts, truth = held_out["text"].to_pylist(), held_out["label"].to_pylist()
    predictions: dict[str, list[str]] = {}
    labels: tuple[str, ...] = ()
    for number, (name, model) in enumerate(zip(("model", "random_init"), models, strict=False)):
        labels, probabilities_NC = label_probabilities(model.directory, texts)
        predictions[name] = [labels[best] for best in probabilities_NC.argmax(axis=1)]
        work.progress(number + 1, len(models) + 2, "models")
    if unknown := sorted(set(truth) - set(labels)):
        raise ValueError(f"{models[0].directory} knows the labels {labels}, the examples also have {unknown}")
    train_texts, train_labels = train["text"].to_pylist(), train["label"].to_pylist()
    predictions["majority"] = majority_predictions(train_labels, len(texts))
    predictions["tfidf_logistic"] = tfidf_logistic_predictions(train_texts, train_labels, texts)
    work.progress(len(models) + 2, len(models) + 2, "models")
    return Judged(labels, truth, predictions)


def classification_results(judged: Judged, seed: int) -> list[Result]:
    """accuracy and macro_f1; the resampled unit is the example."""
    results = []
    for metric, function in (("accuracy", accuracy_of), ("macro_f1", macro_f1_of)):
        values = {name: float(function(judged.matrix(name))) for name in judged.predictions if name != "model"}
        results.append(_result(metric, estimate(function, judged.matrix("model"), seed), values, higher=True))
    return results


def classification_report(judged: Judged, cfg: ClassificationEvaluationConfig, compared: Comparison | None) -> str:
    rows = [
        [name, *(str(estimate(metric, judged.matrix(name), cfg.seed)) for metric in (accuracy_of, macro_f1_of))]
        for name in judged.predictions
    ]
    matrix_CC = judged.matrix("model")
    by_label = [
        [label, f"{f1:.4f}", f"{count:,}"]
        for label, f1, count in zip(judged.labels, f1_of(matrix_CC), matrix_CC.sum(axis=1), strict=True)
    ]
    confusions = [[label, *(f"{n:,}" for n in row)] for label, row in zip(judged.labels, matrix_CC, strict=True)]
    parts = [
        "# Evaluation of the classifier\n",
        f"{len(judged.truth):,} {cfg.split} examples. In brackets: 95 % percentile interval over 1,000 resamples of"
        " the examples.\n",
        markdown_table(["model", "accuracy", "macro F1"], rows),
        "\nBy label:\n",
        markdown_table(["label", "F1", "examples"], by_label),
        "\nConfusion matrix (rows: true label, columns: predicted):\n",
        markdown_table(["", *judged.labels], confusions),
    ]
    if compared is not None:
        parts.append(
            f"\nAgainst the same network without pretraining: accuracy {compared.difference.value:+.4f}"
            f" ({compared.difference.low:+.4f} to {compared.difference.high:+.4f});"
            f" {compared.only_first_right} examples only the model has right, {compared.only_second_right} only the"
            f" other; exact McNemar test p = {compared.p_value:.3f}.\n"
        )
    return "\n".join(parts)


# Tables and figures.


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def bits_figure(result: Result) -> "Figure":
    """Bits per byte of the model and its baselines as bars, the model's with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    values = {"model": result["value"], **result["baselines"]}
    axes.barh(list(values), list(values.values()), color=["#1f6f8b"] + ["#c9d6df"] * len(result["baselines"]))
    below, above = result["value"] - result["low"], result["high"] - result["value"]
    axes.errorbar([result["value"]], ["model"], xerr=[[below], [above]], color="black", capsize=3)
    for place, value in enumerate(values.values()):
        axes.text(value, place, f" {value:.3f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values.values()))
    axes.set_xlabel("bits per byte of held-out text (lower is better)")
    return figure


def confusion_figure(matrix_CC: np.ndarray, labels: Sequence[str]) -> "Figure":
    """The confusion matrix as shades of its row shares, with the counts."""
    from matplotlib.figure import Figure

    side = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares_CC = matrix_CC / np.maximum(matrix_CC.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("true label")
    for row, counts in enumerate(matrix_CC):
        for column, count in enumerate(counts):
            color = "white" if shares_CC[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}\n{shares_CC[row, column]:.1%}", ha="center", va="center", color=color)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})


EVALUATE_FOUNDATION = Stage(
    name="evaluate_foundation", version=2, function=evaluate_foundation, handle=Report, libraries=("torch",)
)
EVALUATE_CLASSIFICATION = Stage(
    name="evaluate_classification",
    version=1,
    function=evaluate_classification,
    handle=Report,
    libraries=("torch", "scikit-learn"),
)
