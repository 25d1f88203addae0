"""`gristmill generate` under control: the form of the text, and its attributes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.chat_templates import TEMPLATES
from model.data.control_text import asked_in_words, control_message
from model.generation.sample_config import SampleConfig
from model.network.decoder import new_decoder
from model.network.heads import new_classifier
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig
from model.training.files import CONFIG, read_json
from pipeline.cli import main
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.serving.generate import predictor_in, stream_text
from pipeline.store.layout import Layout, save_current
from pipeline.store.records import Checkpoint
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tasks.classification import Classifier

CFG = DecoderConfig(
    vocab_size=257, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=160
)


def written_model(folder: Path, model: torch.nn.Module, description: dict) -> str:
    write_tokenizer(folder / "tokenizer", {bytes([value]): value for value in range(256)}, "qwen2")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.5, generator=generator)
    save_model(folder, model, description)
    return str(folder)


@pytest.fixture
def model(tmp_path) -> str:
    """A decoder that writes small letters, and can learn nothing from being told."""
    decoder = new_decoder(CFG, seed=0)
    folder = written_model(tmp_path / "decoder", decoder, describe(CFG))
    with torch.no_grad():
        letters = 2 * decoder.lm_head.weight[97:123]
        decoder.lm_head.weight.zero_()
        decoder.lm_head.weight[97:123] = letters
    save_model(Path(folder), decoder, describe(CFG))
    return folder


@pytest.fixture
def judge(tmp_path) -> str:
    description = describe(CFG, ("negative", "positive")) | {"max_tokens": 64}
    return written_model(tmp_path / "judge", new_classifier(CFG, 2, seed=1), description)


def with_template(model: str) -> str:
    (Path(model) / "tokenizer" / "chat_template.jinja").write_text(TEMPLATES["alpaca"])
    return model


def with_attributes(model: str, **attributes) -> str:
    path = Path(model) / CONFIG
    path.write_text(json.dumps(read_json(path) | {"control": attributes}))
    return model


def generated(model: str, capsys, *flags: str, text: str = "So: ", n_tokens: int = 30) -> str:
    assert main(["generate", text, "--model", model, "--tokens", str(n_tokens), *flags]) == 0
    return capsys.readouterr().out.removeprefix(text).removesuffix("\n")


def refused(model: str, capsys, *flags: str) -> str:
    assert main(["generate", "So: ", "--model", model, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_json_is_a_value(model, capsys, streamed):
    for seed in range(5):
        json.loads(generated(model, capsys, streamed, "--seed", str(seed), "--temperature", "3", "--json"))


def test_json_has_the_form_of_a_schema(model, tmp_path, capsys):
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    (tmp_path / "form.json").write_text(json.dumps(schema))
    value = json.loads(generated(model, capsys, "--json", str(tmp_path / "form.json")))
    assert value in ({"mood": "good"}, {"mood": "bad"})


def test_choices_are_written_with_a_space_behind_a_word(model, capsys):
    flags = ("--temperature", "5", "-n", "20", "--choices", "yes", "no")
    found = generated(model, capsys, *flags, text="Is it?")
    lines = {line for line in found.splitlines() if not line.startswith("---")}
    assert lines == {"Is it? yes", "Is it? no"}
    assert generated(model, capsys, "--choices", "yes") == "yes"


def texts_of_judge(judge: str, texts: list[str]) -> np.ndarray:
    return predictor_in(Classifier, Path(judge)).probabilities(texts)


@pytest.mark.parametrize("by", ["rerank", "steer"])
def test_control_by_a_judge_raises_the_probability_of_the_label(model, judge, capsys, by):
    texts = {}
    for n in (1, 12):
        flags = ("--control", "sentiment=positive", "--control-by", by, "--judge", judge, "--candidates", str(n))
        found = generated(model, capsys, *flags, "-n", "6", "--temperature", "2")
        texts[n] = [line for line in found.splitlines() if not line.startswith("---")]
    free, controlled = (texts_of_judge(judge, texts[n])[:, 1].mean() for n in (1, 12))
    assert controlled > free


def test_control_of_a_model_that_learned_attributes_tells_it_them_as_in_training(model, capsys):
    with_attributes(with_template(model), sentiment=["negative", "positive"], length=["short"])
    told = control_message({"sentiment": "positive", "length": "short"})
    found = generated(model, capsys, "--control", "sentiment=positive", "--control", "length=short")
    assert found == expected(model, told) != expected(model, "")


def test_control_of_a_model_with_a_template_tells_it_in_words(model, capsys):
    found = generated(with_template(model), capsys, "--control", "sentiment=positive")
    assert found == expected(model, asked_in_words({"sentiment": "positive"})) != expected(model, "")


def test_control_tells_a_model_after_the_system_message_that_it_was_tuned_with(model, capsys):
    asked = ("--control", "sentiment=positive")
    without = generated(with_template(model), capsys, *asked)
    path = Path(model) / CONFIG
    path.write_text(json.dumps(read_json(path) | {"chat": {"system": "You write kindly."}}))
    with_system = generated(model, capsys, *asked)
    assert with_system != without
    # the template of this model writes a system message as its text and an empty line before the question
    pieces = stream_text(Path(model), alpaca("You write kindly."), SampleConfig(max_new_tokens=30))
    assert "".join(piece for _, piece in pieces) == with_system


def alpaca(system: str) -> str:
    told = asked_in_words({"sentiment": "positive"})
    return f"{system}\n\n### Instruction:\n{told}\n\n### Response:\nSo: "


def expected(model: str, told: str) -> str:
    pieces = stream_text(Path(model), "So: ", SampleConfig(max_new_tokens=30), told=told)
    return "".join(piece for _, piece in pieces)


def test_control_of_a_model_with_a_template_is_by_the_task_of_the_attribute_once_there_is_one(
    model, judge, tmp_path, capsys, monkeypatch
):
    layout = Layout(tmp_path / "data")
    layout.data.mkdir()
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    asked = ("--control", "sentiment=positive")
    assert generated(with_template(model), capsys, *asked) == expected(
        model, asked_in_words({"sentiment": "positive"})
    )

    def copied(cfg, inputs, work) -> Outcome:
        shutil.copytree(judge, work.directory, dirs_exist_ok=True)
        return Outcome(rows=1)

    stage = Stage(name="finetune", version=1, function=copied, handle=Checkpoint)
    save_current(layout, "sentiment_model", Store(root=layout.store).build(stage, {}).handle)
    steered = generated(model, capsys, *asked, "--control-by", "steer", "--judge", judge)
    assert generated(model, capsys, *asked) == steered


def test_control_by_a_judge_of_the_data_folder_is_the_task_of_the_attribute(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    assert "sentiment_model" in refused(model, capsys, "--control", "sentiment=positive")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "none.json"], "there is no such file"),
        (["--json", "--choices", "a"], "give one of them"),
        (["--choices", "a", "--stop", "x"], "a constraint and stop strings"),
        (["--choices", "long" * 40], "at least 160"),
        (["--judge", "x"], "--judge without --control"),
        (["--control-by", "steer"], "--control-by without --control"),
        (["--control", "positive"], "write name=value"),
        (["--control", "a=b", "--control-by", "prefix"], "learned no attributes"),
        (["--control", "a=b", "--control-by", "prompt"], "has no chat template"),
        (["--control", "a=b", "--judge", "JUDGE"], "has no label 'b'; it has negative, positive"),
        (["--control", "a=positive", "--judge", "JUDGE", "--json"], "chooses among free texts"),
        (["--control", "a=b", "--control", "c=d", "--judge", "JUDGE"], "judges one attribute"),
        (["--control", "a=positive", "--judge", "JUDGE", "--candidates", "0"], "n_samples=0"),
    ],
)
def test_wrong_use_is_explained_in_one_line(model, judge, capsys, flags, message):
    assert message in refused(model, capsys, *[judge if flag == "JUDGE" else flag for flag in flags])


def test_attributes_that_a_model_did_not_learn_are_refused(model, capsys):
    with_attributes(with_template(model), sentiment=["positive"])
    assert "learned positive" in refused(model, capsys, "--control", "sentiment=negative")
    assert "it learned sentiment" in refused(model, capsys, "--control", "tone=calm")
