"""Trainings on conversations: stopped and resumed to the bit, and the same however many rows pass at once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.chat import Rendered
from model.data.conversations import EncodedConversations
from model.evaluate_conversations import mean_conversation_loss
from model.network.registry import describe, load_decoder
from model.training.adapters import ADAPTER
from model.training.curve import read_curve
from model.training.files import WEIGHTS
from model.training.finetune_settings import FinetuneSettings, resolved
from model.training.finetuning import Task, finetune, job_of, load_base
from model.training.loss import language_model_loss

QUICK = {"epochs": 3, "rows": 8, "optimizer": "adamw", "adamw_lr": 0.01, "validate_every": 4, "checkpoint_every": 5}
MODES = {
    "full": {},
    "lora": {"tuning": "lora", "lora_rank": 2, "lora_lr": 0.02},
    "patient": {"patience": 2, "validations_per_epoch": 2},
}


def conversations(n: int, seed: int, vocab_size: int) -> EncodedConversations:
    """Each goes on with the number that it began with."""
    rng = np.random.default_rng(seed)
    rendered = []
    for _ in range(n):
        question = rng.integers(0, vocab_size, rng.integers(2, 13))
        ids = np.array([*question, question[0], question[0]])
        rendered.append(Rendered(ids, np.arange(len(ids)) >= len(question)))
    return EncodedConversations([str(place) for place in range(n)], rendered)


class Crash(Exception):
    """Stands for a kill: nothing is saved after it."""


class Observer:
    def __init__(self, step: int | None = None) -> None:
        self.step = step

    def metrics(self, step, values) -> None:
        if step == self.step and "loss" in values:
            raise Crash

    def checkpoint(self, path, step, values) -> None: ...


def tune(base: Path, out: Path, observer: Observer | None = None, micro_batch: int | None = None, **settings):
    loaded = load_base(base)
    vocab_size = loaded.network.cfg.vocab_size
    held_out, training = (conversations(n, seed, vocab_size) for n, seed in ((16, 1), (40, 0)))
    task = Task(
        network=loaded.network,
        description=describe(loaded.network.cfg),
        training=training,
        loss_function=language_model_loss,
        validate=lambda network: {"validation_loss": mean_conversation_loss(network, held_out)},
        selects=("validation_loss", False),
    )
    cfg = resolved(FinetuneSettings(**{**QUICK, **settings}), loaded.network.cfg.d_model, 40)
    job = job_of(loaded, task, cfg, {"base": "b"})
    if micro_batch is not None:
        job = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, micro_batch=micro_batch))
    return finetune(out, job, observer or Observer())


def files_of(out: Path) -> dict[str, bytes]:
    names = (WEIGHTS, "config.json", f"{ADAPTER}/{WEIGHTS}")
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def values_in(out: Path) -> list[dict[str, float]]:
    return [{name: one for name, one in line.items() if name != "tokens_per_second"} for line in read_curve(out)]


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_training_ends_with_the_bits_of_one_that_was_not(mode, trained, tmp_path):
    whole = tune(trained, tmp_path / "whole", **MODES[mode])
    for step in sorted({2, whole.n_steps // 2, whole.n_steps}):
        with pytest.raises(Crash):
            tune(trained, tmp_path / "stopped", Observer(step), **MODES[mode])
    assert tune(trained, tmp_path / "stopped", **MODES[mode]) == whole
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert values_in(tmp_path / "stopped") == values_in(tmp_path / "whole")


def test_rows_that_pass_at_once_change_the_rounding_alone(trained, tmp_path):
    """A mean of the means of micro-batches would give the tokens of a nearly empty row more weight."""
    for micro_batch in (1, 8):
        tune(trained, tmp_path / str(micro_batch), micro_batch=micro_batch)
    one, other = (dict(load_decoder(tmp_path / str(n)).named_parameters()) for n in (1, 8))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], atol=2e-3, rtol=2e-3)
    losses = [[line["loss"] for line in values_in(tmp_path / str(n)) if "loss" in line] for n in (1, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
