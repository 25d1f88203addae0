"""Instruction tuning from files to answers: what is read, what is dropped, what is learned, and what is reported."""

import json
import random
import shutil
from pathlib import Path

import mlflow
import pytest
import torch

from model.data.chat import CHAT_TEMPLATE, Message
from model.network.encoder import new_masked_lm
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import EncoderConfig, switches_of
from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.outputs import read_results
from pipeline.store.records import Checkpoint
from pipeline.store.store import Store
from pipeline.tasks.instruction import (
    KIND,
    InstructionAnswerer,
    InstructionConfig,
    InstructionEvaluationConfig,
    InstructionExamplesConfig,
)
from pipeline.tracking.packaging import imports_repository, link_served, served_code, write_package
from pipeline.training.finetune import finetune_stage

SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 48, "d_head": 24, "d_ff": 96, "max_seq_len": 128}
QUICK = {"epochs": 12, "rows": 16, "optimizer": "adamw", "adamw_lr": 0.01}


def rows(n: int) -> list[dict[str, str]]:
    """Questions whose answer is a letter that they name twice, among others."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        letter = rng.choice("abcd")
        words = " ".join("".join(rng.choices("mnopqrstuvw", k=4)) for _ in range(3))
        found.append({"instruction": f"Say {letter}", "input": words, "output": letter * 3})
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(root=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def built(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(200)))
    return KIND.build_examples(store, LabelledFile(folder / "rows.jsonl"), InstructionExamplesConfig(), folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_decoder) -> Checkpoint:
    return write_decoder(tmp_path_factory.mktemp("base"), **SHAPE)


@pytest.fixture(scope="module")
def model(store, base, built) -> Checkpoint:
    return store.build(finetune_stage(KIND), InstructionConfig(**QUICK), base, built.handle).handle


@pytest.fixture(scope="module")
def report(store, model, base, built) -> Path:
    cfg = InstructionEvaluationConfig(prompted_examples=10, max_new_tokens=8)
    return store.build(evaluation_stage(KIND), cfg, model, base, built.handle).handle.directory


def test_a_tuned_decoder_answers_and_stops_by_itself(model, report):
    answerer = InstructionAnswerer(model.directory)
    (found,) = answerer.examine([{"prompt": "Say c\n\nmnop qrst uvwm"}])
    assert found == {"answer": "ccc", "is_complete": True}
    results = {one["metric"]: one for one in read_results(report)}
    assert results["answer_loss"]["value"] < 0.2 * results["answer_loss"]["baselines"]["base"]
    assert results["answer_loss"]["comparisons"]["base"]["high"] < 0
    assert results["complete_answers"]["value"] >= 0.95


def test_the_report_compares_answers_with_those_of_the_base(model, report):
    found = {one["metric"]: one for one in read_results(report)}
    assert set(found) == set(KIND.metrics)
    assert all(set(one["baselines"]) == set(one["comparisons"]) == {"base"} for one in found.values())
    assert found["answer_loss"]["higher_is_better"] is False and found["rouge_l"]["higher_is_better"] is True
    assert "18 short English texts" in found["general_bits_per_byte"]["note"]
    shown = (report / "mistakes.md").read_text()
    assert "10 of 16 conversations were answered" in shown and shown.count("**question**") == 10
    assert "Say " not in (report / "report.md").read_text()  # texts of the examples stay in the folder


def test_a_model_is_saved_with_its_template_and_system_prompt(store, base, built, tmp_path):
    cfg = InstructionConfig(**{**QUICK, "epochs": 1}, template="alpaca", system_prompt="Be brief.")
    tuned = store.build(finetune_stage(KIND), cfg, base, built.handle).handle
    template = (tuned.directory / "tokenizer" / CHAT_TEMPLATE).read_text()
    assert "### Instruction:" in template and not (base.directory / "tokenizer" / CHAT_TEMPLATE).exists()
    answerer = InstructionAnswerer(tuned.directory)
    (asked,) = answerer.questions([{"prompt": "Say c"}])
    assert asked == [Message("system", "Be brief."), Message("user", "Say c")]
    assert load_decoder(tuned.directory).cfg == load_decoder(base.directory).cfg
    with pytest.raises(ValueError, match="ends an answer by no special token"):
        store.build(finetune_stage(KIND), InstructionConfig(template="chatml"), base, built.handle)


def test_adapters_are_merged_into_a_decoder_that_answers(store, base, built):
    cfg = InstructionConfig(epochs=1, rows=16, tuning="lora", lora_rank=2)
    tuned = store.build(finetune_stage(KIND), cfg, base, built.handle).handle
    before, after = (dict(load_decoder(one.directory).named_parameters()) for one in (base, tuned))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed and all("proj" in name for name in changed)
    assert (tuned.directory / "adapter" / "model.safetensors").exists()


def test_the_model_of_a_task_is_the_base_of_another(store, model, built):
    cfg = InstructionConfig(**{**QUICK, "epochs": 1}, trained=("all",))
    second = store.build(finetune_stage(KIND), cfg, model, built.handle).handle
    judged = store.build(
        evaluation_stage(KIND), InstructionEvaluationConfig(prompted_examples=2), second, model, built.handle
    ).handle
    found = {one["metric"]: one for one in read_results(judged.directory)}
    assert found["answer_loss"]["baselines"]["base"] < 0.1


def test_an_encoder_is_no_base(store, tmp_path, byte_tokenizer, built):
    cfg = EncoderConfig(vocab_size=257, tie_embeddings=True, **SHAPE, **switches_of("modernbert"))
    save_model(tmp_path, new_masked_lm(cfg, seed=1), describe(cfg))
    shutil.copytree(byte_tokenizer.directory, tmp_path / "tokenizer")
    encoder = Checkpoint(stage="pretrain", directory=tmp_path, fingerprint="e", digest="e", rows=1)
    with pytest.raises(ValueError, match=r"which writes no text; .* needs a decoder as base"):
        store.build(finetune_stage(KIND), InstructionConfig(), encoder, built.handle)


def test_a_row_whose_answer_is_not_read_is_named_and_a_long_one_is_cut(store, base, tmp_path, caplog):
    """100,000 tokens: a question of which nothing but the beginning is read, and an answer without an end."""
    long = [
        {"instruction": f"Say {'c ' * 50_000}", "output": "c", "part": "train"},
        {"instruction": "Say d", "output": "d" * 100_000, "part": "train"},
    ]
    few = [row | {"part": part} for row, part in zip(rows(30), ["train", "validation", "test"] * 10, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long + few))
    cfg = InstructionExamplesConfig(split="part", similarity=1.0)
    examples = KIND.build_examples(store, LabelledFile(tmp_path / "rows.jsonl"), cfg, tmp_path).handle
    tuned = store.build(finetune_stage(KIND), InstructionConfig(epochs=1, rows=4), base, examples)
    first = read_examples(examples.directory, "train")["id"][0].as_py()
    assert f"1 of 12 conversations have no trained token among the 128 that are read, and are not used: {first}" in (
        caplog.text
    )
    assert tuned.record["measures"]["train_n_cut"] == 1
    short = InstructionConfig(max_tokens=4)
    with pytest.raises(ValueError, match="no conversation has a trained token: at most 4 tokens of each are read"):
        store.build(finetune_stage(KIND), short, base, examples)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained": ("narrator",)}, "has 'narrator'; expected system, user, assistant, tool, or all alone"),
        ({"tuning": "head"}, "tuning is 'head', expected"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InstructionConfig(**settings)


def test_what_is_wrong_with_the_rows_is_told_before_a_training(store, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "Where?", "a": "Here."}\n')
    with pytest.raises(ValueError, match="but no row has them; the rows have: a, q"):
        KIND.build_examples(store, LabelledFile(tmp_path / "rows.jsonl"), InstructionExamplesConfig(), tmp_path)


def test_the_overview_tells_turns_and_lengths(built):
    shown = (built.handle.directory / "examples.md").read_text()
    assert "## Conversations" in shown and "| train | 162 | 0 | 0 | 1 | 1 | 1 | 1 |" in shown


def test_a_registered_model_answers_without_this_repository(model, tmp_path):
    import pandas as pd

    write_package(tmp_path, KIND, "m-1", None)
    link_served(model.directory, tmp_path)
    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    assert not imports_repository(served_code(InstructionAnswerer))
    assert loaded.predict(pd.DataFrame({"prompt": ["Say c\n\nmnop qrst uvwm"]}))["answer"].tolist() == ["ccc"]
