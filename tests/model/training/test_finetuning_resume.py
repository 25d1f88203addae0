"""Fine-tunings of every kind that are stopped and run again, and those that validations end early: to the bit."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from model.data.labelled import LabelledTexts
from model.data.tokenizer import TOKENIZER
from model.network.registry import load_classifier, load_model
from model.training.checkpoint import complete_checkpoints, values_of
from model.training.curve import read_curve
from model.training.files import WEIGHTS, read_json, read_tensors
from model.training.finetune_settings import FinetuneSettings
from model.training.finetuning import Finetuned, Finetuning, finetune_classifier
from model.training.loop import Interrupted
from model.training.reports import Diverged

QUICK = {"epochs": 6, "rows": 8, "adamw_lr": 0.02, "validate_every": 5, "checkpoint_every": 7}
PATIENT = {"patience": 2, "validations_per_epoch": 3}
NOISY = {"augment_typos": 0.2, "augment_word_dropout": 0.2, "augment_case": 0.2}
LORA = {"tuning": "lora", "lora_rank": 2, "lora_lr": 0.02}
HEAD = {"tuning": "head", "head_lr": 0.05}
MODES = {
    "full": {"layer_decay": 0.7, **NOISY},
    "full, patient": PATIENT,
    "adamw, best": {"optimizer": "adamw", "keep": "best", "validations_per_epoch": 2},
    "lora": {**LORA, **PATIENT, **NOISY},
    "head": {**HEAD, **PATIENT, **NOISY},
}


def texts(n: int, seed: int) -> LabelledTexts:
    """Most first letters tell the label."""
    rng = random.Random(seed)
    words = [" ".join("".join(rng.choices("kmo", k=3)) for _ in range(rng.randint(1, 3))) for _ in range(n)]
    rows = [f"{'ab'[(i + (rng.random() < 0.15)) % 2]}{word}" for i, word in enumerate(words)]
    ids = tuple(map(str, range(n)))
    return LabelledTexts("rows", ids, tuple(rows), tuple(["good", "bad"][i % 2] for i in range(n)))


def plan(base: Path, out: Path, **settings) -> Finetuning:
    cfg = FinetuneSettings(**{**QUICK, **settings})
    return Finetuning(base=base, out=out, training=texts(64, 0), validation=texts(40, 1), cfg=cfg)


class Crash(Exception):
    """Stands for a kill: nothing is saved after it."""


class Observer:
    """Notes what it is told, and crashes at the first value of a step that has the name `of`."""

    def __init__(self, step: int | None = None, of: str = "loss") -> None:
        self.step, self.of = step, of
        self.steps: list[int] = []
        self.validated: dict[int, float] = {}

    def metrics(self, step, values) -> None:
        if step == self.step and self.of in values:
            raise Crash
        if "loss" in values:
            self.steps.append(step)
        else:
            self.validated[step] = values["validation_macro_f1"]

    def checkpoint(self, path, step, values) -> None: ...


class Terminator(Observer):
    """Sends SIGTERM to its own process when a step is done, so that the next one is the last."""

    def metrics(self, step, values) -> None:
        if step == self.step and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)


def files_of(out: Path) -> dict[str, bytes]:
    names = (WEIGHTS, "config.json", "adapter/model.safetensors")
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def values_in(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_curve(out)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_a_stopped_training_ends_with_the_bits_of_one_that_was_not(family, mode, trained, trained_encoder, tmp_path):
    base = trained_encoder if family == "encoder" else trained
    whole = finetune_classifier(plan(base, tmp_path / "whole", **MODES[mode]), Observer())
    ending, out = whole.ending, tmp_path / "stopped"
    crashes = {
        (3, "loss"),
        (ending.n_steps // 2, "loss"),
        (ending.n_steps, "loss"),
        (ending.n_steps, "validation_loss"),
    }
    if ending.best is not None:
        crashes.add((ending.best[0], "validation_loss"))
    for step, of in sorted(crashes):
        with pytest.raises(Crash):
            finetune_classifier(plan(base, out, **MODES[mode]), Observer(step, of))
    resumed = finetune_classifier(plan(base, out, **MODES[mode]), Observer())
    assert resumed == whole
    assert files_of(out) == files_of(tmp_path / "whole")
    assert values_in(out) == values_in(tmp_path / "whole")
    assert finetune_classifier(plan(base, out, **MODES[mode]), Observer()) == whole  # and once more, for nothing
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.fixture(scope="module")
def patient(trained, tmp_path_factory) -> tuple[Path, Finetuned, Observer]:
    out, observer = tmp_path_factory.mktemp("patient") / "model", Observer()
    return out, finetune_classifier(plan(trained, out, epochs=30, **PATIENT), observer), observer


def test_patience_ends_a_training_early_with_the_weights_of_its_best_validation(patient, trained, tmp_path):
    out, finetuned, observer = patient
    ending, validated = finetuned.ending, observer.validated
    assert ending.n_steps < 30 * 8 and observer.steps == list(range(1, ending.n_steps + 1))
    assert list(validated) == [*range(2, ending.n_steps + 1, 2)]  # three in the eight steps of an epoch, and more
    best_step, best_value = ending.best
    assert best_value == max(validated.values()) == finetuned.values["validation_macro_f1"]
    assert best_step == min(step for step, value in validated.items() if value == best_value)
    assert ending.n_steps == best_step + 2 * 2  # two validations after it
    # the weights are those of a training that had only these steps, with the schedule of all that were planned
    folder = next(
        path for path in complete_checkpoints(out / "checkpoints") if path.name.endswith(f"{best_step:06d}")
    )
    saved = read_tensors(folder / WEIGHTS)
    assert values_of(folder)["validation_macro_f1"] == best_value
    kept = dict(load_classifier(out)[0].named_parameters())
    assert all(torch.equal(saved[name], weight) for name, weight in kept.items())
    newest = read_tensors(complete_checkpoints(out / "checkpoints")[-1] / WEIGHTS)
    assert not all(torch.equal(newest[name], weight) for name, weight in kept.items())


def test_patience_and_sigterm_at_a_validation_end_with_the_same_bits(patient, trained, tmp_path):
    """The step is saved and not yet validated when the signal comes: that of the best, and the one that ends it."""
    settings = {"epochs": 30, **PATIENT}
    for step in (patient[1].ending.best[0], patient[1].ending.n_steps):
        with pytest.raises(Interrupted, match=f"stopped after step {step} by a signal"):
            finetune_classifier(plan(trained, tmp_path, **settings), Terminator(step - 1))
    assert finetune_classifier(plan(trained, tmp_path, **settings), Observer()) == patient[1]
    assert files_of(tmp_path) == files_of(patient[0]) and values_in(tmp_path) == values_in(patient[0])


def test_the_schedule_is_that_of_the_planned_steps(patient, trained, tmp_path):
    out, finetuned, _ = patient
    finetune_classifier(plan(trained, tmp_path / "all", epochs=30), Observer())
    rates = [[line["learning_rate"] for line in read_curve(one) if "loss" in line] for one in (out, tmp_path / "all")]
    assert rates[0] == rates[1][: finetuned.ending.n_steps]


def test_the_best_checkpoint_survives_all_later_ones_and_no_other_does(patient):
    out, finetuned, _ = patient
    names = [path.name for path in complete_checkpoints(out / "checkpoints")]
    assert names == [f"step-{step:06d}" for step in (finetuned.ending.best[0], finetuned.ending.n_steps)]


def test_a_damaged_best_checkpoint_is_an_error_that_says_what_to_do(patient, trained, tmp_path):
    out = shutil.copytree(patient[0], tmp_path / "model")
    weights = complete_checkpoints(out / "checkpoints")[0] / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"it is the best checkpoint, .*: delete .*checkpoints to train again"):
        finetune_classifier(plan(trained, out, epochs=30, **PATIENT), Observer())
    shutil.rmtree(out / "checkpoints")
    (out / WEIGHTS).unlink(), (out / "config.json").unlink()
    finetune_classifier(plan(trained, out, epochs=30, **PATIENT), Observer())
    assert files_of(out) == files_of(patient[0])


def test_other_settings_of_selection_and_augmentation_are_another_training(patient, trained, tmp_path):
    out = shutil.copytree(patient[0], tmp_path / "model")
    for other in ({"patience": 3}, {"validations_per_epoch": 2}, {"augment_typos": 0.1}):
        with pytest.raises(ValueError, match="train in another folder"):
            finetune_classifier(plan(trained, out, epochs=30, **{**PATIENT, **other}), Observer())


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_head_alone_learns_and_leaves_the_trunk_as_it_was(family, trained, trained_encoder, tmp_path):
    base = trained_encoder if family == "encoder" else trained
    settings = {**HEAD, "epochs": 30, "checkpoint_every": 100}
    finetuned = finetune_classifier(plan(base, tmp_path, **settings), Observer())
    losses = [line["loss"] for line in read_curve(tmp_path) if "loss" in line]
    assert sum(losses[-8:]) < sum(losses[:8]) and finetuned.ending.best is None
    model = load_classifier(tmp_path)[0]
    for name, weight in load_model(base)[0].trunk.named_parameters():
        assert torch.equal(model.trunk.get_parameter(name), weight)
    folder = complete_checkpoints(tmp_path / "checkpoints")[-1]
    heads = {"score.weight"} | (
        {"score.bias", "head.dense.weight", "head.dense.bias"} & set(dict(model.named_parameters()))
    )
    assert heads <= set(read_tensors(folder / WEIGHTS)) < set(dict(model.named_parameters()))
    state = read_tensors(folder / "optimizer.safetensors")
    assert {name.split(".", 2)[2].split(".")[0] for name in state if name.startswith("adamw.")} <= {"score", "head"}
    assert "head" not in read_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match="holds a head and not the base that it belongs to"):
        load_model(folder)
    shutil.copytree(base / TOKENIZER, folder / TOKENIZER)


def test_head_alone_is_not_resumed_as_a_whole_model(trained, tmp_path):
    with pytest.raises(Crash):
        finetune_classifier(plan(trained, tmp_path, **HEAD), Observer(20))
    with pytest.raises(ValueError, match=r"has a head on a base with the sha256 .*, this training has a whole model"):
        finetune_classifier(plan(trained, tmp_path), Observer())


def test_augmented_examples_that_diverge_are_named_as_today(trained, tmp_path, monkeypatch):
    """The ids of a batch, whose texts are those of its epoch."""
    import model.training.finetuning as module

    def loss(network, batch, label_smoothing):
        logits_BC = network(batch["ids_BT"], batch["lengths_B"])
        return logits_BC.sum() * float("inf"), batch["labels_B"].new_tensor(8)

    monkeypatch.setattr(module, "classification_loss", loss)
    with pytest.raises(
        Diverged, match=r"not finite. Its batch holds 8 documents: \d+, \d+, .*Lower the learning rates"
    ):
        finetune_classifier(plan(trained, tmp_path, **NOISY), Observer())
