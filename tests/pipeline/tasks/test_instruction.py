"""Instruction tuning from files to answers: what is read, what is dropped, what is learned, and what is reported."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig
from pipeline.corpus.examples.data_files import LabelledFile
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
def base(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    folder, cfg = tmp_path_factory.mktemp("base"), DecoderConfig(vocab_size=257, **SHAPE)
    decoder = new_decoder(cfg, seed=0)
    torch.nn.init.normal_(decoder.lm_head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
    save_model(folder, decoder, describe(cfg))
    return Checkpoint(stage="base", directory=folder, fingerprint="b", digest="b", rows=0)


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
