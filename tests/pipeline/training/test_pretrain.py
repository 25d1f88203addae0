"""The stage pretrain: recipes, the finished folder, resume through the store, what the observer hears."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.data.token_shards import write_token_shard
from model.network.registry import load_decoder
from model.training.curve import read_curve
from model.training.presets import from_depth
from pipeline.store.errors import Terminated
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.store.store import Built, Store, recipe_of
from pipeline.training.pretrain import (
    PRETRAIN,
    PretrainConfig,
    pretrain_recipe,
)
from tests.children import python

TOKENIZER_FILES = ("tokenizer.tiktoken", "gristmill_tokenizer.json", "tokenizer.json", "tokenizer_config.json")
TINY = PretrainConfig(
    n_layers=1, d_model=16, n_heads=2, seq_len=8, n_steps=24, rows=4, checkpoint_every=5, validate_every=10
)


class Heard:
    def __init__(self) -> None:
        self.runs: list[dict] = []
        self.steps: list[tuple[int, dict]] = []
        self.checkpoints: list[tuple[str, int, dict]] = []

    def started(self, fingerprint, params, inputs) -> None:
        self.runs.append({"fingerprint": fingerprint, **params})

    def metrics(self, step, values) -> None:
        self.steps.append((step, dict(values)))

    def checkpoint(self, path, step, values) -> None:
        assert (path / "model.safetensors").exists()
        self.checkpoints.append((path.name, step, dict(values)))


class Stopping(Heard):
    def metrics(self, step, values) -> None:
        super().metrics(step, values)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)


def write_inputs(directory: Path, n_validation: int = 6) -> tuple[Shards, TokenizerFile]:
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("validation", n_validation), ("test", 3)):
        (directory / "tokens" / split).mkdir(parents=True)
        texts = [np.concatenate([[0], rng.integers(1, 50, rng.integers(1, 40))]) for _ in range(n)]
        path, names = directory / "tokens" / split / "00000.arrow", [f"{split}-{i}" for i in range(n)]
        write_token_shard(path, names, [3 * len(text) for text in texts], texts, vocab_size=50)
    description = {"vocab_size": 50, "end_of_text": 0, "tokenizer": "tokenizer-digest"}
    (directory / "tokens" / "tokens.json").write_text(json.dumps(description))
    (directory / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        (directory / "tokenizer" / name).write_text(name)
    return inputs(directory)


def inputs(directory: Path) -> tuple[Shards, TokenizerFile]:
    return (
        Shards(stage="tokenize", directory=directory / "tokens", fingerprint="t", digest="t", rows=20),
        TokenizerFile(
            stage="tokenizer", directory=directory / "tokenizer", fingerprint="z", digest="tokenizer-digest", rows=50
        ),
    )


def build(directory: Path, observer=None, cfg: PretrainConfig = TINY, root: str = "store"):
    store = Store(root=directory / root, observer=observer or Heard())
    return store.build(PRETRAIN, pretrain_recipe(cfg), *inputs(directory))


@pytest.fixture
def directory(tmp_path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Built, Heard]:
    """A training that nothing interrupted, and what its observer heard."""
    directory, heard = tmp_path_factory.mktemp("whole"), Heard()
    write_inputs(directory)
    return build(directory, heard), heard


def test_pretrain_folder_holds_a_model_its_tokenizer_and_its_curve(whole):
    built, heard = whole
    assert isinstance(built.handle, Checkpoint) and built.handle.rows == 24
    decoder = load_decoder(built.handle.directory)
    assert decoder.cfg == pretrain_recipe(TINY).network.with_vocab(50)
    assert (built.handle.directory / "tokenizer" / "tokenizer.tiktoken").read_text() == "tokenizer.tiktoken"
    curve = read_curve(built.handle.directory)
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 25))
    assert [line["step"] for line in curve if "validation_bits_per_byte" in line] == [10, 20, 24]
    measures = built.record["measures"]
    assert measures["tokens"] == 24 * 4 * 8
    assert measures["parameters"] == sum(weight.numel() for weight in decoder.parameters())
    assert measures["training_loss"] == curve[-2]["loss"]
    assert measures["validation_bits_per_byte"] == curve[-1]["validation_bits_per_byte"]
    assert heard.runs == [heard.runs[0]] and heard.runs[0]["vocab_size"] == 50
    assert [step for step, values in heard.steps if "loss" in values] == list(range(1, 25))
    assert [(name, step) for name, step, _ in heard.checkpoints] == [
        (f"step-{step:06d}", step)
        for step in (5, 10, 12, 15, 20, 24)  # 12 ends the stable phase
    ]
    assert heard.checkpoints[-1][2]["validation_bits_per_byte"] == measures["validation_bits_per_byte"]


def test_pretrain_identity_is_weights_config_and_tokenizer(directory, whole):
    first, again = whole[0], build(directory)
    assert first.handle.digest == again.handle.digest
    digests = {name for name, entry in first.record["files"].items() if entry["digest"]}
    assert digests == {"model.safetensors", "config.json", *(f"tokenizer/{name}" for name in TOKENIZER_FILES)}


def test_pretrain_validation_is_the_mean_over_windows_by_bytes_a_token(directory, whole):
    measures = whole[0].record["measures"]
    from model.data.token_shards import read_token_shards

    shards = read_token_shards(directory / "tokens", "validation")
    tokens_a_byte = sum(len(s.tokens) for s in shards) / sum(s.n_bytes.sum() for s in shards)
    expected = measures["validation_loss"] / np.log(2) * tokens_a_byte
    assert measures["validation_bits_per_byte"] == pytest.approx(expected)


def test_pretrain_stopped_by_a_signal_says_so_and_ends_the_same(directory, whole):
    with pytest.raises(Terminated, match="step 13"):
        build(directory, Stopping())
    heard = Heard()
    resumed = build(directory, heard)
    assert resumed.handle.digest == whole[0].handle.digest
    assert heard.steps[0][0] == 14
    without_time = [
        [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_curve(b.handle.directory)]
        for b in (whole[0], resumed)
    ]
    assert without_time[0] == without_time[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.training import test_pretrain as test

TOKENIZER_FILES = ("tokenizer.tiktoken", "gristmill_tokenizer.json", "tokenizer.json", "tokenizer_config.json")

class Dying(test.Heard):
    def metrics(self, step, values):
        if step == 18:
            while not list(Path(sys.argv[1]).rglob("step-000015/complete.json")):
                os.sched_yield()
            os.kill(os.getpid(), signal.SIGKILL)

test.build(Path(sys.argv[1]), Dying())
"""


def test_pretrain_killed_resumes_through_the_store_to_the_same_digest(directory, whole):
    child = python("-c", KILLED, str(directory))
    assert child.returncode == -signal.SIGKILL, child.stderr
    heard = Heard()
    resumed = build(directory, heard)
    assert heard.steps[0][0] == 16
    assert resumed.handle.digest == whole[0].handle.digest


def test_pretrain_on_tokens_of_another_tokenizer_is_refused(directory):
    tokens, tokenizer = inputs(directory)
    other = dataclasses.replace(tokenizer, digest="another")
    with pytest.raises(ValueError, match=r"tokenizer-digest, got another"):
        Store(root=directory / "store").build(PRETRAIN, pretrain_recipe(TINY), tokens, other)


def test_pretrain_without_a_validation_window_trains_without_validation(tmp_path):
    write_inputs(tmp_path, n_validation=0)
    measures = build(tmp_path).record["measures"]
    assert "training_loss" in measures and "validation_loss" not in measures


def test_pretrain_with_too_high_a_rate_names_the_step_and_the_documents(directory):
    cfg = dataclasses.replace(TINY, muon_lr=1e30, adamw_lr=1e30)
    with pytest.raises(ValueError, match=r"step \d+: loss .* not finite.*train-\d+"):
        build(directory, cfg=cfg)


def test_recipe_of_a_preset_follows_the_preset_and_what_the_user_changed():
    recipe = pretrain_recipe(PretrainConfig())
    assert (recipe.network.d_model, recipe.train.n_steps) == (128, 2000)
    changed = pretrain_recipe(PretrainConfig(d_model=192, n_heads=6, seq_len=64, rows=12, muon_lr=0.01))
    assert changed.network == dataclasses.replace(
        recipe.network, n_heads=6, n_kv_heads=6, d_model=192, d_head=32, d_ff=512, max_seq_len=64
    )
    assert (changed.train.rows, changed.train.micro_batch, changed.train.muon_lr) == (12, 6, 0.01)


def test_recipe_of_a_depth_is_the_dial_and_what_the_user_changed():
    recipe = pretrain_recipe(PretrainConfig(depth=3, n_steps=7))
    assert (recipe.network, recipe.train.n_steps) == (from_depth(3).shape, 7)
    assert pretrain_recipe(PretrainConfig(depth=3, family="gpt2")).network.positions == "learned"
    with pytest.raises(ValueError, match="depth is 0"):
        PretrainConfig(depth=0)


def test_recipe_is_the_same_however_its_numbers_were_reached():
    assert pretrain_recipe(PretrainConfig(n_steps=2000, d_model=128)) == pretrain_recipe(PretrainConfig())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d_model": 130}, "d_model=130 is not a multiple of n_heads=4"),
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_kv_heads": 3}, "n_kv_heads=3"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"rows": 8, "micro_batch": 3}, "micro_batch=3"),
        ({"muon_lr": -1.0}, "muon_lr is -1.0"),
        ({"preset": "large"}, "preset is 'large', expected one of demo, small, base, gpt2_124m"),
        ({"d_model": 12}, "d_head=3 must be even"),
        ({"warmup_fraction": 0.7}, "warmup_fraction=0.7"),
    ],
)
def test_config_that_does_not_fit_is_refused_when_it_is_made(changes, named):
    with pytest.raises(ValueError, match=named):
        PretrainConfig(**changes)


def test_stage_module_is_cheap_to_import():
    code = "import sys, pipeline.training.pretrain; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert answer.stdout.strip() == "False"


def test_recipe_is_no_other_for_how_it_is_computed():
    """So that a training that ran out of memory goes on, in the same folder, with what its message says to change."""
    plain = recipe_of(PRETRAIN, pretrain_recipe(PretrainConfig()))
    how = PretrainConfig(micro_batch=2, activation_checkpointing=True, parallel="fsdp", devices=2, keep_checkpoints=1)
    assert recipe_of(PRETRAIN, pretrain_recipe(how)) == plain
    assert recipe_of(PRETRAIN, pretrain_recipe(PretrainConfig(rows=16))) != plain
