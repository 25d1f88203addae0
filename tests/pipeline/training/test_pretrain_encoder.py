"""The stage `pretrain` with an encoder: what it writes, and what comes after it: evaluation, classifier, export."""

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from model.data.token_shards import write_token_shard
from model.data.tokenizer import load_tokenizer
from model.data.vocabularies import MASK, TRAINED_PATTERNS
from model.network.registry import load_classifier, load_model
from model.training.curve import read_curve
from pipeline.cli import main
from pipeline.corpus.examples.stage import LabelledFile
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.evaluation.language_model import EVALUATE_MODEL, LanguageModelEvaluationConfig
from pipeline.store.errors import Terminated
from pipeline.store.outputs import best_checkpoint
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.store.store import Silent, Store
from pipeline.tasks.classification import KIND, ClassificationExamplesConfig, ClassificationFinetuneConfig
from pipeline.training.finetune import finetune_stage
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe

FAMILIES = ("bert", "roberta", "modernbert")
SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 32, "seq_len": 32, "n_steps": 24, "rows": 4}
WORDS = ("miller", "mill", "grain", "water", "wheel", "stone", "flour", "bread", "river", "sack")


def text_of(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=rng.randint(5, 60)))


def config(family, **changes) -> PretrainConfig:
    return PretrainConfig(**{"family": family, **SIZES, "checkpoint_every": 10, "validate_every": 10, **changes})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Shards, TokenizerFile]:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer", train_ranks([text_of(0)], 290, TRAINED_PATTERNS["qwen2"]), "qwen2")
    tokenizer = load_tokenizer(folder / "tokenizer")
    for split, n in (("train", 40), ("validation", 8), ("test", 5)):
        (folder / "tokens" / split).mkdir(parents=True)
        texts = [text_of(100 * len(split) + i) for i in range(n)]
        ids = [np.array([tokenizer.end_of_text, *tokenizer.encode(text)]) for text in texts]
        path, names = folder / "tokens" / split / "0.arrow", [f"{split}-{i}" for i in range(n)]
        write_token_shard(path, names, [len(text) for text in texts], ids, tokenizer.vocab_size)
    about = {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text, "tokenizer": "z"}
    (folder / "tokens" / "tokens.json").write_text(json.dumps(about))
    return (
        Shards(stage="tokenize", directory=folder / "tokens", fingerprint="t", digest="t", rows=40),
        TokenizerFile(stage="tokenizer", directory=folder / "tokenizer", fingerprint="z", digest="z", rows=291),
    )


@pytest.fixture(scope="module")
def models(inputs, tmp_path_factory) -> dict[str, Checkpoint]:
    store = Store(root=tmp_path_factory.mktemp("store"))
    built = {family: store.build(PRETRAIN, pretrain_recipe(config(family)), *inputs) for family in FAMILIES}
    assert all(isinstance(one.handle, Checkpoint) for one in built.values())
    return {family: one.handle for family, one in built.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrain_makes_a_masked_language_model_with_its_tokenizer_and_curve(models, inputs, family):
    folder = models[family].directory
    model, labels = load_model(folder, "cpu", "masked_lm")
    tokenizer, plain = (load_tokenizer(one) for one in (folder / "tokenizer", inputs[1].directory))
    assert labels is None and model.cfg.vocab_size == tokenizer.vocab_size == plain.vocab_size + 1
    assert tokenizer.special["mask"] == plain.vocab_size and tokenizer.encode("mill") == plain.encode("mill")
    curve = read_curve(folder)
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 25))
    assert [line["step"] for line in curve if "validation_masked_perplexity" in line] == [10, 20, 24]
    assert best_checkpoint(folder) is not None
    assert curve[-1]["validation_loss"] < np.log(plain.vocab_size)


def test_stopped_pretrain_of_an_encoder_resumes_to_the_bit(models, inputs, tmp_path):
    class Stopping(Silent):
        def metrics(self, step, values):
            if step == 13:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = pretrain_recipe(config("bert"))
    with pytest.raises(Terminated):
        Store(root=tmp_path, observer=Stopping()).build(PRETRAIN, recipe, *inputs)
    built = Store(root=tmp_path).build(PRETRAIN, recipe, *inputs)
    assert built.handle.digest == models["bert"].digest


def test_settings_of_masks_are_part_of_a_model_and_checked():
    plain = pretrain_recipe(config("bert"))
    assert plain.train.mask_fraction == 0.15 and not plain.train.mask_whole_words
    changed = pretrain_recipe(config("bert", mask_fraction=0.3, mask_whole_words=True))
    assert changed.train.mask_fraction == 0.3 and changed.train.mask_whole_words
    with pytest.raises(ValueError, match="mask_fraction=0"):
        config("bert", mask_fraction=0.0)
    with pytest.raises(ValueError, match="expected one of demo, small, base"):
        config("roberta", preset="gpt2_124m")


def test_evaluate_model_reports_accuracy_and_perplexity_beside_frequencies(models, inputs, tmp_path):
    build = Store(root=tmp_path).build
    report = build(EVALUATE_MODEL, LanguageModelEvaluationConfig(n_samples=2), models["modernbert"], inputs[0])
    results = {one["metric"]: one for one in json.loads((report.handle.directory / "results.json").read_text())}
    accuracy, perplexity = results["masked_accuracy"], results["masked_perplexity"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1 and accuracy["higher_is_better"]
    assert 1 < perplexity["low"] <= perplexity["value"] <= perplexity["high"] < 400
    tokens, tokenizer = inputs[0].directory, load_tokenizer(inputs[1].directory)
    train, test = (_tokens_of(tokens, split, tokenizer.end_of_text) for split in ("train", "test"))
    likeliest = np.bincount(train).argmax()
    assert accuracy["baselines"]["unigram"] == pytest.approx(float((test == likeliest).mean()))
    assert "2. Document" in (report.handle.directory / "samples.md").read_text()
    assert report.record["measures"]["masked_accuracy"] == accuracy["value"]


def _tokens_of(tokens: Path, split: str, opening: int) -> np.ndarray:
    from model.data.token_shards import read_token_shards

    ids = np.concatenate([shard.tokens for shard in read_token_shards(tokens, split)])
    return ids[ids != opening]


def test_classifier_is_fine_tuned_from_an_encoder_and_reads_the_first_letter(models, tmp_path):
    rng = random.Random(0)
    rows = [
        {
            "text": f"{'ab'[i % 2]} {' '.join(rng.choices(WORDS, k=rng.randint(1, 4)))}",
            "label": ["good", "bad"][i % 2],
        }
        for i in range(160)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = Store(root=tmp_path / "store")
    examples = KIND.build_examples(
        store,
        LabelledFile(tmp_path / "rows.jsonl"),
        ClassificationExamplesConfig(text="text", label="label"),
        tmp_path,
    ).handle
    cfg = ClassificationFinetuneConfig(epochs=6, rows=8)
    built = store.build(finetune_stage(KIND), cfg, models["bert"], examples)
    classifier, labels = load_classifier(built.handle.directory)
    assert set(labels) == {"good", "bad"} and classifier.cfg.vocab_size == 292
    assert built.record["measures"]["validation_accuracy"] > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_encoder_fills_masks_in_transformers_as_ours_does(models, tmp_path, monkeypatch, capsys, family):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(models[family].directory), "out"]) == 0
    assert f'pipeline("fill-mask", "out")("Once upon a time {MASK}")' in capsys.readouterr().out.replace("\\", "")
    ours, tokenizer = load_model(models[family].directory)[0], load_tokenizer(models[family].directory / "tokenizer")
    theirs, their_tokenizer = AutoModelForMaskedLM.from_pretrained("out").eval(), AutoTokenizer.from_pretrained("out")
    text = f"the mill by the {MASK} water"
    before, after = (tokenizer.encode(part) for part in text.split(MASK))
    ids = [tokenizer.end_of_text, *before, tokenizer.special["mask"], *after]
    given = their_tokenizer(
        [text, f"a longer text of the {MASK} miller and his bread"], padding=True, return_tensors="pt"
    )
    assert given.input_ids[0, : len(ids)].tolist() == ids
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0]
        torch.testing.assert_close(theirs(**given).logits[0, : len(ids)], expected, atol=1e-4, rtol=1e-4)
    filled = pipeline("fill-mask", "out")(text)
    assert filled[0]["token"] == int(expected[len(before) + 1].argmax())
