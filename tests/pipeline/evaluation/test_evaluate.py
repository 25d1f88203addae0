"""Evaluation: the numbers against other ways to get them, and what is written."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from model.data.token_shards import read_token_shards, write_token_shard
from model.evaluate import document_losses
from model.network.decoder import new_decoder
from model.network.heads import new_classifier
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import DecoderConfig
from model.training import placement
from pipeline.corpus.examples.stage import example_schema, read_examples
from pipeline.evaluation import answers, laws
from pipeline.evaluation.baselines import fit_ngrams
from pipeline.evaluation.confusion import confusion_figure, confusion_matrix, confusion_tables
from pipeline.evaluation.language_model import EVALUATE_MODEL, LanguageModelEvaluationConfig
from pipeline.evaluation.results import save_figure
from pipeline.evaluation.task import SEEN, TaskEvaluationConfig, evaluation_stage
from pipeline.serving.generate import predictor_in
from pipeline.store.records import SPLIT_CORPUS, Checkpoint, Shards, TokenizerFile
from pipeline.store.shards import write_rows
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND

CFG = DecoderConfig(
    vocab_size=257, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=16
)
LANGUAGE_MODEL = LanguageModelEvaluationConfig(prompt_tokens=4, sample_tokens=5)
TEXTS = ["the cat sat on the mat", "a dog ran | to the cat", "caf\u00e9 and tea", "# the mat, the mat, the cat"] * 8


def handle(kind, directory: Path, stage: str):
    return kind(stage=stage, directory=directory, fingerprint=directory.name, digest=directory.name, rows=1)


@pytest.fixture
def model(tmp_path, byte_tokenizer) -> Checkpoint:
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
    save_model(folder, new_decoder(CFG, seed=0), describe(CFG))
    return handle(Checkpoint, folder, "pretrain")


def write_tokens(folder: Path, splits: dict[str, list[str]]) -> Shards:
    for split, texts in splits.items():
        (folder / split).mkdir(parents=True)
        tokens = [np.array([256, *text.encode()]) for text in texts]
        ids = [f"{split}-{i}" for i in range(len(texts))]
        sources = ["web" if i < 2 else "books" for i in range(len(texts))]
        n_bytes = [len(t) - 1 for t in tokens]
        write_token_shard(folder / split / "00000.arrow", ids, n_bytes, tokens, 257, sources=sources)
    (folder / "tokens.json").write_text(json.dumps({"vocab_size": 257, "end_of_text": 256, "tokenizer": "t"}))
    return handle(Shards, folder, "tokenize")


@pytest.fixture
def tokens(tmp_path) -> Shards:
    return write_tokens(
        tmp_path / "tokens", {"train": TEXTS, "validation": TEXTS[:1], "test": [*TEXTS[:3], "", "tea cat"]}
    )


def results(report) -> dict[str, dict]:
    return {result["metric"]: result for result in json.loads((report.directory / "results.json").read_text())}


def test_language_model_untrained_model_needs_log2_of_the_vocabulary_a_byte(tmp_path, model, tokens):
    """A model with a zero head is uniform; with one byte a token that is log2(257) bits a byte."""
    report = Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens).handle
    found = results(report)
    assert found["bits_per_byte"]["value"] == pytest.approx(math.log2(257), rel=1e-6)
    assert found["perplexity"]["value"] == pytest.approx(257, rel=1e-5)
    assert not found["bits_per_byte"]["higher_is_better"]
    assert set(found["bits_per_byte"]["baselines"]) == {"unigram", "bigram", "trigram"}
    assert report.rows == 5


def test_language_model_numbers_equal_those_of_the_parts(tmp_path, model, tokens):
    decoder = load_decoder(model.directory)
    torch.nn.init.normal_(decoder.lm_head.weight, generator=torch.Generator().manual_seed(0))
    save_model(model.directory, decoder, describe(CFG))
    found = results(Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens).handle)
    train, test = (read_token_shards(tokens.directory, split) for split in ("train", "test"))
    ours = document_losses(decoder, test)
    assert found["bits_per_byte"]["value"] == pytest.approx(ours.bits_per_byte)
    assert found["perplexity"]["value"] == pytest.approx(ours.perplexity)
    assert found["bits_per_byte"]["low"] <= ours.bits_per_byte <= found["bits_per_byte"]["high"]
    for name, nats in fit_ngrams(train, 257, 256).document_nats(test, 256).items():
        expected = nats.sum() / math.log(2) / sum(len(text.encode()) for text in [*TEXTS[:3], "tea cat"])
        assert found["bits_per_byte"]["baselines"][name] == pytest.approx(expected)


def test_language_model_is_evaluated_on_the_device_of_the_machine(tmp_path, model, tokens, monkeypatch):
    """It ran on the CPU beside an idle GPU. "meta" is a device without numbers: reading a result fails."""
    monkeypatch.setattr(placement, "training_device", lambda: torch.device("meta"))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens)


def test_language_model_report_has_samples_sources_and_a_figure(tmp_path, model, tokens):
    report = Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens).handle
    text = (report.directory / "report.md").read_text()
    assert "| web | 2 | 44 |" in text and "| books | 3 | 20 |" in text
    samples = (report.directory / "samples.md").read_text()
    assert samples.count("Prompt:\n\n") == 3 and "\n    the \n" in samples and "\n    caf\n" in samples
    assert (report.directory / "figures" / "bits_per_byte.png").read_bytes().startswith(b"\x89PNG")


def test_language_model_twice_is_the_same_report(tmp_path, model, tokens):
    one, two = (Store(root=tmp_path / name).build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens) for name in "ab")
    assert one.handle.digest == two.handle.digest


def test_language_model_without_held_out_text_is_refused(tmp_path, model):
    tokens = write_tokens(tmp_path / "tokens", {"train": TEXTS, "validation": TEXTS, "test": [""]})
    with pytest.raises(ValueError, match="has no test documents"):
        Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens)


def test_language_model_tokens_of_another_vocabulary_are_refused(tmp_path, model, tokens):
    (tokens.directory / "tokens.json").write_text(
        json.dumps({"vocab_size": 300, "end_of_text": 299, "tokenizer": "t"})
    )
    with pytest.raises(ValueError, match=r"vocabulary of 257, .* one of 300"):
        Store(root=tmp_path / "store").build(EVALUATE_MODEL, LANGUAGE_MODEL, model, tokens)


@pytest.mark.parametrize("setting", ["stride", "prompt_tokens", "sample_tokens", "top_k"])
def test_language_model_config_broken_rule_is_named(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0, expected a whole number of at least 1"):
        LanguageModelEvaluationConfig(**{setting: 0})


@torch.no_grad()
def write_classifier(tokenizer: TokenizerFile, folder: Path, seed: int) -> Checkpoint:
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    classifier = new_classifier(CFG, 2, seed=seed)
    classifier.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    save_model(folder, classifier, describe(CFG, ("bad", "good")) | {"max_tokens": 16})
    return handle(Checkpoint, folder, "finetune")


@pytest.fixture
def examples(tmp_path) -> Shards:
    rng = random.Random(0)
    rows = []
    for i in range(400):
        label = "good" if rng.random() < 0.6 else "bad"
        text = f"{'fine' if label == 'good' else 'awful'} {rng.choice(['tea', 'dog', 'cat'])} {i}"
        split = "train" if i < 240 else "validation" if i < 300 else "test"
        rows.append({"id": str(i), "text": text, "label": label, "split": split, "group_id": str(i)})
    (tmp_path / "examples").mkdir()
    write_rows(tmp_path / "examples" / "examples.parquet", rows, example_schema(KIND))
    return handle(Shards, tmp_path / "examples", "examples")


def evaluate(tmp_path, *inputs):
    return Store(root=tmp_path / "store").build(evaluation_stage(KIND), TaskEvaluationConfig(), *inputs)


def test_classification_numbers_equal_scikit_learn(tmp_path, byte_tokenizer, examples):
    models = [write_classifier(byte_tokenizer, tmp_path / f"model{seed}", seed) for seed in (0, 1)]
    built = evaluate(tmp_path, *models, examples)
    found = results(built.handle)
    test = read_examples(examples.directory, "test")
    texts, truth = test["text"].to_pylist(), test["label"].to_pylist()
    for where, model in zip((lambda r: r["value"], lambda r: r["baselines"]["random_init"]), models, strict=True):
        found_answers = predictor_in(KIND.predictor, model.directory).answer([{"text": text} for text in texts])
        predicted = [answer["label"] for answer in found_answers]
        assert where(found["accuracy"]) == pytest.approx(accuracy_score(truth, predicted))
        assert where(found["macro_f1"]) == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["accuracy"]["baselines"]["majority"] == pytest.approx(truth.count("good") / len(truth))
    assert found["accuracy"]["baselines"]["tfidf_logistic"] == 1
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert built.handle.rows == 100
    assert set(built.record["measures"]) == {*KIND.metrics, "f1_bad", "f1_good", "n_cut", "cut_fraction"}


def test_classification_report_has_tables_figure_and_comparison(tmp_path, byte_tokenizer, examples):
    models = [write_classifier(byte_tokenizer, tmp_path / f"model{seed}", seed) for seed in (0, 1)]
    report = evaluate(tmp_path, *models, examples).handle
    text = (report.directory / "report.md").read_text()
    for part in ("`tfidf_logistic` |", "| good |", "Confusion matrix", "McNemar", "| accuracy | `random_init` | "):
        assert part in text
    for figure in ("confusion_matrix", "reliability", "macro_f1"):
        assert (report.directory / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_classification_without_a_random_baseline_says_nothing_of_it(tmp_path, byte_tokenizer, examples):
    report = evaluate(tmp_path, write_classifier(byte_tokenizer, tmp_path / "model", 0), examples).handle
    assert set(results(report)["accuracy"]["baselines"]) == {"majority", "tfidf_logistic"}
    assert "random_init" not in (report.directory / "report.md").read_text()


def test_classification_base_that_is_a_decoder_answers_some_examples_without_training(
    tmp_path, byte_tokenizer, examples, model
):
    tuned = write_classifier(byte_tokenizer, tmp_path / "tuned", 0)
    store, cfg = Store(root=tmp_path / "store"), TaskEvaluationConfig(prompted_examples=20)
    report = store.build(evaluation_stage(KIND), cfg, tuned, model, examples).handle
    found = results(report)["accuracy"]
    assert found["comparisons"]["prompting"]["n_rows"] == 20 and found["comparisons"]["majority"]["n_rows"] == 100
    assert 0 <= found["baselines"]["prompting"] * 20 <= 20
    assert "`prompting (20 examples)`" in (report.directory / "report.md").read_text()
    off = TaskEvaluationConfig(prompted_examples=None)
    report = store.build(evaluation_stage(KIND), off, tuned, model, examples).handle
    assert "prompting" not in results(report)["accuracy"]["baselines"]


def test_classification_mistakes_are_in_a_file_of_their_own(tmp_path, byte_tokenizer, examples):
    """Texts of the user's examples do not go into the report, which is sent to MLflow."""
    report = evaluate(tmp_path, write_classifier(byte_tokenizer, tmp_path / "model", 0), examples).handle
    mistakes, text = ((report.directory / name).read_text() for name in ("mistakes.md", "report.md"))
    texts = read_examples(examples.directory, "test")["text"].to_pylist()
    assert sum(one in mistakes for one in texts) > 20 and not any(one in text for one in texts)
    accuracy = results(report)["accuracy"]["value"]
    assert f"{round(100 * (1 - accuracy))} of 100 examples have a mistake" in mistakes
    assert "## Where the model is wrong" in text and "| label | bad |" in text


def test_classification_answers_do_not_depend_on_the_pieces(tmp_path, byte_tokenizer, examples, monkeypatch):
    model = write_classifier(byte_tokenizer, tmp_path / "model", 0)
    whole = evaluate(tmp_path / "whole", model, examples).handle
    monkeypatch.setattr(answers, "ROWS_AT_ONCE", 7)
    pieces = evaluate(tmp_path / "pieces", model, examples).handle
    for metric, found in results(whole).items():
        assert results(pieces)[metric]["value"] == pytest.approx(found["value"])


def test_f_examples_that_the_model_reads_in_part_are_counted_and_told(tmp_path, byte_tokenizer, examples):
    """An evaluation said nothing about texts that are longer than the context (LlamaFactory#3995)."""
    texts = read_examples(examples.directory, "test")["text"].to_pylist()
    model = write_classifier(byte_tokenizer, tmp_path / "whole", 0)
    assert evaluate(tmp_path, model, examples).record["measures"]["n_cut"] == sum(len(text) > 15 for text in texts)
    model = write_classifier(byte_tokenizer, tmp_path / "part", 0)
    config = json.loads((model.directory / "config.json").read_text())
    (model.directory / "config.json").write_text(json.dumps(config | {"max_tokens": 12, "truncation_side": "left"}))
    built = evaluate(tmp_path, model, examples)
    n_cut = sum(len(text) > 11 for text in texts)
    assert 0 < n_cut == built.record["measures"]["n_cut"] == round(100 * built.record["measures"]["cut_fraction"])
    assert (
        f"Of {n_cut} of the 100 examples the model does not read the beginning"
        in (built.handle.directory / "report.md").read_text()
    )


def test_classification_test_examples_in_the_pretraining_text_are_counted(
    tmp_path, byte_tokenizer, examples, neutral_document
):
    rows = [row for split in ("train", "test") for row in read_examples(examples.directory, split).to_pylist()]
    tests = [row for row in rows if row["split"] == "test"]
    for row, text in zip(tests, ("fine tea with the cat", "awful tea without a dog"), strict=False):
        row["text"] = text
    write_rows(examples.directory / "examples.parquet", rows, example_schema(KIND))
    documents = [("train", "she had Fine Tea with the cat, and left"), ("test", "awful tea without a dog")]
    columns = [neutral_document | {"text": text, "split": split} for split, text in documents]
    (tmp_path / "corpus").mkdir()
    write_rows(tmp_path / "corpus" / "x.parquet", columns, SPLIT_CORPUS)
    corpus = handle(Shards, tmp_path / "corpus", "split")
    model = write_classifier(byte_tokenizer, tmp_path / "model", 0)
    n_seen = evaluate(tmp_path, model, examples, corpus).record["measures"][SEEN]
    assert n_seen == 1  # the other one stands in a held-out document, which pretraining never read
    assert not laws.unseen(n_seen).passed
    assert laws.unseen(0).passed


def test_classification_label_that_the_model_never_learned_is_refused(tmp_path, byte_tokenizer, examples):
    table = [row for split in ("train", "test") for row in read_examples(examples.directory, split).to_pylist()]
    table[-1]["label"] = "mixed"
    write_rows(examples.directory / "examples.parquet", table, example_schema(KIND))
    with pytest.raises(ValueError, match=r"knows the labels .* the examples also have \['mixed'\]"):
        evaluate(tmp_path, write_classifier(byte_tokenizer, tmp_path / "model", 0), examples)


def test_j_figure_and_table_of_many_labels_have_a_limit():
    """The figure of 151 labels took minutes and gigabytes (mlflow#5273)."""
    rng = np.random.default_rng(0)
    labels = [f"intent {i}" for i in range(151)]
    truth = rng.integers(0, 151, 600)
    predicted = np.where(rng.random(600) < 0.6, truth, rng.integers(0, 151, 600))
    matrix = confusion_matrix([labels[i] for i in truth], [labels[i] for i in predicted], labels)
    figure = confusion_figure(matrix, labels)
    assert max(figure.get_size_inches()) < 20 and len(figure.axes[0].get_xticklabels()) == 40
    assert len(figure.axes[0].texts) <= 600
    text = confusion_tables(matrix, labels)
    assert "The 30 most frequent confusions among 151 labels" in text and len(text) < 3000


def test_a_label_is_a_text_in_figure_and_table(tmp_path):
    """Labels went into Markdown and matplotlib as they are: `$` begins a formula, `|` a cell, `<` an element."""
    labels = ["a|b", "$x_1$ & <b>`c`</b>", "line\nbreak", "*d* _e_ [f](g) \u6f22"]
    matrix = np.array([[3, 1, 0, 0], [0, 2, 0, 1], [1, 0, 4, 0], [0, 0, 0, 2]])
    save_figure(confusion_figure(matrix, labels), tmp_path / "figure.png")
    ticks = confusion_figure(matrix, labels).axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks][1:3] == ["$x_1$ & <b>`c`</b>", "line break"]
    lines = confusion_tables(matrix, labels).strip().split("\n")[2:]
    assert len(lines) == 6 and len({re.sub(r"\\.", "", line).count("|") for line in lines}) == 1
    assert r"\$x\_1\$ &amp; \<b\>\`c\`\</b\>" in lines[0] and "\\*d\\* \\_e\\_ \\[f\\](g) \u6f22" in lines[0]
