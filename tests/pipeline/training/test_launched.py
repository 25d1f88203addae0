"""A training in a process of its own: the same model, heard of in full, failures in their own words, kills mended.

One process here, started without torchrun; tests/pipeline/defs/test_devices.py has two and Dagster around them.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.data.token_shards import write_token_shard
from model.training.launch import LaunchResult
from pipeline.store.errors import Terminated
from pipeline.store.records import Shards, TokenizerFile
from pipeline.store.store import Built, Silent, Store, literals
from pipeline.training.launched import failures_in, write_failure
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe

TOKENIZER_FILES = ("tokenizer.tiktoken", "gristmill_tokenizer.json", "tokenizer.json", "tokenizer_config.json")

TINY = PretrainConfig(
    n_layers=1, d_model=16, n_heads=2, seq_len=16, n_steps=24, rows=4, checkpoint_every=5, validate_every=10
)


class Heard(Silent):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.checkpoints: list[tuple[int, list[str]]] = []

    def metrics(self, step, values) -> None:
        if "loss" in values:
            self.steps.append(step)

    def checkpoint(self, path, step, values) -> None:
        self.checkpoints.append((step, sorted(values)))


@contextlib.contextmanager
def started(order: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "pipeline.training.process", str(order)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        yield process


def in_one_process(order: Path) -> LaunchResult:
    """As model.training.launch.launch, without torchrun."""
    with started(order) as process:
        return LaunchResult(process.wait(), was_stopped=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for split, n in (("train", 20), ("validation", 6), ("test", 3)):
        (folder / "shards" / split).mkdir(parents=True)
        texts = [np.concatenate([[0], rng.integers(1, 50, rng.integers(10, 40))]) for _ in range(n)]
        path, names = folder / "shards" / split / "00000.arrow", [f"{split}-{i}" for i in range(n)]
        write_token_shard(path, names, [3 * len(text) for text in texts], texts, vocab_size=50)
    description = {"vocab_size": 50, "end_of_text": 0, "tokenizer": "digest-0"}
    (folder / "shards" / "tokens.json").write_text(json.dumps(description))
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        (folder / "tokenizer" / name).write_text(name)
    return folder


def built(corpus: Path, root: Path, cfg: PretrainConfig = TINY, launch=in_one_process, observer=None):
    tokens = Shards(stage="tokenize", directory=corpus / "shards", fingerprint="t", digest="t", rows=20)
    files = TokenizerFile(
        stage="tokenizer", directory=corpus / "tokenizer", fingerprint="z", digest="digest-0", rows=50
    )
    store = Store(root=root, launch=launch, observer=observer or Heard())
    return store.build(PRETRAIN, pretrain_recipe(cfg), tokens, files)


@pytest.fixture(scope="module")
def trained_here(corpus, tmp_path_factory) -> tuple[Built, Heard]:
    """The training in the process of the tests, and what its observer heard."""
    heard = Heard()
    return built(corpus, tmp_path_factory.mktemp("here"), launch=None, observer=heard), heard


def test_launched_training_gives_the_model_and_the_record_of_one_that_was_not(corpus, tmp_path, trained_here):
    heard, (here, heard_here) = Heard(), trained_here
    there = built(corpus, tmp_path / "there", observer=heard)
    assert there.handle.digest == here.handle.digest and there.handle.fingerprint == here.handle.fingerprint
    assert there.record["files"].keys() == here.record["files"].keys()
    assert heard.steps == heard_here.steps == list(range(1, 25))
    assert heard.checkpoints == heard_here.checkpoints
    assert not [
        path
        for path in there.handle.directory.iterdir()
        if path.name.startswith(".") and path.name != ".verified.json"
    ]


def test_devices_are_no_part_of_the_recipe():
    assert pretrain_recipe(dataclasses.replace(TINY, devices=2)) == pretrain_recipe(TINY)


def test_devices_below_one_are_refused():
    with pytest.raises(ValueError, match="devices is 0, expected a whole number of at least 1"):
        PretrainConfig(devices=0)


def test_launched_training_that_is_refused_says_why_in_its_own_words(corpus, tmp_path):
    wrong = dataclasses.replace(TINY, seq_len=4000, n_steps=1)
    with pytest.raises(ValueError, match="too few for one row of seq_len=4000"):
        built(corpus, tmp_path, wrong)


def test_launched_training_killed_with_whom_it_told_is_told_whole_by_the_next_build(corpus, tmp_path, trained_here):
    """Both sides die: the process that trains, and before that the one that listens."""
    heard = Heard()

    def killed(order: Path) -> LaunchResult:
        with started(order) as process:
            events = order.parent.parent / ".events.jsonl"
            while process.poll() is None and events.read_bytes().count(b'"loss"') < 8:
                threading.Event().wait(0.05)
            process.kill()
        (order.parent.parent / ".events.delivered").write_text("0")  # as if nothing had been delivered
        heard.steps.clear()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(corpus, tmp_path, launch=killed)
    again = built(corpus, tmp_path, launch=None, observer=heard)
    assert set(heard.steps) == set(range(1, 25))
    assert again.handle.digest == trained_here[0].handle.digest


def test_launched_training_that_ends_without_a_word_says_so(corpus, tmp_path):
    with pytest.raises(RuntimeError, match="ended with code -9, without a message"):
        built(corpus, tmp_path, launch=lambda order: LaunchResult(-9, was_stopped=False))


def test_launched_training_stopped_before_it_began_is_terminated(corpus, tmp_path):
    with pytest.raises(Terminated, match="before there was anything to save"):
        built(corpus, tmp_path, launch=lambda order: LaunchResult(1, was_stopped=True))


def test_failures_of_several_processes_the_reason_comes_before_its_consequences(tmp_path):
    write_failure(tmp_path, 0, RuntimeError("process 0 of 3 ends because another failed"))
    write_failure(tmp_path, 2, OSError(28, "No space left on device"))
    write_failure(tmp_path, 1, ValueError("step 7: loss nan"))
    first, second, third = failures_in(tmp_path)
    assert (type(first), str(first)) == (ValueError, "step 7: loss nan")
    assert isinstance(second, OSError) and second.errno == 28
    assert "RuntimeError: process 0 of 3" in str(third)


def test_parallel_is_handed_on_and_is_no_part_of_the_identity():
    sharded = pretrain_recipe(dataclasses.replace(TINY, devices=2, parallel="fsdp"))
    assert sharded.train.parallel == "fsdp"
    assert literals(sharded) == literals(pretrain_recipe(TINY))
