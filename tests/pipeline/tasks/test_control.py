"""Control from labelled texts to texts that are asked for: what rows become, and what the model learns of it."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from model.data.control_text import NOTHING_ASKED, attributes_in
from model.training.files import CONFIG, read_json
from pipeline.cli import main
from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.outputs import read_results
from pipeline.store.records import Checkpoint
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Store
from pipeline.tasks.control import KIND, ControlExamplesConfig, told_attributes
from pipeline.tasks.instruction import InstructionConfig, InstructionEvaluationConfig
from pipeline.training.finetune import finetune_stage

CFG = ControlExamplesConfig(
    text="text", label="mood", attribute="sentiment", labels=("0=sad", "1=glad"), short_words=3, long_words=5
)
LETTERS = {"sad": "mnopq", "glad": "abcde"}
SHAPE = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 48, "d_head": 24, "d_ff": 96, "max_seq_len": 96}
QUICK = {"epochs": 8, "rows": 16, "optimizer": "adamw", "adamw_lr": 0.01}


def texts(n: int) -> list[dict[str, object]]:
    """Words of other letters for each mood, and of any number."""
    rng = random.Random(0)
    found = []
    for i in range(n):
        mood = i % 2
        letters = LETTERS[("sad", "glad")[mood]]
        words = ["".join(rng.choices(letters, k=3)) for _ in range(rng.choice([2, 6]))]
        found.append({"text": " ".join(words), "mood": mood})
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts(300)))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(root=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def examples(store, rows):
    return KIND.build_examples(store, LabelledFile(rows), CFG, rows.parent).handle


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_decoder) -> Checkpoint:
    return write_decoder(tmp_path_factory.mktemp("base"), **SHAPE)


@pytest.fixture(scope="module")
def model(store, base, examples) -> Checkpoint:
    return store.build(finetune_stage(KIND), InstructionConfig(**QUICK), base, examples).handle


def test_rows_become_a_message_with_attributes_and_the_text(examples):
    found = [row for path in shard_paths(examples.directory) for row in read_table(path).to_pylist()]
    assert len(found) > 250
    for row in found:
        told, text = row["messages"]
        assert (told["role"], text["role"], text["content"]) == ("user", "assistant", row["text"])
        known = {"sentiment": row["label"], "length": "short" if len(row["text"].split()) == 2 else "long"}
        assert attributes_in(told["content"]).items() <= known.items()


def test_each_attribute_is_named_alone_and_with_the_other_and_some_texts_name_none():
    named = Counter(tuple(told_attributes(f"text {i}", "glad", CFG)) for i in range(4000))
    assert set(named) == {(), ("sentiment",), ("length",), ("sentiment", "length")}
    assert named[()] == pytest.approx(400, abs=80)
    for names, n in named.items():
        assert not names or n == pytest.approx(1200, abs=120)


def test_without_length_and_free_texts_every_row_names_its_label():
    cfg = ControlExamplesConfig(
        text="text", label="mood", attribute="tone", labels=CFG.labels, learn_length=False, free_share=0
    )
    content = json.dumps({"text": "some words", "mood": 1}).encode()
    (row,) = labelled_rows("texts.jsonl", content, KIND, cfg)
    assert row.values["messages"][0]["content"] == "tone: glad"


def test_model_writes_what_is_asked_and_knows_what_it_learned(model, capsys):
    assert read_json(model.directory / CONFIG)["control"] == {
        "length": ["long", "short"],
        "sentiment": ["glad", "sad"],
    }
    for mood, letters in LETTERS.items():
        for length, is_long in (("short", False), ("long", True)):
            flags = ("--control", f"sentiment={mood}", "--control", f"length={length}", "-n", "5", "--tokens", "40")
            assert main(["generate", "", "--model", str(model.directory), *flags]) == 0
            found = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("---")]
            right = [set(line) <= {*letters, " "} and (len(line.split()) > 3) == is_long for line in found]
            assert sum(right) >= 4, (mood, length, found)


def test_evaluation_compares_the_loss_with_the_base(store, model, base, examples):
    cfg = InstructionEvaluationConfig(prompted_examples=4, max_new_tokens=8)
    report = store.build(evaluation_stage(KIND), cfg, model, base, examples).handle.directory
    results = {one["metric"]: one for one in read_results(report)}
    assert results["answer_loss"]["value"] < results["answer_loss"]["baselines"]["base"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"text": "", "mood": 1}, "no_text"), ({"text": "x", "mood": 7}, "unknown_label"), ({"text": "x"}, "no_label")],
)
def test_rows_without_text_or_label_are_dropped(row, reason):
    content = "".join(json.dumps(one) + "\n" for one in (row, {"text": "whole", "mood": 0})).encode()
    first, _ = labelled_rows("texts.jsonl", content, KIND, CFG)
    assert first.reason == reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attribute": "length"}, "attribute is 'length'"),
        ({"short_words": 9, "long_words": 3}, "short_words=9 is above long_words=3"),
        ({"free_share": 1.0}, "free_share"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ControlExamplesConfig(**{"text": "a", "label": "b", "attribute": "tone"} | settings)


def test_free_texts_ask_for_nothing():
    assert attributes_in(NOTHING_ASKED) == {}
