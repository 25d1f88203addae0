"""Preferences from files to a model: what is read, what is learned, what is computed once, and what is reported."""

import json
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.data.chat import Message, load_chat_template
from model.data.tokenizer import load_model_tokenizer
from model.network.encoder import new_masked_lm
from model.network.registry import describe, load_decoder, save_model
from model.network.shape import EncoderConfig
from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.outputs import read_curve, read_results
from pipeline.store.records import Checkpoint
from pipeline.store.shards import read_table
from pipeline.store.store import Store
from pipeline.tasks.instruction import InstructionEvaluationConfig
from pipeline.tasks.preference import KIND, PreferenceConfig, PreferenceExamplesConfig
from pipeline.training.finetune import finetune_stage
from pipeline.training.reference import FILE
from tests.children import python

SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 48, "d_head": 24, "d_ff": 96, "max_seq_len": 160}
QUICK = {"epochs": 3, "rows": 16, "adamw_lr": 0.002}


def rows(n: int) -> list[dict[str, str]]:
    """Of two answers the one that ends in "please" was chosen."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        words = ["".join(rng.choices("mnopqrstuvw", k=4)) for _ in range(3)]
        answer = rng.choice("abcd") * 2
        found.append({"prompt": " ".join(words), "chosen": f"{answer} please", "rejected": f"{answer} {words[0]}"})
    return found


def written(folder, made: list[dict[str, str]]) -> LabelledFile:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return LabelledFile(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(root=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def built(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return KIND.build_examples(store, written(folder, rows(200)), PreferenceExamplesConfig(), folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory, write_decoder) -> Checkpoint:
    return write_decoder(tmp_path_factory.mktemp("base"), **SHAPE)


def reference_of(store, cfg, base, examples):
    stage, config = KIND.reference(cfg)
    return store.build(stage, config, base, examples)


def trained(store, cfg, base, examples) -> Checkpoint:
    reference = reference_of(store, cfg, base, examples).handle
    return store.build(finetune_stage(KIND), cfg, base, examples, reference).handle


@pytest.fixture(scope="module")
def model(store, base, built) -> Checkpoint:
    return trained(store, PreferenceConfig(**QUICK), base, built.handle)


@pytest.fixture(scope="module")
def report(store, model, base, built):
    cfg = InstructionEvaluationConfig(prompted_examples=5, max_new_tokens=8)
    return store.build(evaluation_stage(KIND), cfg, model, base, built.handle).handle.directory


def test_a_tuned_decoder_prefers_the_chosen_answers_and_the_report_says_what_changed(report):
    found = {one["metric"]: one for one in read_results(report)}
    accuracy = found["preference_accuracy"]
    assert accuracy["value"] >= 0.9
    assert set(accuracy["baselines"]) == {"base", "longer_answer", "shorter_answer"}
    assert accuracy["baselines"]["longer_answer"] == 1 - accuracy["baselines"]["shorter_answer"] == 1.0
    assert found["margin"]["value"] > 0
    assert found["margin"]["low"] < found["margin"]["value"] < found["margin"]["high"]
    before, after = (found["chosen_log_probability"][key] for key in ("baselines", "value"))
    assert found["chosen_change"]["value"] == pytest.approx(after / before["base"] - 1)
    text = (report / "report.md").read_text()
    assert "What the training changed" in text
    assert "please" not in text  # texts of the data stay in mistakes.md
    assert "answer of base" in (report / "mistakes.md").read_text()


def test_prompt_loss_is_that_of_the_users_messages_alone(report, base, built):
    """The report's value of the base, computed from all logits of one prompt after another."""
    decoder, tokenizer = load_decoder(base.directory), load_model_tokenizer(base.directory, 257)
    template, nats = load_chat_template(tokenizer, base.directory / "tokenizer"), []
    for text in read_examples(built.handle.directory, "test")["text"].to_pylist():
        (one,) = template.rendered([[Message("user", text)]], trained=("user",))
        ids = torch.from_numpy(one.ids)
        with torch.no_grad():
            losses_T = F.cross_entropy(decoder(ids[None, :-1])[0], ids[1:], reduction="none")
        nats += losses_T[torch.from_numpy(one.is_supervised[1:])].tolist()
    found = {one["metric"]: one for one in read_results(report)}["prompt_loss"]
    assert found["baselines"]["base"] == pytest.approx(np.mean(nats), abs=1e-4)
    assert not found["higher_is_better"]


def test_curve_has_accuracy_margin_and_log_probabilities_of_both_answers(model):
    last = [line for line in read_curve(model.directory) if "validation_margin" in line][-1]
    assert {"validation_accuracy", "validation_chosen", "validation_rejected", "validation_loss"} <= last.keys()
    first = next(line for line in read_curve(model.directory) if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)  # the model is still the reference


def test_reference_is_computed_once_for_all_trainings_on_it(store, base, built):
    first = reference_of(store, PreferenceConfig(**QUICK), base, built.handle)
    for other in ({"beta": 0.5}, {"loss": "ipo"}, {"tuning": "lora"}, {"adamw_lr": 0.01}):
        again = reference_of(store, PreferenceConfig(**QUICK | other), base, built.handle)
        assert again.unchanged, other
        assert again.handle == first.handle
    shorter = reference_of(store, PreferenceConfig(**QUICK, max_tokens=100), base, built.handle)
    assert shorter.handle != first.handle
    assert KIND.reference(PreferenceConfig(loss="simpo")) is None
    table = read_table(first.handle.directory / FILE)
    held_out = [read_examples(built.handle.directory, split).num_rows for split in ("train", "validation")]
    assert table.num_rows == sum(held_out)
    assert max(table["chosen_nats"].to_pylist()) < 0


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ipo", "beta": 0.5},
        {"loss": "dpo_norm"},
        {"loss": "simpo"},
        {"sft_weight": 1.0, "label_smoothing": 0.1},
        {"tuning": "lora", "lora_rank": 2, "lora_lr": 0.01},
    ],
    ids=str,
)
def test_every_loss_learns_the_preference(store, base, built, settings):
    cfg = PreferenceConfig(**QUICK | settings)
    before = KIND.reference(cfg)
    inputs = [] if before is None else [store.build(*before, base, built.handle).handle]
    tuned = store.build(finetune_stage(KIND), cfg, base, built.handle, *inputs)
    assert tuned.record["measures"]["validation_accuracy"] >= 0.9
    assert load_decoder(tuned.handle.directory).cfg == load_decoder(base.directory).cfg


CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pipeline.store.records import Checkpoint
from pipeline.store.store import Silent, Store, read_handle
from pipeline.tasks.preference import KIND, PreferenceConfig
from pipeline.training.finetune import finetune_stage

class Killer(Silent):
    def metrics(self, step, values):
        if step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

root, base, examples, reference = map(Path, sys.argv[1:5])
base = Checkpoint(stage="base", directory=base, fingerprint="b", digest="b", rows=0)
cfg = PreferenceConfig(**json.loads(sys.argv[5]))
store = Store(root=root, observer=Killer())
store.build(finetune_stage(KIND), cfg, base, read_handle(examples), read_handle(reference))
"""


def test_training_that_was_killed_and_run_again_ends_with_the_same_bits(tmp_path, store, base, built):
    settings = QUICK | {"epochs": 1, "checkpoint_every": 4, "tuning": "lora", "lora_rank": 2}
    cfg = PreferenceConfig(**settings)
    reference = reference_of(store, cfg, base, built.handle).handle
    whole = Store(root=tmp_path / "whole").build(finetune_stage(KIND), cfg, base, built.handle, reference)
    folders = [str(one.directory) for one in (base, built.handle, reference)]
    child = python("-c", CHILD, str(tmp_path / "killed"), *folders, json.dumps(settings))
    assert child.returncode == -signal.SIGKILL, child.stderr
    resumed = Store(root=tmp_path / "killed").build(finetune_stage(KIND), cfg, base, built.handle, reference)
    assert resumed.handle.digest == whole.handle.digest


def test_rows_that_hold_no_preference_are_counted_by_reason(store, tmp_path):
    made = rows(60)
    made[3]["rejected"] = made[3]["chosen"]
    del made[7]["chosen"]
    found = KIND.build_examples(store, written(tmp_path, made), PreferenceExamplesConfig(), tmp_path)
    assert found.record["counts"]["dropped"] == {"equal_answers": 1, "no_chosen": 1}
    assert "chosen longer" in (found.handle.directory / "examples.md").read_text()


def test_pairs_of_one_prompt_stay_in_one_split(store, tmp_path):
    made = rows(60)
    made += [one | {"rejected": f"{one['rejected']} again"} for one in made]
    built = KIND.build_examples(store, written(tmp_path, made), PreferenceExamplesConfig(), tmp_path).handle
    splits = {}
    for split in ("train", "validation", "test"):
        for text in read_examples(built.directory, split)["text"].to_pylist():
            assert splits.setdefault(text, split) == split
    assert len(splits) == 60


def test_pair_longer_than_the_context_is_left_out_or_cut_at_its_beginning(store, base, tmp_path, caplog):
    """A row of 100,000 tokens."""
    made = rows(60)
    made[0]["prompt"] = "long " * 20_000
    built = KIND.build_examples(store, written(tmp_path, made), PreferenceExamplesConfig(), tmp_path).handle
    parts = [read_examples(built.directory, split) for split in ("train", "validation", "test")]
    part = next(one for one in parts if any("long long" in text for text in one["text"].to_pylist()))
    tokenizer = load_model_tokenizer(base.directory, 257)
    for side, n_left_out in (("right", 1), ("left", 0)):
        encoder = KIND.encoder(PreferenceConfig(), tokenizer, base.directory / "tokenizer")
        found = KIND.encode(built, part, encoder, 160, side)
        assert len(found.left_out) == n_left_out
        assert len(found.ids) == part.num_rows - n_left_out
        assert ("no difference of their answers" in caplog.text) is (n_left_out > 0)
        caplog.clear()


def test_base_that_writes_no_text_is_refused(store, tmp_path, byte_tokenizer, built):
    shutil.copytree(byte_tokenizer.directory, tmp_path / "tokenizer")
    cfg = EncoderConfig(vocab_size=257, **SHAPE | {"n_kv_heads": 2})
    save_model(tmp_path, new_masked_lm(cfg, seed=0), describe(cfg))
    encoder = Checkpoint(stage="base", directory=tmp_path, fingerprint="e", digest="encoder", rows=1)
    with pytest.raises(ValueError, match=r"writes no text.*needs a decoder"):
        reference_of(store, PreferenceConfig(**QUICK), encoder, built.handle)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"simpo_margin": 1.0}, "simpo_margin"),
        ({"tuning": "head"}, "tuning"),
        ({"augment_typos": 0.1}, "augment"),
        ({"beta": 0.0}, "beta"),
        ({"loss": "ppo"}, "loss"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PreferenceConfig(**settings)


def test_training_from_random_weights_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="a base that writes"):
        KIND.reference(PreferenceConfig(initialisation="random"))
