"""What a run chooses once and keeps, and what it does when memory runs out or a step is a spike."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.training.checkpoint import complete_checkpoints
from model.training.compilation import chosen_compile
from model.training.config import TrainConfig
from model.training.curve import read_curve
from model.training.loop import fit
from model.training.loss import language_model_loss
from model.training.memory import OutOfMemory
from model.training.run import Job, run
from model.training.step import TrainState, new_state, train_step

DECODER = DecoderConfig(
    vocab_size=31, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=8
)
TRAIN = TrainConfig(
    n_steps=60, rows=4, seq_len=8, muon_lr=0.001, adamw_lr=0.001, checkpoint_every=10, validate_every=60, n_threads=1
)
SPIKE_STEP = 38  # there is a history to stand out from


class Repeating:
    """Much the same batch always."""

    def n_rows(self, k: int) -> int:
        return 4

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(k)
        ids_BT = (torch.arange(9) + torch.randint(0, 20, (4, 1), generator=generator)) % 20
        targets_BT = ids_BT[:, 1:].clone()
        return {"ids_BT": ids_BT[:, :-1], "targets_BT": targets_BT}

    def documents_of_batch(self, k: int) -> list[str]:
        return [f"document-{k}"]


class Silent:
    def metrics(self, step, values) -> None: ...
    def checkpoint(self, path, step, values) -> None: ...


def train(directory: Path, cfg: TrainConfig = TRAIN, *, batches=None, loss_function=language_model_loss) -> Path:
    """Train in `directory` and return the last checkpoint."""
    model = new_decoder(DECODER, 0)
    job = Job(
        model=model,
        cfg=cfg,
        description=describe(DECODER),
        batches=batches or Repeating(),
        loss_function=loss_function,
    )
    run(directory, job, Silent())
    return complete_checkpoints(directory / "checkpoints")[-1]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def notes(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())["notes"]


def stopping_at(step: int, error: Exception, loss=language_model_loss):
    """A loss function that fails in the given step of the run."""
    calls = iter(range(1, 10**6))

    def loss_function(model, batch):
        if next(calls) == step:
            raise error
        return loss(model, batch)

    return loss_function


def test_run_chooses_a_micro_batch_and_a_resume_uses_it(tmp_path):
    short = dataclasses.replace(TRAIN, n_steps=20)
    with pytest.raises(KeyError):
        train(tmp_path, short, loss_function=stopping_at(15, KeyError()))
    folder = complete_checkpoints(tmp_path / "checkpoints")[-1]
    assert notes(folder)["micro_batch"] == 4  # all rows of so small a model fit
    state = json.loads((folder / "state.json").read_text())
    state["notes"]["micro_batch"] = 2  # as if this had been chosen on a smaller machine
    (folder / "state.json").write_text(json.dumps(state))
    relist(folder)
    rows = []

    def watching(model, batch):
        rows.append(batch["ids_BT"].size(0))
        return language_model_loss(model, batch)

    assert notes(train(tmp_path, short, loss_function=watching))["micro_batch"] == 2
    assert set(rows) == {2} and len(rows) == 2 * 10


def relist(folder: Path) -> None:
    """Write down the files of a checkpoint that the test has changed."""
    from model.training.files import COMPLETE, sha256

    complete = json.loads((folder / COMPLETE).read_text())
    for name in complete["files"]:
        path = folder / name
        complete["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / COMPLETE).write_text(json.dumps(complete))


def test_run_out_of_memory_says_what_to_change_and_goes_on_with_it(tmp_path):
    short = dataclasses.replace(TRAIN, n_steps=20)
    calls = iter(range(1, 10**6))

    def greedy(model, batch):
        if next(calls) == 13:
            torch.empty(1 << 50)
        return language_model_loss(model, batch)

    with pytest.raises(OutOfMemory, match=r"micro_batch=2 \(now 4.*goes on from .*step-000010"):
        train(tmp_path, short, loss_function=greedy)
    folder = train(tmp_path, dataclasses.replace(short, micro_batch=2, activation_checkpointing=True))
    assert folder.name == "step-000020" and notes(folder)["micro_batch"] == 2
    assert [line["step"] for line in read_curve(tmp_path)] == list(range(1, 21))


def test_activation_checkpointing_changes_no_bit_of_a_training(tmp_path):
    short = dataclasses.replace(TRAIN, n_steps=5)
    plain = train(tmp_path / "plain", short)
    again = train(tmp_path / "again", dataclasses.replace(short, activation_checkpointing=True))
    assert weights(plain) == weights(again)


class Steep(Repeating):
    """One step whose loss and gradient, or gradient alone, are many times as large."""

    def __init__(self, spike_step: int) -> None:
        self.spike_step = spike_step

    def batch(self, k: int, *ranks) -> dict[str, torch.Tensor]:
        scale = 20.0 if k + 1 == self.spike_step else 1.0
        return super().batch(k) | {"scale_B": torch.full((4,), scale)}


def scaled_loss(model, batch):
    loss, n = language_model_loss(model, batch)
    return loss * batch["scale_B"].max(), n


def scaled_gradient_loss(model, batch):
    loss, n = language_model_loss(model, batch)
    return loss + batch["scale_B"].max() * (loss - loss.detach()), n


AT_REST = [(3.4 + 0.01 * (i % 7), 3.0 + 0.5 * (i % 5)) for i in range(40)]  # where a new decoder's steps are normal


def fitted(cfg: TrainConfig, loss_function=scaled_loss) -> tuple[TrainState, dict[int, dict]]:
    """The state and the reported values after three steps that follow AT_REST; the second is a spike."""
    state, seen = new_state(new_decoder(DECODER, 0), cfg), {}
    state.history = list(AT_REST)
    snapshots = []

    def report(step, values):
        seen[step] = dict(values)
        snapshots.append([weight.detach().clone() for weight in state.model.parameters()])
        seen[step]["weights"] = snapshots[-1]

    cfg = dataclasses.replace(cfg, n_steps=3)
    fit(state, Steep(2), cfg, loss_function=loss_function, report=report, save=lambda: Path("saved"))
    return state, seen


def test_spike_is_reported_with_its_step_and_documents(caplog):
    _, seen = fitted(TRAIN)
    assert [step for step, values in seen.items() if "spike" in values] == [2]
    assert seen[2]["spike"] > 4 and seen[2]["skipped"] == 0
    assert "step 2: spike" in caplog.text and "document-1" in caplog.text


def test_spike_is_logged_by_rank_0_alone(caplog, monkeypatch):
    """Every process logged the same warning."""
    monkeypatch.setenv("RANK", "1")
    _, seen = fitted(TRAIN)
    assert "spike" in seen[2] and not caplog.records


def test_spike_of_the_gradient_alone_is_not_reported():
    """Small batches have them every few hundred steps; clipping takes care of them."""
    _, seen = fitted(TRAIN, scaled_gradient_loss)
    assert seen[2]["gradient_norm"] > 5 * seen[3]["gradient_norm"]
    assert not [step for step, values in seen.items() if "spike" in values]


@pytest.mark.parametrize("loss_function", [scaled_loss, scaled_gradient_loss])
def test_skip_spikes_leaves_the_update_out(loss_function):
    state, seen = fitted(dataclasses.replace(TRAIN, skip_spikes=6.0), loss_function)
    assert [values.get("skipped") for values in seen.values()] == [None, 1, None]
    first, second, third = (values["weights"] for values in seen.values())
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(second, third, strict=True))
    assert len(state.history) == 43


def test_skipped_spike_after_a_resume_is_the_same_to_the_bit(tmp_path):
    """It is compared with steps before the checkpoint, whose history a resume restores."""
    cfg = dataclasses.replace(TRAIN, n_steps=40, checkpoint_every=20, skip_spikes=6.0)
    whole = train(tmp_path / "whole", cfg, batches=Steep(SPIKE_STEP), loss_function=scaled_loss)
    stopped = stopping_at(SPIKE_STEP - 2, KeyError(), scaled_loss)
    with pytest.raises(KeyError):
        train(tmp_path / "killed", cfg, batches=Steep(SPIKE_STEP), loss_function=stopped)
    resumed = train(tmp_path / "killed", cfg, batches=Steep(SPIKE_STEP), loss_function=scaled_loss)
    assert weights(whole) == weights(resumed)
    assert [line["skipped"] for line in read_curve(tmp_path / "killed") if "spike" in line] == [1]


class Unsupervised(Repeating):
    """The first 12 batches have no target."""

    def batch(self, k: int, *ranks) -> dict[str, torch.Tensor]:
        batch = super().batch(k)
        return batch if k >= 12 else batch | {"targets_BT": torch.full((4, 8), -1)}


def test_run_that_begins_without_targets_resumes_to_the_bit_from_before_its_first_update(tmp_path):
    cfg = dataclasses.replace(TRAIN, n_steps=20)
    whole = train(tmp_path / "whole", cfg, batches=Unsupervised())
    with pytest.raises(KeyError):
        train(tmp_path / "killed", cfg, batches=Unsupervised(), loss_function=stopping_at(15, KeyError()))
    assert weights(train(tmp_path / "killed", cfg, batches=Unsupervised())) == weights(whole)
    curve = read_curve(tmp_path / "killed")
    assert [line["step"] for line in curve if "skipped_empty" in line] == list(range(1, 13))
    assert [line["step"] for line in curve if "loss" in line] == list(range(13, 21))


def test_batch_warmup_trains_on_fewer_rows_at_first(tmp_path):
    import numpy as np

    from model.data.batches import token_batches
    from model.data.token_shards import read_token_shard, write_token_shard

    path = tmp_path / "tokens.arrow"
    write_token_shard(path, ["a"], [400], [np.arange(400) % 31], vocab_size=31)
    cfg = dataclasses.replace(TRAIN, n_steps=12, batch_warmup_fraction=0.5, micro_batch=2)
    batches = token_batches([read_token_shard(path)], cfg)
    assert [batches.batch(k)["ids_BT"].size(0) for k in range(12)] == [1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 4, 4]
    train(tmp_path / "run", cfg, batches=batches)
    assert len(read_curve(tmp_path / "run")) == 12


def test_compile_that_is_not_wished_for_stays_off_on_a_cpu():
    assert chosen_compile(None, "cpu") is False and chosen_compile(False, "cpu") is False


COMPILERLESS = """
from model.training.compilation import chosen_compile
try:
    chosen_compile(True, "cpu")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_compile_without_a_compiler_says_what_is_missing(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", COMPILERLESS],
        env={"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "compile=True, but torch.compile does not work on cpu here" in answer.stdout
    assert "g++" in answer.stdout and "compile=False" in answer.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_compiled_training_is_near_the_eager_one_and_resumes_to_the_bit(tmp_path):
    short = dataclasses.replace(TRAIN, n_steps=20, compile=True)
    whole = train(tmp_path / "whole", short)
    assert notes(whole)["compile"] is True
    with pytest.raises(KeyError):
        train(tmp_path / "killed", short, loss_function=stopping_at(15, KeyError()))
    assert weights(train(tmp_path / "killed", dataclasses.replace(short, compile=None))) == weights(whole)
    eager = train(tmp_path / "eager", dataclasses.replace(short, compile=False))
    losses = [[line["loss"] for line in read_curve(tmp_path / name)] for name in ("whole", "eager")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and weights(eager) != weights(whole)


def test_train_step_with_activation_checkpointing_runs_layers_twice():
    model = new_decoder(DECODER, 0)
    calls = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for is_on, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.trunk.recompute_layers(is_on)
        train_step(new_state(model, TRAIN), Repeating().batch(0), TRAIN)
        assert len(calls) == expected


@pytest.mark.parametrize("recomputes", [False, True])
def test_gradient_under_autocast_is_that_of_float32_but_for_roundings(recomputes):
    """What a GPU does, on a CPU: products in bfloat16, everything else in float32."""
    gradients = []
    for is_half in (False, True):
        model = new_decoder(dataclasses.replace(DECODER, d_model=64, d_head=32), 0)
        model.trunk.recompute_layers(recomputes)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.empty(weight.shape).normal_(std=0.05, generator=generator))
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss, _ = language_model_loss(model, Repeating().batch(0))
        loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    wide, half = gradients
    assert half.dtype == torch.float32
    assert 0 < (half - wide).norm() < 0.03 * wide.norm()
