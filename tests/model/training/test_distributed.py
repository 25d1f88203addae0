"""Two processes train what one does: gradients, weights, curve, checkpoints; and they end together.

Two children run two_processes.py with a list of actions (gloo, on the CPU); what they leave on disk is compared here.
test_launch.py starts torchrun itself.

The tolerances: sums of float32 in another order differ by about 1e-7 of their size. Where a gradient is smaller than
the noise of its sum, Muon and AdamW, which divide by its size, make whole updates of noise: a model whose heads begin
at zero, at the rates of a preset, loses a decimal place every few steps. So these runs begin at random weights and
move slowly, and differ by about 1e-6 at the end; the bounds are 1e-5.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.data.token_shards import write_token_shard
from model.network.size import n_parameters
from model.training.checkpoint import complete_checkpoints
from model.training.curve import read_curve
from model.training.distributed import check_all_shares, check_shares
from model.training.loss import language_model_loss
from tests.children import python
from tests.model.training.two_processes import (
    CUTS,
    DECODER,
    LARGE,
    TRAIN,
    UNTIED,
    beginning,
    masked_batch,
    step_values,
    train,
)

CHILD = str(Path(__file__).with_name("two_processes.py"))
LAUNCHES = itertools.count()


def both(directory: Path, *actions: str, child: str = CHILD) -> list[subprocess.CompletedProcess]:
    """Run the actions of `child`, each `function:folder:arguments`, in two processes. Returns how each ended."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "STORE": str(directory / f".store-{next(LAUNCHES)}")}

    def process(number: int) -> subprocess.CompletedProcess:
        env = os.environ | shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
        return python(child, str(directory), *actions, env=env)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, (0, 1)))


def ended_well(answers: list[subprocess.CompletedProcess]) -> None:
    assert [answer.returncode for answer in answers] == [0, 0], "".join(answer.stderr for answer in answers)


def write_tokens(directory: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 31, n) for n in (100, 1, 60, 240)]
    names, sizes = [f"doc{i}" for i in range(4)], [len(text) for text in texts]
    write_token_shard(directory / "tokens.arrow", names, sizes, texts, vocab_size=31)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One folder per run: `one` process, two in `ddp` and `fsdp`; `mixed` goes from one to two and back to one.

    `mixed`: one process to step 20, DDP until a signal at 25, FSDP to step 30, one process to the end.
    """
    directory = tmp_path_factory.mktemp("runs")
    write_tokens(directory)
    train(directory / "one", "ddp")
    keep_checkpoints(directory / "one", directory / "mixed", 20)
    answers = both(
        directory,
        "train:ddp:ddp",
        "train:fsdp:fsdp",
        "interrupted:mixed:ddp",
        "train:mixed:fsdp",
        "gradients:gradients-ddp:ddp",
        "gradients:gradients-fsdp:fsdp",
        "diverged:diverged",
        "initial:initial",
        "narrow:narrow",
        "groups:groups:12",
        "snapshots:snapshots-ddp:ddp",
        "snapshots:snapshots-fsdp:fsdp",
        "failing:failing",
    )
    assert (directory / "groups" / "ended-0").exists(), "".join(answer.stderr for answer in answers)
    for number, answer in enumerate(answers):
        (directory / "failing" / f"answer-{number}").write_text(f"{answer.returncode}\n{answer.stderr}")
    shutil.copytree(directory / "mixed", directory / "back")
    keep_checkpoints(directory / "mixed", directory / "back", 30)
    train(directory / "back", "ddp")
    return directory


def keep_checkpoints(source: Path, target: Path, last: int) -> None:
    """A copy of a run as it was after checkpoint `last`."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for folder in complete_checkpoints(target / "checkpoints"):
        if folder.name > f"step-{last:06d}":
            shutil.rmtree(folder)


def final(directory: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Without random generators, of which every process has its own."""
    tensors = load_file(directory / "checkpoints" / "step-000040" / name)
    return {key: tensor for key, tensor in tensors.items() if not key.startswith("rng.")}


def assert_same_training(got: Path, expected: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = final(got, name), final(expected, name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], atol=1e-5, rtol=0, msg=lambda m, k=key: f"{k}: {m}")
    ours, theirs = read_curve(got), read_curve(expected)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        for key in line.keys() - {"tokens_per_second"}:
            assert line[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), (line["step"], key)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_snapshot_of_two_processes_is_a_copy_that_the_next_step_leaves_alone(runs, parallel):
    """Under FSDP AdamW's step counters were the optimiser's own, and a thread wrote them while training went on."""
    assert (runs / f"snapshots-{parallel}" / "changed-0").read_text() == ""


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_end_with_the_weights_optimiser_and_curve_of_one(runs, name):
    assert_same_training(runs / name, runs / "one")


def test_checkpoint_of_two_processes_holds_the_generator_of_each(runs):
    """Only the first one's was kept, and both drew the same numbers."""
    tensors = load_file(runs / "ddp" / "checkpoints" / "step-000040" / "optimizer.safetensors")
    assert not torch.equal(tensors["rng.cpu"], tensors["rng.cpu.1"])


@pytest.mark.parametrize("name", ["mixed", "back"])
def test_run_from_one_process_to_ddp_to_fsdp_and_back_is_the_run_of_one(runs, name):
    assert_same_training(runs / name, runs / "one")
    state = json.loads((runs / name / "checkpoints" / "step-000040" / "state.json").read_text())
    assert state["notes"]["n_processes"] == {"mixed": 2, "back": 1}[name]


def test_first_losses_after_a_change_of_processes_differ_by_rounding_alone(runs):
    """Other documents, or a moment lost on the way, would differ by far more."""
    for name, step in (("mixed", 21), ("mixed", 26), ("back", 31)):
        ours, theirs = (read_curve(runs / r) for r in (name, "one"))
        losses = [next(line["loss"] for line in c if line["step"] == step and "loss" in line) for c in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_every_process_ends_with_the_whole_weights_that_the_checkpoint_holds(runs, name):
    for path in (runs / name / "final-0", runs / name / "final-1", runs / name / "model.safetensors"):
        weights = load_file(path)
        assert weights.keys() == final(runs / name).keys()
        assert all(torch.equal(weight, weights[key]) for key, weight in final(runs / name).items())


def test_only_the_first_process_tells_and_every_step_once(runs):
    for name in ("ddp", "fsdp", "mixed"):
        heard = [line.split() for line in (runs / name / "heard").read_text().splitlines()]
        steps = [int(step) for _, step, values in heard if "gradient_norm" in values]
        assert {number for number, *_ in heard} == {"0"}
        assert steps == list(range(1, 41)) if name != "mixed" else sorted(set(steps)) == list(range(1, 41))


def test_signal_to_one_process_ends_all_with_one_checkpoint(runs):
    assert [(runs / "mixed" / f"ended-{r}").read_text() for r in (0, 1)] == ["25 step-000025"] * 2


def test_diverged_in_all_processes_is_the_same_in_all(runs):
    assert [(runs / "diverged" / f"ended-{r}").read_text() for r in (0, 1)] == ["the data of rank 1"] * 2


@pytest.mark.parametrize(("parallel", "rows", "n"), [(p, *cut) for p, cuts in CUTS.items() for cut in cuts])
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_gradient_is_the_mean_over_all_targets_however_rows_are_cut_and_shared(runs, parallel, rows, n, name):
    """Rows hold 8, 3, 1 and 2 targets: a mean of means of micro-batches, or processes, would be another gradient."""
    cfg = DECODER if name == "tied" else UNTIED
    expected = step_values(rows, rows, parallel, cfg)
    there = load_file(runs / f"gradients-{parallel}" / f"{name}-{rows}-{n}")
    for values in (step_values(rows, n, parallel, cfg), there):
        assert values.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(values[name], tensor, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_weights_with_which_fsdp_begins_are_those_of_one_process_to_the_bit(runs, name):
    expected = dict(beginning(DECODER if name == "tied" else UNTIED).named_parameters())
    weights = load_file(runs / "initial" / name)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_process_that_begins_with_fsdp_never_holds_a_whole_model(runs):
    """Half of the weights, half of the momentum, and one weight that is drawn; it was two whole models and a half."""
    whole = 4 * n_parameters(LARGE)
    for number in (0, 1):
        held, peak = (int((runs / "initial" / f"{name}-{number}").read_text()) for name in ("held", "peak"))
        assert held < 1.02 * whole
        assert peak < held + 0.25 * whole


def test_fsdp_that_gathers_bfloat16_has_about_the_gradients_of_float32(runs):
    model = beginning()
    loss, _ = language_model_loss(model, masked_batch(4))
    loss.backward()
    first, second = (load_file(runs / "narrow" / f"rank-{number}") for number in (0, 1))
    assert float(first["loss"] + second["loss"]) == pytest.approx(loss.item(), rel=0.02)
    for name, weight in model.named_parameters():
        own = first[f"grad.{name}"]
        assert own.dtype is torch.float32 and torch.equal(own, second[f"grad.{name}"])
        assert float((own - weight.grad).norm()) < 0.05 * float(weight.grad.norm()), name


def test_groups_end_before_the_models_that_refer_to_them(runs):
    """DDP freed the group while it held Python's lock, for which the group's threads waited: for ever."""
    assert [(runs / "groups" / f"ended-{number}").read_text() for number in (0, 1)] == ["12", "12"]


@pytest.mark.slow
def test_two_hundred_groups_end_before_the_models_that_refer_to_them(tmp_path):
    ended_well(both(tmp_path, "groups:groups:200"))


@pytest.mark.parametrize(
    ("rows", "micro_batch", "parallel", "message"),
    [
        (1, 1, "ddp", r"rows=1 leave some of 2 processes without a row; start at most 1"),
        (3, 1, "fsdp", r"rows=3 over 2 processes make 2 micro-batches of micro_batch=1 in some and 1 in others"),
        (3, 1, "ddp", None),
        (3, 3, "fsdp", None),
    ],
)
def test_rows_that_cannot_be_shared_out_are_refused(rows, micro_batch, parallel, message):
    cfg = dataclasses.replace(TRAIN, rows=rows, micro_batch=micro_batch, parallel=parallel)
    if message is None:
        check_shares(rows, cfg, size=2)
    else:
        with pytest.raises(ValueError, match=message):
            check_shares(rows, cfg, size=2)


@pytest.mark.parametrize(
    ("rows", "micro_batch", "message"),
    [
        (8, 1, r"rows=1 \(the first batches, by batch_warmup_fraction=0.5, of rows=8\) leave some of 2 processes"),
        (20, 2, "rows=5 over 2 processes make 2 micro-batches"),  # after batches of 2 rows, which would do
    ],
)
def test_batches_of_a_warmup_that_cannot_be_shared_out_are_refused_before_the_first_step(rows, micro_batch, message):
    cfg = dataclasses.replace(
        TRAIN, rows=rows, micro_batch=micro_batch, parallel="fsdp", batch_warmup_fraction=0.5, warmup_fraction=0.1
    )
    check_shares(rows, cfg, size=2)
    with pytest.raises(ValueError, match=message):
        check_all_shares(cfg, size=2)


def test_process_that_fails_ends_the_others_with_its_words(runs):
    answers = [(runs / "failing" / f"answer-{number}").read_text() for number in (0, 1)]
    assert [answer[:2] for answer in answers] == ["1\n", "1\n"]
    assert "ValueError: the shard is torn" in answers[1]
    words = [(runs / "failing" / f"ended-{r}").read_text() for r in (0, 1)]
    assert words[1] == "ValueError: the shard is torn"
    assert words[0] == f"RuntimeError: process 0 of 2 ends because another failed: process 1: {words[1]}"
    assert [p.name for p in complete_checkpoints(runs / "failing" / "checkpoints")] == ["step-000010"]


@pytest.mark.slow
def test_torchrun_told_to_stop_leaves_one_checkpoint_and_every_process_says_so(tmp_path):
    write_tokens(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*launch, CHILD, str(tmp_path), "stopping:run"], env=env, timeout=800, check=False)
    ended = [(tmp_path / "run" / f"ended-{r}").read_text() for r in (0, 1)]
    step, name = ended[0].split()
    assert ended[0] == ended[1] and 24 <= int(step) <= 30 and name == f"step-{int(step):06d}"
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == name


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_killed_and_started_again_end_bit_identical(tmp_path, runs, parallel):
    """The sum of two does not depend on their order; of more processes it may (docs/model.md)."""
    write_tokens(tmp_path)
    for step in (7, 23):
        answers = both(tmp_path, f"dying:run:{parallel}:{step}")
        assert [answer.returncode for answer in answers] == [1, -signal.SIGKILL]
        assert "lost another that ended without a message" in (tmp_path / "run" / "ended-0").read_text()
    ended_well(both(tmp_path, f"train:run:{parallel}"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = final(tmp_path / "run", name), final(runs / parallel, name)
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
