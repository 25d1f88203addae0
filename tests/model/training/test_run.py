"""Kill -9 at any moment, run again: the same bits, the same curve.

The run has a warmup, a stable part, a decay, and passes its data several times. A child process kills itself at an
exact place: in a report after a checkpoint, at the n-th flush to disk (which is inside the writing of a checkpoint),
right after the n-th rename (which is between a checkpoint's rename and its record), or after n milliseconds.
"""

import dataclasses
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard, write_token_shard
from model.evaluate import mean_loss
from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.training.checkpoint import complete_checkpoints, values_of
from model.training.config import TrainConfig
from model.training.curve import read_curve
from model.training.loop import Interrupted
from model.training.loss import language_model_loss
from model.training.run import Job, run
from model.training.selection import Selection
from tests.children import python

DECODER = DecoderConfig(
    vocab_size=31, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=8
)
TRAIN = TrainConfig(
    n_steps=40,
    rows=4,
    seq_len=8,
    micro_batch=2,
    warmup_fraction=0.1,
    checkpoint_every=5,
    validate_every=10,
    n_validation_batches=2,
    n_threads=1,
)


class Stop(Exception):
    """Ends a run from its observer."""


class Notebook:
    """An observer that writes down what is reported, where a kill cannot take it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def metrics(self, step: int, values) -> None:
        with self.path.open("a") as file:
            file.write(f"{step} {','.join(sorted(values))}\n")

    def checkpoint(self, path: Path, step: int, values) -> None:
        assert path.name == f"step-{step:06d}"


def write_tokens(path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 31, n) for n in (100, 1, 60, 240)]
    write_token_shard(path, [f"doc{i}" for i in range(4)], [len(t) for t in texts], texts, vocab_size=31)


def job_on(batches: TokenBatches, cfg: TrainConfig = TRAIN, seed: int = 0, made_from: str = "a") -> Job:
    return Job(
        model=new_decoder(DECODER, seed),
        cfg=cfg,
        description=describe(DECODER),
        batches=batches,
        validate=lambda model: {"validation_loss": mean_loss(model, batches, 2, language_model_loss, 4)},
        selection=Selection(metric="validation_loss"),
        made_from={"tokens": made_from},
    )


def train(directory: Path, cfg: TrainConfig = TRAIN, seed: int = 0, made_from: str = "a") -> None:
    """Train in directory/run on directory/tokens.arrow, and write down in directory/heard what is reported."""
    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    assert TRAIN.n_steps * 4 > 3 * batches.rows_per_epoch  # three wraps
    torch.manual_seed(random.randrange(1 << 30))  # a run owes nothing to the state it finds
    run(directory / "run", job_on(batches, cfg, seed, made_from), Notebook(directory / "heard"))


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.model.training import test_run as killed
where, n = sys.argv[2].split(":")
left = n_of_place = int(n)

def counted(function, before):
    def call(*args, **kwargs):
        global left
        left -= 1
        if before and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

def killed_once_complete(self, step, values):
    # three steps after `n`, and not before the checkpoint of step `n` is written
    write_down(self, step, values)
    while step > n_of_place and not (root / f"step-{n_of_place:06d}" / "complete.json").exists():
        os.sched_yield()
    if step > n_of_place + 2:
        os.kill(os.getpid(), signal.SIGKILL)

root, write_down = Path(sys.argv[1]) / "run" / "checkpoints", killed.Notebook.metrics
if where == "told":
    killed.Notebook.metrics = counted(killed.Notebook.metrics, before=False)
elif where == "complete":
    killed.Notebook.metrics = killed_once_complete
elif where == "moment":
    signal.setitimer(signal.ITIMER_REAL, n_of_place / 1000)  # nobody handles SIGALRM: the process is gone at once
else:
    setattr(os, where, counted(getattr(os, where), before=where == "fsync"))
killed.train(Path(sys.argv[1]))
"""


def kill(directory: Path, where: str) -> None:
    """Train in a child process that is killed at `where`; a place that never comes lets it end."""
    answer = python("-c", CHILD, str(directory), where)
    assert answer.returncode in (-signal.SIGKILL, -signal.SIGALRM, 0), answer.stderr


def result(directory: Path) -> dict[str, object]:
    last = complete_checkpoints(directory / "run" / "checkpoints")[-1]
    curve = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_curve(directory / "run")]
    kept = {p.name: values_of(p) for p in complete_checkpoints(directory / "run" / "checkpoints")}
    return {
        "model": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "curve": curve,
        "kept": kept,
        "entries": sorted(path.name for path in (directory / "run" / "checkpoints").iterdir()),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    write_tokens(directory / "tokens.arrow")
    train(directory)
    return directory


@pytest.fixture
def directory(tmp_path, uninterrupted) -> Path:
    shutil.copy(uninterrupted / "tokens.arrow", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def killed(tmp_path_factory, uninterrupted) -> Path:
    """A run that died after it reported step 18; its last checkpoint is of step 15."""
    directory = tmp_path_factory.mktemp("killed")
    shutil.copy(uninterrupted / "tokens.arrow", directory)
    kill(directory, "complete:15")
    return directory


@pytest.fixture
def directory_killed(tmp_path, killed) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "killed"))


def assert_same(directory: Path, uninterrupted: Path) -> None:
    got, expected = result(directory), result(uninterrupted)
    without_bytes = ("model", "optimizer")
    assert {k: v for k, v in got.items() if k not in without_bytes} == {
        k: v for k, v in expected.items() if k not in without_bytes
    }
    assert got["model"] == expected["model"] and got["optimizer"] == expected["optimizer"]


def test_run_curve_has_every_step_once_and_every_validation(uninterrupted):
    curve = read_curve(uninterrupted / "run")
    assert [line["step"] for line in curve if "loss" in line] == list(range(1, 41))
    assert [line["step"] for line in curve if "validation_loss" in line] == [10, 20, 30, 40]
    rates = [line["learning_rate"] / TRAIN.muon_lr for line in curve if "loss" in line]
    assert rates[3] == rates[15] == 1.0 and rates[0] == 0.25 and rates[39] == pytest.approx(0.05)


def test_run_keeps_the_newest_the_best_and_the_last_before_the_decay(uninterrupted):
    root = uninterrupted / "run" / "checkpoints"
    kept = complete_checkpoints(root)
    validations = {
        line["step"]: line["validation_loss"] for line in read_curve(uninterrupted / "run") if "loss" not in line
    }
    best = min(validations, key=lambda step: validations[step])
    assert {int(path.name[5:]) for path in kept} == {20, 35, 40, best}


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("fsync:14", ".step-000010.partial"),  # inside the writing of the second checkpoint
        ("replace:3", "step-000010"),  # after its rename, before its record
    ],
)
def test_run_killed_in_a_checkpoint_ends_bit_identical(directory, uninterrupted, where, left):
    kill(directory, where)
    root = directory / "run" / "checkpoints"
    assert (root / left / "model.safetensors").exists()
    assert [path.name for path in complete_checkpoints(root)] == ["step-000005"]
    train(directory)
    assert_same(directory, uninterrupted)


def test_run_killed_between_two_checkpoints_ends_bit_identical(directory_killed, uninterrupted):
    """Its observer gets no step at or below the checkpoint again."""
    (directory_killed / "heard").unlink()
    train(directory_killed)
    assert_same(directory_killed, uninterrupted)
    steps = [int(line.split()[0]) for line in (directory_killed / "heard").read_text().splitlines()]
    assert min(steps) == 16 and steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 21 starts of Python and torch
def test_run_killed_twenty_times_at_random_places_and_moments_ends_bit_identical(directory, uninterrupted):
    draw = random.Random(1)
    for _ in range(20):
        places = (f"told:{draw.randint(1, 4)}", f"fsync:{draw.randint(1, 14)}", f"replace:{draw.randint(1, 4)}")
        kill(directory, draw.choice([*places, *[f"moment:{draw.randint(1, 300)}"] * 3]))
    steps = [int(line.split()[0]) for line in (directory / "heard").read_text().splitlines()]
    assert len(complete_checkpoints(directory / "run" / "checkpoints")) > 0 and max(steps) < 40  # kills did hit
    train(directory)
    assert_same(directory, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("where", [*(f"fsync:{n}" for n in range(10, 24)), *(f"replace:{n}" for n in range(1, 9))])
def test_run_killed_at_every_place_of_two_checkpoints_ends_bit_identical(directory, uninterrupted, where):
    kill(directory, where)
    train(directory)
    assert_same(directory, uninterrupted)


def test_run_told_to_stop_saves_that_step_and_goes_on_from_it(directory, uninterrupted):
    class Stopping(Notebook):
        def metrics(self, step, values):
            super().metrics(step, values)
            if step == 17:
                os.kill(os.getpid(), signal.SIGTERM)

    heard = directory / "heard"
    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    with pytest.raises(Interrupted, match="step-000018"):
        run(directory / "run", job_on(batches), Stopping(heard))
    assert complete_checkpoints(directory / "run" / "checkpoints")[-1].name == "step-000018"
    train(directory)
    steps = [line.split()[0] for line in heard.read_text().splitlines() if "gradient_norm" in line]
    assert steps == [str(step) for step in range(1, 41)]
    got, expected = result(directory), result(uninterrupted)
    assert got["model"] == expected["model"] and got["curve"] == expected["curve"]


def test_run_that_is_done_trains_and_tells_nothing(tmp_path, uninterrupted):
    directory = Path(shutil.copytree(uninterrupted, tmp_path / "done"))
    before = result(directory)
    (directory / "heard").unlink()
    train(directory)
    assert (directory / "heard").read_text() == ""
    assert result(directory) == before


def test_run_on_other_data_is_refused(directory_killed):
    with pytest.raises(ValueError, match="the data is"):
        train(directory_killed, made_from="b")


def test_run_with_another_config_is_refused_by_field(directory_killed):
    with pytest.raises(ValueError, match=r"adamw_lr=0\.008, now it is 0\.5"):
        train(directory_killed, dataclasses.replace(TRAIN, adamw_lr=0.5))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_run_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before(directory_killed, uninterrupted, caplog):
    """A training whose last checkpoint was damaged stopped until a person deleted it (allenai/allennlp#2129).

    Damages of every file: test_checkpoint.py.
    """
    root, name = directory_killed / "run" / "checkpoints", "optimizer.safetensors"
    flip(root / "step-000015" / name)
    train(directory_killed)
    assert result(directory_killed) == result(uninterrupted)
    assert (directory_killed / "run" / ".damaged" / "step-000015" / name).exists()
    assert "step-000015" in caplog.text and str(root / "step-000010") in caplog.text


def test_run_whose_checkpoints_are_all_damaged_starts_again_and_says_so(directory_killed, uninterrupted, caplog):
    for folder in (directory_killed / "run" / "checkpoints").iterdir():
        (folder / "model.safetensors").unlink()
    train(directory_killed)
    assert result(directory_killed) == result(uninterrupted)
    assert "the training starts again from its beginning" in caplog.text


def test_run_whose_curve_is_damaged_keeps_what_is_whole_and_trains_on(directory_killed, uninterrupted, caplog):
    """A torn curve.jsonl, which is only drawn, stopped the training for good. More damages: test_curve.py."""
    curve = directory_killed / "run" / "curve.jsonl"
    curve.write_text(curve.read_text()[:200])
    train(directory_killed)
    ours, theirs = result(directory_killed), result(uninterrupted)
    lines, expected = (ours.pop("curve"), theirs.pop("curve"))
    assert ours == theirs
    assert lines == expected[:1] + expected[-28:]  # 25 steps, 3 validations
    assert "of 15 steps 1 are still there" in caplog.text


def test_run_whose_curve_is_torn_beyond_the_checkpoint_makes_it_again(directory_killed, uninterrupted, caplog):
    with (directory_killed / "run" / "curve.jsonl").open("ab") as curve:
        curve.write(b'{"step": 19, "lo')
    train(directory_killed)
    assert result(directory_killed) == result(uninterrupted) and not caplog.text


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (2, 2)])
def test_run_keeps_the_thread_count_of_its_beginning_unless_another_is_given(directory_killed, given, expected):
    """One that was given at a resume was ignored without a word."""

    class Stopping(Notebook):
        def metrics(self, step, values):
            raise Stop(torch.get_num_threads() * len(computing))

    computing = set()  # threads, each with a replica; operations may use several

    def loss(model, batch):
        computing.add(threading.get_ident())
        return language_model_loss(model, batch)

    batches = TokenBatches([read_token_shard(directory_killed / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    job = dataclasses.replace(job_on(batches, dataclasses.replace(TRAIN, n_threads=given)), loss_function=loss)
    torch.set_num_threads(3 - expected)  # what a run that knew of neither would take
    with pytest.raises(Stop) as stopped:
        run(directory_killed / "run", job, Stopping(directory_killed / "heard"))
    torch.set_num_threads(1)
    assert stopped.value.args == (expected,)


def test_run_leaves_the_generator_of_its_caller_alone(directory):
    """It left it seeded as the training was, and a new model left it where its modules had drawn from it."""
    before = torch.get_rng_state()
    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    job = job_on(batches, dataclasses.replace(TRAIN, n_steps=2))
    run(directory / "run", job, Notebook(directory / "heard"))
    assert torch.equal(torch.get_rng_state(), before)


def test_run_trains_on_while_a_checkpoint_is_written(directory, uninterrupted, monkeypatch):
    """The disk answers only once step 8 was reported; a run that waited for its checkpoint never got there."""
    reported, main, fsync = threading.Event(), threading.main_thread(), os.fsync
    complete = directory / "run" / "checkpoints" / "step-000005" / "complete.json"

    def slow(descriptor: int) -> None:
        assert threading.current_thread() is main or reported.wait(60)
        fsync(descriptor)

    class Watching(Notebook):
        def metrics(self, step, values):
            super().metrics(step, values)
            if step == 8:
                assert not complete.exists()
                reported.set()

    monkeypatch.setattr(os, "fsync", slow)
    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    run(directory / "run", job_on(batches), Watching(directory / "heard"))
    assert_same(directory, uninterrupted)


def test_run_whose_checkpoint_cannot_be_written_stops_with_the_reason_and_resumes(directory, uninterrupted):
    root = directory / "run" / "checkpoints"
    obstacle = root / ".step-000010.partial"

    class Spoiling(Notebook):
        def metrics(self, step, values):
            super().metrics(step, values)
            if step == 10:
                obstacle.touch()  # a file where a folder is to be made

    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    with pytest.raises(NotADirectoryError, match=r"step-000010\.partial"):
        run(directory / "run", job_on(batches), Spoiling(directory / "heard"))
    steps = [int(line.split()[0]) for line in (directory / "heard").read_text().splitlines()]
    assert 10 <= max(steps) <= 15  # the next checkpoint waits for this one
    assert [path.name for path in complete_checkpoints(root)] == ["step-000005"]
    obstacle.unlink()
    train(directory)
    assert_same(directory, uninterrupted)
