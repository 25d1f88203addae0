"""Prompting as a kind of task: the folder that it writes, the shots that it draws, what it refuses."""

import dataclasses
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.data.tokenizer import load_tokenizer
from model.generation.choices import ChoiceScorer
from model.generation.prompt import Prompt
from model.generation.prompting import PromptedLabels, zero_shot
from model.network.decoder import new_decoder
from model.network.encoder import new_masked_lm
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import DecoderConfig, EncoderConfig
from pipeline.corpus.examples.stage import LabelledFile, read_examples
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.store.store import Built, Store
from pipeline.tasks.classification import KIND as CLASSIFICATION
from pipeline.tasks.classification import ClassificationExamplesConfig
from pipeline.tasks.prompting import (
    KIND,
    PromptedClassifier,
    PromptingConfig,
    PromptingEvaluationConfig,
    asked_decoder,
    loaded,
    sample_of,
    shots_of,
)
from pipeline.training.finetune import finetune_stage

STAGE = finetune_stage(KIND)
SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 160}
TEMPLATE = "Say: {text}\nIt is {label}"


def write_base(tokenizer: TokenizerFile, folder: Path) -> Checkpoint:
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    cfg = DecoderConfig(vocab_size=257, **SHAPE)
    model = new_decoder(cfg, seed=1)
    for name, weight in model.named_parameters():
        if name.endswith(("lm_head.weight", "o_proj.weight", "down_proj.weight")):  # they start at 0
            weight.data.normal_(std=0.3)
    save_model(folder, model, describe(cfg))
    return Checkpoint(stage="pretrain", directory=folder, fingerprint="b", digest="base", rows=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    return write_base(byte_tokenizer, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Shards:
    rng, folder = random.Random(0), tmp_path_factory.mktemp("examples")
    labels = ["good"] * 60 + ["bad"] * 50 + ["so_so"] * 10
    rows = [{"text": "".join(rng.choices("abcdefgh ", k=12)) + str(i), "label": x} for i, x in enumerate(labels)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cfg = ClassificationExamplesConfig(text="text", label="label")
    return KIND.build_examples(Store(root=folder / "store"), LabelledFile(folder / "rows.jsonl"), cfg, folder).handle


@pytest.fixture(scope="module")
def build(tmp_path_factory, base, examples):
    """Builds a model with some settings."""
    store = Store(root=tmp_path_factory.mktemp("store"))

    def build(base: Checkpoint = base, **settings: object) -> Built:
        return store.build(STAGE, PromptingConfig(template=TEMPLATE, **settings), base, examples)

    return build


def config_of(built: Built) -> dict:
    return json.loads((built.handle.directory / "config.json").read_text())


def test_model_is_the_base_with_a_prompt_in_its_config(build, base):
    built = build(choices=("good=fine",), instruction="Judge.", shots=3, scoring="raw")
    folder, config = built.handle.directory, config_of(built)
    assert (folder / "model.safetensors").samefile(base.directory / "model.safetensors")
    assert load_decoder(folder).cfg == load_decoder(base.directory).cfg
    assert load_tokenizer(folder / "tokenizer").vocab_size == 257
    assert config["labels"] == ["bad", "good", "so_so"]
    assert config["prompt"]["words"] == {"bad": "bad", "good": "fine", "so_so": "so so"}
    assert config["prompt"]["template"] == TEMPLATE and config["prompt"]["instruction"] == "Judge."
    assert not (folder / "curve.jsonl").exists() and not KIND.has_curve
    assert built.record["measures"]["n_shots"] == 3


def test_answers_are_those_of_the_words_after_the_written_prompt(build, base, examples):
    built = build(choices=("good=fine",), shots=2, scoring="per_byte")
    shots = config_of(built)["prompt"]["shots"]
    words = {"bad": "bad", "good": "fine", "so_so": "so so"}
    opening = "".join(f"Say: {shot['text']}\nIt is {words[shot['label']]}\n\n" for shot in shots)
    texts = read_examples(examples.directory, "test")["text"].to_pylist()
    scorer = ChoiceScorer(
        load_decoder(base.directory), load_tokenizer(base.directory / "tokenizer"), [*words.values()]
    )
    nats_NC = scorer.likelihoods([f"{opening}Say: {text}\nIt is " for text in texts]).nats_NC
    scores_NC = nats_NC / [3, 4, 5]
    rows = [{"text": text} for text in texts]
    answers = PromptedClassifier(built.handle.directory).examine(rows)
    exponents_NC = np.exp(scores_NC)
    expected_NC = exponents_NC / exponents_NC.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([one["probabilities"] for one in answers], expected_NC, atol=1e-4)
    assert [one["label"] for one in answers] == [[*words][i] for i in expected_NC.argmax(axis=1)]
    plain = PromptedClassifier(built.handle.directory).answer(rows)
    assert plain == [{"label": one["label"], "probability": one["probability"]} for one in answers]


@pytest.mark.parametrize("scoring", ["content_free", "corrected"])
def test_scoring_with_a_prior_stores_it(build, examples, base, scoring):
    config = config_of(build(scoring=scoring, prior_examples=7))
    texts = sample_of(read_examples(examples.directory, "train"), 7, 0)["text"].to_pylist()
    prompted = PromptedLabels(*loaded(base.directory), Prompt(words=config["prompt"]["words"], template=TEMPLATE))
    expected = prompted.content_free() if scoring == "content_free" else prompted.corrected(texts)
    np.testing.assert_allclose(config["prompt"]["prior"], expected.prompt.prior, atol=1e-6)


def test_auto_scoring_is_the_best_on_validation_examples(build, examples):
    built = build(scoring="auto", shots=1)
    measures, chosen = built.record["measures"], config_of(built)["prompt"]["scoring"]
    of_scoring = {
        one: measures[f"validation_accuracy_{one}"] for one in ("raw", "per_byte", "per_token", "corrected")
    }
    assert of_scoring[chosen] == max(of_scoring.values()) == measures["validation_accuracy"]
    held_out = read_examples(examples.directory, "validation")
    answers = PromptedClassifier(built.handle.directory).answer(held_out.select(["text"]).to_pylist())
    right = [one["label"] == label for one, label in zip(answers, held_out["label"].to_pylist(), strict=True)]
    assert np.mean(right) == pytest.approx(measures["validation_accuracy"])
    assert measures["validation_examples"] == held_out.num_rows


def test_every_setting_and_the_base_make_another_model(build, byte_tokenizer, tmp_path):
    one = build(scoring="raw", shots=2)
    assert build(scoring="raw", shots=2).unchanged
    others = [build(scoring="raw", shots=2, seed=1), build(scoring="raw", shots=2, choices=("bad=poor",))]
    others.append(build(dataclasses.replace(write_base(byte_tokenizer, tmp_path / "base"), digest="other"), shots=2))
    assert len({built.handle.fingerprint for built in (one, *others)}) == 4
    assert len({built.handle.digest for built in (one, *others)}) == 4


def test_shots_are_balanced_training_examples_in_an_order_of_the_seed(examples):
    train = read_examples(examples.directory, "train")
    ids = set(train["id"].to_pylist())
    for n_shots in (0, 1, 4, 6, 9):
        shots = shots_of(train, n_shots, seed=0)
        counts = Counter(shot.label for shot in shots)
        assert len(shots) == n_shots and {shot.id for shot in shots} <= ids
        assert n_shots < 3 or max(counts.values()) - min(counts.values()) <= 1
    assert {shot.id for shot in shots_of(train, 3, 0)} < {shot.id for shot in shots_of(train, 6, 0)}
    assert shots_of(train, 6, 0) == shots_of(train.take(pa.array(range(train.num_rows - 1, -1, -1))), 6, 0)
    orders = [[shot.label for shot in shots_of(train, 6, seed)] for seed in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    everything = shots_of(train, train.num_rows, 0)
    assert {shot.id for shot in everything} == ids
    with pytest.raises(ValueError, match=r"shots is 1,000, but there are only \d+ training examples"):
        shots_of(train, 1000, 0)


def test_sample_is_of_the_seed_and_never_more_than_there_are(examples):
    train = read_examples(examples.directory, "train")
    assert sample_of(train, 5, 0).num_rows == 5 and sample_of(train, 10**6, 0).num_rows == train.num_rows
    assert sample_of(train, 5, 0) == sample_of(train, 5, 0) != sample_of(train, 5, 1)


def test_long_texts_lose_shots_and_then_their_beginning(build):
    predictor = PromptedClassifier(build(scoring="raw", shots=3, max_tokens=60).handle.directory)
    assert predictor.description["max_tokens"] == 60
    rows = [{"text": "abc"}, {"text": "x" * 80 + "end"}, {"text": "y" * 90 + "x" * 60 + "end"}]
    assert predictor.n_cut(rows) == 2
    answers = predictor.examine([*rows, {"text": "x" * 60 + "end"}])
    np.testing.assert_allclose(answers[1]["probabilities"], answers[2]["probabilities"], atol=1e-5)


def test_evaluation_shows_prompt_baselines_and_all_metrics(tmp_path, build, examples):
    built, store = build(shots=2, scoring="corrected"), Store(root=tmp_path)
    cfg = PromptingEvaluationConfig()
    report = store.build(evaluation_stage(KIND), cfg, built.handle, examples).handle.directory
    results = {one["metric"]: one for one in json.loads((report / "results.json").read_text())}
    assert set(results) >= {"accuracy", "macro_f1", "roc_auc", "calibration_error"}
    assert set(results["accuracy"]["baselines"]) == {"majority", "tfidf_logistic"}
    assert "2 shots, scoring corrected, no chat template" in results["macro_f1"]["note"]
    text = (report / "report.md").read_text()
    assert "It is {label}" in text and all(shot["id"] in text for shot in config_of(built)["prompt"]["shots"])


def test_encoder_as_base_is_refused_with_the_models_that_fit(build, byte_tokenizer, tmp_path):
    shutil.copytree(byte_tokenizer.directory, tmp_path / "tokenizer")
    cfg = EncoderConfig(vocab_size=257, **SHAPE)
    save_model(tmp_path, new_masked_lm(cfg, seed=0), describe(cfg))
    encoder = Checkpoint(stage="pretrain", directory=tmp_path, fingerprint="e", digest="encoder", rows=1)
    with pytest.raises(ValueError, match=r"a masked language model.*needs a decoder.*gpt2, llama and qwen3.*smollm2"):
        build(encoder)
    with pytest.raises(ValueError, match=r"the key prompted of the task names .*a masked language model"):
        asked_decoder(encoder, encoder)
    assert asked_decoder(encoder, None) is encoder  # a base need not be one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{text}"}, r"must contain \{text\} once and end with \{label\}"),
        ({"choices": ("good",)}, "label=words"),
        ({"choices": ("good= ",)}, "label=words"),
        ({"shots": -1}, "shots is -1"),
        ({"scoring": "best"}, "scoring is 'best'"),
    ],
)
def test_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromptingConfig(**settings)


def test_choices_that_do_not_fit_the_labels_are_refused(build):
    with pytest.raises(ValueError, match=r"names the label 'great'; the examples have bad, good, so_so"):
        build(choices=("great=fine",))
    with pytest.raises(ValueError, match=r"'bad' and 'good' have the same words, 'fine'"):
        build(choices=("good=fine", "bad=fine"))


CHAT = (
    "{% for one in messages %}{{ one.role }}: {{ one.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_chat_template_of_the_base_is_the_form_of_the_prompt(build, byte_tokenizer, tmp_path):
    base = write_base(byte_tokenizer, tmp_path / "base")
    with pytest.raises(ValueError, match="chat_template is true, but the base has none"):
        build(base, chat_template=True)
    (base.directory / "tokenizer" / "chat_template.jinja").write_text(CHAT)
    built = build(dataclasses.replace(base, digest="chat"), chat_template=True, shots=1, scoring="raw")
    assert config_of(built)["prompt"]["chat"] is True
    (answer,) = PromptedClassifier(built.handle.directory).answer([{"text": "abc"}])
    assert answer["label"] in config_of(built)["labels"]


def test_chat_template_that_is_none_is_refused(build, byte_tokenizer, tmp_path):
    base = write_base(byte_tokenizer, tmp_path / "base")
    for template, message in (("{% for", "not a chat template"), ("hello", "leaves out")):
        (base.directory / "tokenizer" / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(base, digest=message), chat_template=True)


def test_random_init_is_refused():
    with pytest.raises(ValueError, match="a prompted model is not trained"):
        PromptingEvaluationConfig(random_init=True)


def test_decoder_answers_as_a_baseline_of_a_tuned_classifier_and_an_encoder_does_not(base, examples, tmp_path):
    rows = read_examples(examples.directory, "test").select(["text"]).to_pylist()
    answering = CLASSIFICATION.prompted(base.directory, {"labels": ["bad", "good", "so_so"]})
    answers = answering(rows)
    expected_NC = zero_shot(*loaded(base.directory), ["bad", "good", "so_so"], [row["text"] for row in rows])
    np.testing.assert_allclose([one["probabilities"] for one in answers], expected_NC)
    assert {one["label"] for one in answers} <= {"bad", "good", "so_so"}
    cfg = EncoderConfig(vocab_size=257, **SHAPE)
    save_model(tmp_path, new_masked_lm(cfg, seed=0), describe(cfg))
    assert CLASSIFICATION.prompted(tmp_path, {"labels": ["bad", "good"]}) is None
    assert KIND.prompted(base.directory, {}) is None
