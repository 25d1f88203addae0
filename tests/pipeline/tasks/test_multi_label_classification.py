"""Texts with any number of labels: how rows write them, what is refused, and a model from examples to its report."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.network.decoder import initialise, new_decoder
from model.network.encoder import Encoder
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.corpus.examples.stage import LabelledFile, read_examples
from pipeline.evaluation.task import TaskEvaluationConfig, evaluation_stage
from pipeline.serving.generate import predictor_in
from pipeline.store.records import Checkpoint
from pipeline.store.store import Store
from pipeline.tasks.multi_label_classification import (
    KIND,
    MultiLabelClassifier,
    MultiLabelExamplesConfig,
    MultiLabelFinetuneConfig,
    joined,
)
from pipeline.tasks.tasks_toml import read_tasks
from pipeline.training.finetune import finetune_stage

LABELS = ["has_a", "has_b", "has_c"]
SIZES = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 24}


def config(**changed) -> MultiLabelExamplesConfig:
    return MultiLabelExamplesConfig(**{"text": "text", "label": "label", **changed})


def row(value, **changed):
    found = KIND.row({"text": "some text", "label": value}, config(**changed))
    return found.values.get("labels") if found.reason is None else (found.reason, found.detail)


@pytest.mark.parametrize(
    ("value", "changed", "labels"),
    [
        (["joy", "anger"], {}, ["anger", "joy"]),
        (["joy", "joy", None, ""], {}, ["joy"]),
        ([], {}, []),
        ("", {}, []),
        ("joy", {}, ["joy"]),
        ("joy; anger ;", {"separator": ";"}, ["anger", "joy"]),
        ("27,2", {"separator": ","}, ["2", "27"]),
        ("joy, anger", {}, ["joy, anger"]),  # no separator was given
        ('["joy", "anger"]', {}, ["anger", "joy"]),
        ("['joy', 'anger']", {}, ["anger", "joy"]),  # as pandas writes a list into a csv file
        ("[]", {}, []),
        ({"joy": 1, "anger": 0, "fear": True, "grief": "0"}, {}, ["fear", "joy"]),
        ({"joy": 1.0, "anger": None}, {}, ["joy"]),
        (3, {}, ["3"]),
        (["1.0", 2], {"labels": ("1=one", "2=two")}, ["one", "two"]),
        (["happy"], {"rename": ("happy=joy",)}, ["joy"]),
        ("1,0,", {"label": joined(LABELS), "label_columns": tuple(LABELS)}, ["has_a"]),
        ({"joy": 0.5, "fear": 0.49}, {}, ["joy"]),  # shares of the people who chose it
        ("true,no,1.0", {"label": joined(LABELS), "label_columns": tuple(LABELS)}, ["has_a", "has_c"]),
    ],
)
def test_labels_of_a_row_are_read_from_every_form(value, changed, labels):
    assert row(value, **changed) == labels


@pytest.mark.parametrize(
    ("value", "changed", "reason"),
    [
        (None, {}, ("no_label", "")),
        (float("nan"), {}, ("no_label", "")),
        ([["joy"]], {}, ("not_labels", 'a list: ["joy"]')),
        ({"joy": 1.7}, {}, ("not_labels", '"joy": 1.7')),
        (["joy", "jou"], {"labels": ("joy=joy", "fear=fear")}, ("unknown_label", '"jou"')),
        ("1,0,maybe", {"label": joined(LABELS), "label_columns": tuple(LABELS)}, ("not_labels", '"has_c": "maybe"')),
    ],
)
def test_row_whose_labels_cannot_be_read_is_dropped_with_its_reason(value, changed, reason):
    assert row(value, **changed) == reason


def test_row_without_text_is_dropped():
    for text, reason in ((" ", "no_text"), (None, "no_text"), (["a"], "not_text")):
        assert KIND.row({"text": text, "label": ["joy"]}, config()).reason == reason


def test_columns_of_0_and_1_are_labels_and_a_missing_one_is_named():
    cfg = config(label=joined(["rude", "sad"]), label_columns=("rude", "sad"))
    table = b"text,rude,sad\none,1,0\ntwo,0,0\nthree,1,1\n"
    assert [one.values["labels"] for one in labelled_rows("x.csv", table, KIND, cfg)] == [
        ["rude"],
        [],
        ["rude", "sad"],
    ]
    with pytest.raises(ValueError, match="label is 'sad', but no row has that; the rows have: rude, sat, text"):
        list(labelled_rows("x.csv", table.replace(b"sad", b"sat"), KIND, cfg))


def task(tmp_path: Path, lines: str) -> MultiLabelExamplesConfig:
    path = tmp_path / "tasks.toml"
    head = '[moods]\nkind = "multi_label_classification"\nbase = "foundation_model"\ndata = { path = "x.csv" }\n'
    path.write_text(f'{head}text = "text"\n{lines}')
    return read_tasks(path)["moods"].examples


def test_table_names_a_column_with_a_separator_or_several_columns(tmp_path):
    cfg = task(tmp_path, 'label = "tags"\nseparator = "|"\nlabels = { "1" = "joy", "2" = "fear" }\n')
    assert (cfg.label, cfg.separator, cfg.labels) == ("tags", "|", ("1=joy", "2=fear"))
    assert task(tmp_path, 'label_columns = ["joy", "fear"]\n').label_columns == ("joy", "fear")
    for lines, message in (
        ('label = "tags"\nlabel_columns = ["joy"]\n', "label and label_columns both name the labels"),
        ('label_columns = "joy"\n', "label_columns is 'joy', expected a list of names of columns"),
        ('label = "text"\n', "text and label are both 'text'"),
        ('label = "tags"\nseparator = ""\n', "separator is empty"),
        ("", "label"),
    ):
        with pytest.raises(ValueError, match=message):
            task(tmp_path, lines)


def rows_of(n_rows: int = 300) -> list[dict]:
    """A text has a label if it has the letter; about one in eight has none."""
    rng = random.Random(0)
    rows = []
    for _ in range(n_rows):
        own = [letter for letter in "abc" if rng.random() < 0.5]
        words = ["".join(rng.choices("defgh", k=3)) + "".join(own) for _ in range(3)]
        rows.append({"text": " ".join(words), "label": [f"has_{letter}" for letter in own]})
    return rows


def built_examples(folder: Path, rows: list[dict], **settings):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return KIND.build_examples(Store(root=folder / "store"), LabelledFile(path), config(**settings), folder)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return built_examples(tmp_path_factory.mktemp("examples"), rows_of()).handle


def test_examples_hold_sorted_lists_and_rows_without_labels_in_every_split(examples):
    for split in ("train", "validation", "test"):
        rows = read_examples(examples.directory, split).to_pylist()
        assert any(not one["labels"] for one in rows)
        assert all(one["labels"] == [f"has_{letter}" for letter in "abc" if letter in one["text"]] for one in rows)
    text = (examples.directory / "examples.md").read_text()
    assert "## Labels per example" in text and "| 3 |" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": f"text {i}", "label": ["a"]} for i in range(50)], "at least 2 labels are needed"),
        ([{"text": f"text {i}", "label": [f"l{i}", "x"]} for i in range(150)], "more than 100 need to be declared"),
        ([{"text": one, "label": [one[:1], "x"]} for one in ("ab c", "d ef", "gh i")], "are too few"),
        ([{"text": f"text {i}", "label": ["a", "b" * 501]} for i in range(9)], "9 long_label"),
    ],
)
def test_examples_from_which_nothing_can_be_learned_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        built_examples(tmp_path, rows)


def test_held_out_examples_without_any_label_are_refused_before_anything_is_trained(tmp_path):
    """Their macro F1 has no value, and it selects the champion."""
    rows = [{**one, "split": "train"} for one in rows_of(60)]
    rows += [{**one, "label": [], "split": "test"} for one in rows_of(90)[60:75]]
    rows += [{**one, "split": "validation"} for one in rows_of(90)[75:]]
    with pytest.raises(ValueError, match="no test example has a label, so that macro F1 has no value there"):
        built_examples(tmp_path, rows, split="split")


def test_label_that_every_text_has_is_a_warning(tmp_path, caplog):
    built_examples(tmp_path, [{**one, "label": [*one["label"], "always"]} for one in rows_of(120)])
    assert "every example has the label 'always'" in caplog.text


@pytest.fixture(scope="module")
def bases(tmp_path_factory, byte_tokenizer) -> dict[str, Checkpoint]:
    decoder_cfg = DecoderConfig(vocab_size=257, **SIZES)
    encoder_cfg = EncoderConfig(vocab_size=257, **{**SIZES, "n_kv_heads": 2}, **switches_of("bert"), has_pooler=True)
    decoder, encoder = new_decoder(decoder_cfg, seed=1), Encoder(encoder_cfg)
    initialise(encoder, seed=1)
    found = {}
    for name, model, description in (
        ("decoder", decoder, describe(decoder_cfg)),
        ("encoder", encoder, describe(encoder_cfg, kind="encoder")),
    ):
        folder = tmp_path_factory.mktemp("bases") / name
        shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
        save_model(folder, model, description)
        found[name] = Checkpoint(stage="pretrain", directory=folder, fingerprint=name, digest=name, rows=1)
    return found


def settings(name: str, **changed) -> MultiLabelFinetuneConfig:
    pooling = {"pooling": "mean"} if name == "encoder" else {}
    return MultiLabelFinetuneConfig(
        **{"epochs": 10, "rows": 16, "muon_lr": 0.02, "adamw_lr": 0.01, **pooling, **changed}
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory, bases, examples) -> dict[str, Checkpoint]:
    store, stage = Store(root=tmp_path_factory.mktemp("models")), finetune_stage(KIND)
    return {name: store.build(stage, settings(name), base, examples).handle for name, base in bases.items()}


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_model_learns_the_labels_and_stores_their_thresholds_by_name(models, name):
    description = json.loads((models[name].directory / "config.json").read_text())
    assert description["labels"] == LABELS and description["problem"] == "multi_label"
    assert set(description["thresholds"]) == {*LABELS}
    predictor = predictor_in(MultiLabelClassifier, models[name].directory)
    answers = predictor.answer([{"text": "ddeabc eefabc"}, {"text": "dde eef"}, {"text": "ffgb ghhb"}])
    assert [sorted(one["labels"]) for one in answers] == [LABELS, [], ["has_b"]]
    assert answers[0]["probabilities"] == sorted(answers[0]["probabilities"], reverse=True)


def test_threshold_decides_by_its_name_wherever_it_is_in_the_file(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["encoder"].directory, folder)
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["thresholds"] = {"has_c": 1.1, "has_b": 0.0, "has_a": 1.1}
    path.write_text(json.dumps(description))
    (answer,) = MultiLabelClassifier(folder).answer([{"text": "dabc"}])
    assert answer["labels"] == ["has_b"]
    path.write_text(json.dumps({name: value for name, value in description.items() if name != "thresholds"}))
    (answer,) = MultiLabelClassifier(folder).answer([{"text": "dabc ddabc"}])
    assert sorted(answer["labels"]) == LABELS  # without thresholds, as in a model made elsewhere: a half


def test_answer_of_a_text_depends_on_no_other_text(models):
    for model in models.values():
        predictor = predictor_in(MultiLabelClassifier, model.directory)
        together = predictor.examine([{"text": text} for text in ("ddea", "", "eeef " * 9, "bcd")])
        for text, answer in zip(("ddea", "", "eeef " * 9, "bcd"), together, strict=True):
            (alone,) = predictor.examine([{"text": text}])
            np.testing.assert_allclose(alone["of_labels"], answer["of_labels"], atol=1e-6)
        assert predictor.answer([]) == []


def test_evaluation_has_metrics_baselines_and_mistakes(models, examples, tmp_path):
    built = Store(root=tmp_path).build(evaluation_stage(KIND), TaskEvaluationConfig(), models["encoder"], examples)
    results = {one["metric"]: one for one in json.loads((built.handle.directory / "results.json").read_text())}
    assert set(results) == {*KIND.metrics}
    assert results["macro_f1"]["value"] > 0.9 and results["macro_f1"]["low"] <= results["macro_f1"]["value"]
    assert set(results["macro_f1"]["baselines"]) == {"majority", "tfidf_logistic"}
    assert results["macro_f1"]["comparisons"]["majority"]["p_value"] < 0.05
    assert built.record["measures"]["f1_has_a"] > 0.9
    report = (built.handle.directory / "report.md").read_text()
    assert "| label | F1 | precision | recall | threshold | examples |" in report.replace("  ", " ")
    assert (built.handle.directory / "figures" / "reliability.png").exists()
    assert (built.handle.directory / "mistakes.md").exists()


def test_evaluation_of_examples_with_another_label_is_an_error(models, tmp_path):
    other = [{**one, "label": [*one["label"], "new"]} for one in rows_of(120)]
    foreign = built_examples(tmp_path, other).handle
    with pytest.raises(ValueError, match=r"the model knows the labels .* the examples also have \['new'\]"):
        Store(root=tmp_path / "s").build(evaluation_stage(KIND), TaskEvaluationConfig(), models["encoder"], foreign)


def test_pooling_of_a_decoder_is_refused(bases, examples, tmp_path):
    with pytest.raises(ValueError, match="pooling='mean' is a setting of encoders"):
        cfg = settings("decoder", pooling="mean")
        Store(root=tmp_path).build(finetune_stage(KIND), cfg, bases["decoder"], examples)
