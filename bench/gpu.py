"""One call on a machine with a GPU, of under 8 minutes: how fast is training there, what does each of its parts gain,
does bfloat16 learn as float32 does, and does a killed run end with the same bits?

In: nothing but torch, numpy, safetensors and model/ beside it. Out: tables in Markdown, printed as they come, with
device, versions and commit, and exit code 1 where something that has to hold does not. Without a device it prints one
line and ends. Steps: throughput of 124 M and 350 M parameters; each part switched off in turn at 124 M; a run that
kills itself and resumes, beside one that does not; 200 steps in bfloat16 and in float32 on the same data.

    python -m bench.gpu                      # --device cpu --tiny walks the same path with tiny sizes

MFU is the FLOPs that the formula counts, over what the device can do (989 TFLOP/s on an H200 or H100, dense
bfloat16). FLOPs per token, T tokens per row: 6 N + 12 L H K T (arXiv:2204.02311 appendix B), N all matrices and the
head, without the embedding's look-up. Two other conventions are beside it: N without the head, and the causal half of
attention.
"""

import argparse
import contextlib
import dataclasses
import gc
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from model.network.attention import attention_plan
from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.network.size import flops_per_token, n_hidden_matrix_parameters, n_parameters
from model.network.visible import Visible
from model.training.checkpoint import CheckpointWriter, complete_checkpoints
from model.training.compilation import chosen_compile, compile_layers, strictly_compiled
from model.training.config import TrainConfig
from model.training.curve import read_curve
from model.training.machine import deterministic_kernels, product_dtype
from model.training.memory import estimate
from model.training.prefetch import prefetched
from model.training.presets import PRESETS, from_sizes
from model.training.run import Job, run
from model.training.step import TrainState, new_state, train_step

VOCAB_SIZE = 50_257  # GPT-2's, no multiple of 8, so that padding has something to do
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bfloat16, by the makers' data sheets
DOCUMENT_TOKENS = 300  # mean length of the documents in a row
WARMUP_STEPS = 3
ROOT = Path(__file__).resolve().parent.parent
FAULTS: list[str] = []  # what does not hold; the exit code is 1 where there is any


def check(holds: bool, what: str) -> None:
    if not holds:
        FAULTS.append(what)
        print(f"FAULT: {what}", flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How large everything is."""

    sizes: dict[str, tuple[DecoderConfig, int]]  # and rows at once
    rows: int  # of a step
    steps: int  # timed, after WARMUP_STEPS
    curve_rows: int
    curve_steps: int


def plan_of(tiny: bool) -> Plan:
    if tiny:
        shape = {"n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_ff": 32, "max_seq_len": 32, "tie_embeddings": True}
        one, two = (DecoderConfig(vocab_size=67, n_layers=n, d_model=16, **shape) for n in (2, 3))
        return Plan(sizes={"tiny": (one, 2), "less tiny": (two, 2)}, rows=4, steps=2, curve_rows=2, curve_steps=20)
    sizes = {
        "124 M": (PRESETS["gpt2_124m"].shape.with_vocab(VOCAB_SIZE), 32),
        "350 M": (from_sizes(24, 1024).shape.with_vocab(VOCAB_SIZE), 16),
    }
    return Plan(sizes=sizes, rows=256, steps=8, curve_rows=16, curve_steps=200)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU walks through in seconds")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no further row or part begins")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--resume-child", nargs=3, metavar=("FOLDER", "STEP", "DETERMINISTIC"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (--device cpu --tiny walks the path without one)")
        return 0
    device = torch.device(args.device)
    if args.resume_child:
        folder, step, is_deterministic = args.resume_child
        train_and_die(Path(folder), int(step), device, is_deterministic == "yes")
        return 0
    clock = Clock(args.seconds)
    print(machine(device), "\n", flush=True)
    for name in args.parts:
        if clock.is_over(name):
            continue
        PARTS[name](plan_of(args.tiny), device, clock)
        print(f"\n({clock.passed():.0f} s since the beginning)\n", flush=True)
    print(f"{len(FAULTS)} faults" if FAULTS else "all that has to hold holds")
    return 1 if FAULTS else 0


class Clock:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, time.monotonic()

    def passed(self) -> float:
        return time.monotonic() - self.begun

    def is_over(self, name: str) -> bool:
        """Whether the time is over; prints what is left out for it."""
        if self.passed() > self.seconds:
            print(f"{name}: left out, {self.seconds:.0f} s are over", flush=True)
        return self.passed() > self.seconds


def machine(device: torch.device) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, commit {commit or 'unknown'}"


# Throughput.


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    tokens_per_second: float
    step_ms: float
    memory: int  # bytes at the peak; 0 where the device does not report it
    first_seconds: float  # of the first step, with compiling
    loss: float  # of the last step


def measured(cfg: DecoderConfig, train: TrainConfig, device: torch.device, n_steps: int) -> Speed:
    """Median speed of `n_steps` whole steps: the next batch, micro-batches, clipping, update."""
    state = fresh_state(cfg, train, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, numbers = [], range(WARMUP_STEPS + n_steps)
    loss = torch.zeros(())
    with prefetched(MadeUpBatches(cfg, train), numbers, device) as batches, strictly_compiled(train.compile is True):
        start = now(device)
        for batch in batches:
            loss = train_step(state, batch, train).loss
            end = now(device)
            seconds.append(end - start)
            start = end
    step = statistics.median(seconds[WARMUP_STEPS:])
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    check(math.isfinite(loss.item()), "the loss of a measured step is finite")
    return Speed(train.tokens_per_step / step, step * 1e3, peak, seconds[0], loss.item())


def fresh_state(cfg: DecoderConfig, train: TrainConfig, device: torch.device) -> TrainState:
    decoder = new_decoder(cfg, 0).to(device)
    if train.compile:
        compile_layers(decoder)
    decoder.train()
    return new_state(decoder, train)


class MadeUpBatches:
    """Text of a made-up language: after each of 512 tokens one of four may come, so that there is something to learn
    (down to ln 4 = 1.386 nats) within 200 steps; with a document mask, in documents."""

    def __init__(self, cfg: DecoderConfig, train: TrainConfig) -> None:
        self.train, self.n_words = train, min(512, cfg.vocab_size)
        self.follows = torch.randint(0, self.n_words, (self.n_words, 4), generator=torch.Generator().manual_seed(1))

    def n_rows(self, k: int) -> int:
        return self.train.rows

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, Tensor]:
        generator, shape = torch.Generator().manual_seed(k), (self.train.rows, self.train.seq_len)
        ids_BT = torch.empty(shape[0], shape[1] + 1, dtype=torch.int64)
        ids_BT[:, 0] = torch.randint(0, self.n_words, shape[:1], generator=generator)
        draws_BT = torch.randint(0, 4, shape, generator=generator)
        for t in range(shape[1]):
            ids_BT[:, t + 1] = self.follows[ids_BT[:, t], draws_BT[:, t]]
        batch = {"ids_BT": ids_BT[:, :-1].contiguous(), "targets_BT": ids_BT[:, 1:].contiguous()}
        if self.train.document_mask:
            begins_BT = torch.rand(shape, generator=generator) < 1 / DOCUMENT_TOKENS
            batch["documents_BT"] = begins_BT.long().cumsum(dim=1)
        return batch

    def documents_of_batch(self, k: int) -> list[str]:
        return [f"batch-{k}"]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train_config(cfg: DecoderConfig, rows: int, micro_batch: int, **others: Any) -> TrainConfig:
    settings = {"n_steps": 10_000, "rows": rows, "seq_len": cfg.max_seq_len, "micro_batch": micro_batch}
    return TrainConfig(**(settings | others))


def mfu(cfg: DecoderConfig, rate: float, device: torch.device) -> list[str]:
    """By the formula above; with N without the head; with the causal half of attention only."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    if peak is None:
        return ["unknown"] * 3
    whole = flops_per_token(cfg, cfg.max_seq_len)
    head = 6 * cfg.vocab_size * cfg.d_model
    attention = whole - 6 * n_hidden_matrix_parameters(cfg) - head
    return [f"{rate * flops / peak:.1%}" for flops in (whole, whole - head, whole - attention / 2)]


def print_throughput(plan: Plan, device: torch.device, clock: Clock) -> None:
    is_compiled = chosen_compile(None, device.type)
    print(f"## Throughput, {plan.rows} rows per step, Muon, compiled: {'yes' if is_compiled else 'no'}\n")
    print(
        "| size | N | rows at once | ms per step | tokens/s | MFU | N without head | causal half | peak GB |"
        " estimated GB | first step s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, (cfg, micro_batch) in plan.sizes.items():
        if clock.is_over(name):
            continue
        train = train_config(cfg, plan.rows, micro_batch, compile=is_compiled)
        speed = measured(cfg, train, device, plan.steps)
        free()
        n_multiplying = n_hidden_matrix_parameters(cfg) + cfg.vocab_size * cfg.d_model
        expected = estimate(cfg, train, device.type).total(micro_batch)
        print(
            f"| {name} ({n_parameters(cfg) / 1e6:.1f} M) | {n_multiplying / 1e6:.1f} M | {micro_batch} |"
            f" {speed.step_ms:.0f} | {speed.tokens_per_second:,.0f} |"
            f" {' | '.join(mfu(cfg, speed.tokens_per_second, device))} | {speed.memory / 1e9:.1f} |"
            f" {expected / 1e9:.1f} | {speed.first_seconds:.1f} |",
            flush=True,
        )
        if device.type == "cuda":
            check(speed.memory < 2 * expected, f"{name}: the peak of memory is below twice the estimate")


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()


# Each part on and off. What is always on in training is switched off here alone, by replacing it.


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


def no_foreach() -> contextlib.AbstractContextManager:
    def one_by_one(tensors: list[Tensor], factor: Tensor) -> None:
        for tensor in tensors:
            tensor.mul_(factor)

    return mock.patch.object(torch, "_foreach_mul_", one_by_one)


Switch = tuple[dict[str, Any], Callable[[], contextlib.AbstractContextManager]]  # settings, and what is replaced
SWITCHES: dict[str, Switch] = {
    "everything as in training": ({}, nothing),
    "without compiling": ({"compile": False}, nothing),
    "Muon not compiled": ({}, lambda: mock.patch("model.training.optim.compile_backend", lambda model: None)),
    "vocabulary not padded": ({}, lambda: mock.patch.dict("model.training.cross_entropy.VOCAB_MULTIPLE", cuda=1)),
    "batches not built ahead": ({}, lambda: mock.patch("model.training.prefetch.IN_A_THREAD", frozenset())),
    "gradients scaled one by one": ({}, no_foreach),
    "residual stream in float32": ({}, lambda: mock.patch("model.network.decoder.autocast_dtype", lambda d: None)),
    "deterministic": ({}, lambda: deterministic_kernels(True)),
    "within documents, varlen": ({"document_mask": True}, nothing),
    "within documents, a mask": (
        {"document_mask": True},
        lambda: mock.patch("model.network.attention.flash_takes", lambda *_: False),
    ),
}


def print_switches(plan: Plan, device: torch.device, clock: Clock) -> None:
    """What each part of training gains, at the first size; and that it changes no loss beyond roundings."""
    name, (cfg, micro_batch) = next(iter(plan.sizes.items()))
    is_compiled = chosen_compile(None, device.type)
    check_kernels(cfg, device)
    print(f"## What each part gains, {name}, {plan.rows} rows per step, {micro_batch} at once\n")
    print(
        "| | tokens/s | of the first line | MFU | peak GB | loss of the last step |\n|---|---:|---:|---:|---:|---:|"
    )
    speeds: dict[str, Speed] = {}
    for label, (settings, replaced) in SWITCHES.items():
        if clock.is_over(label):
            continue
        train = train_config(cfg, plan.rows, micro_batch, **({"compile": is_compiled} | settings))
        try:
            with replaced():
                speed = speeds[label] = measured(cfg, train, device, plan.steps)
        except RuntimeError as error:  # no memory, or an operation without a deterministic kernel: the others go on
            check(False, f"{label} runs: {str(error).strip().splitlines()[0]}")
            continue
        finally:
            free()
        first = speeds[next(iter(speeds))]
        print(
            f"| {label} | {speed.tokens_per_second:,.0f} | {speed.tokens_per_second / first.tokens_per_second:.3f} |"
            f" {mfu(cfg, speed.tokens_per_second, device)[0]} | {speed.memory / 1e9:.1f} | {speed.loss:.4f} |",
            flush=True,
        )
        same = speeds.get("within documents, varlen", speed) if train.document_mask else first
        check(abs(speed.loss - same.loss) < 0.02 * same.loss, f"{label}: the loss changes by roundings alone")


def check_kernels(cfg: DecoderConfig, device: torch.device) -> None:
    """On CUDA flash attention runs over documents, without a mask."""
    if device.type != "cuda" or product_dtype(device) is torch.float32:
        return
    visible = Visible.within(torch.zeros(2, cfg.max_seq_len, dtype=torch.int64))
    sizes = {"n_rows": 2, "n_queries": cfg.max_seq_len, "n_keys": cfg.max_seq_len, "d_head": cfg.d_head}
    plan = attention_plan(visible, device=device, dtype=torch.bfloat16, **sizes)
    check(plan.kernel == "varlen", f"attention within documents takes varlen, not {plan.kernel}")


# Does bfloat16 learn as float32 does?


def curve(cfg: DecoderConfig, train: TrainConfig, device: torch.device) -> list[float]:
    state, batches = fresh_state(cfg, train, device), MadeUpBatches(cfg, train)
    losses = [train_step(state, batches.batch(k), train).loss for k in range(train.n_steps)]
    return torch.stack(losses).tolist()


def print_curves(plan: Plan, device: torch.device, clock: Clock) -> None:
    name, (cfg, _) = next(iter(plan.sizes.items()))
    train = train_config(cfg, plan.curve_rows, plan.curve_rows, n_steps=plan.curve_steps, muon_lr=0.02, adamw_lr=3e-3)
    curves = {"bfloat16 products": curve(cfg, train, device)}
    free()
    with mock.patch("model.training.step.precision", lambda _: contextlib.nullcontext()):
        curves["float32"] = curve(cfg, train, device)
    free()
    places = [math.ceil(train.n_steps * share) for share in (0.05, 0.25, 0.5, 0.75, 1.0)]
    print(f"## Loss over {train.n_steps} steps of {train.tokens_per_step:,} tokens, {name}, same weights and data\n")
    print("| | " + " | ".join(f"step {place}" for place in places) + " | mean of the last tenth |")
    print("|---|" + "---:|" * (len(places) + 1))
    ends = {}
    for kind, losses in curves.items():
        ends[kind] = statistics.fmean(losses[-max(1, len(losses) // 10) :])
        print(f"| {kind} | " + " | ".join(f"{losses[place - 1]:.4f}" for place in places) + f" | {ends[kind]:.4f} |")
    half, full = ends.values()
    print(f"\nbfloat16 ends {half - full:+.4f} nats from float32 ({(half - full) / full:+.2%})")
    check(abs(half - full) < 0.02 * full, "bfloat16 ends within 2 % of float32's loss")


# Exact resume, and what writing checkpoints in a thread gains.

RESUME_STEPS, KILLED_AT = 30, 17


class Fatal:
    """An observer that kills its process with -9 at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


def small_job(device: torch.device, **settings: Any) -> Job:
    shape = {"n_heads": 4, "n_kv_heads": 4, "d_head": 64, "d_ff": 704, "max_seq_len": 256, "tie_embeddings": True}
    cfg = DecoderConfig(vocab_size=4096, n_layers=4, d_model=256, **shape)
    if device.type == "cpu":
        cfg = next(iter(plan_of(tiny=True).sizes.values()))[0]
    train = train_config(
        cfg, 8, 4, n_steps=RESUME_STEPS, checkpoint_every=10, validate_every=RESUME_STEPS, **settings
    )
    batches = MadeUpBatches(cfg, train)
    return Job(model=new_decoder(cfg, 0).to(device), cfg=train, description=describe(cfg), batches=batches)


def train_and_die(folder: Path, step: int, device: torch.device, is_deterministic: bool) -> None:
    """Train a small model in `folder`, from its last checkpoint, and die at `step`; with 0 to the end."""
    run(folder, small_job(device, deterministic=is_deterministic), Fatal(step))


def print_resume(plan: Plan, device: torch.device, clock: Clock) -> None:
    print(f"## Exact resume: killed with -9 at step {KILLED_AT}, resumed from step 10 to {RESUME_STEPS}\n")
    print("| deterministic | | bit-identical |\n|---|---|---|")
    for setting in ("yes", "no"):
        if clock.is_over(f"resume, deterministic {setting}"):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
            for folder, step in ((whole, 0), (killed, KILLED_AT), (killed, 0)):
                start_child(device, folder, step, setting)
            last = [complete_checkpoints(folder / "checkpoints")[-1] for folder in (whole, killed)]
            names = ("model.safetensors", "optimizer.safetensors")
            same = {name: (last[0] / name).read_bytes() == (last[1] / name).read_bytes() for name in names}
            losses = [[line["loss"] for line in read_curve(folder)] for folder in (whole, killed)]
        for name, is_same in (same | {"losses of all steps": losses[0] == losses[1]}).items():
            print(f"| {setting} | {name} | {'yes' if is_same else 'NO'} |")
            check(is_same or (setting == "no" and device.type == "cuda"), f"deterministic {setting}: {name} repeats")
    print_checkpoints(device)


def start_child(device: torch.device, folder: Path, step: int, setting: str) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--device", device.type, "--resume-child"]
    answer = subprocess.run(
        [*command, str(folder), str(step), setting], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if answer.returncode != (-signal.SIGKILL if step else 0):
        raise RuntimeError(f"the run of {folder.name} ended with {answer.returncode}:\n{answer.stderr[-2000:]}")


def print_checkpoints(device: torch.device) -> None:
    """A small training that saves every third step: its writer in a thread, and waited for."""
    begin = CheckpointWriter.start

    def begin_and_wait(writer: CheckpointWriter, snapshot: Any) -> None:
        begin(writer, snapshot)
        writer.wait()

    seconds = {}
    for label, start in (("in a thread", begin), ("waited for", begin_and_wait)):
        with tempfile.TemporaryDirectory() as scratch, mock.patch.object(CheckpointWriter, "start", start):
            job = small_job(device)
            job = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, checkpoint_every=3))
            since = now(device)
            run(Path(scratch), job, Fatal(0))
            seconds[label] = now(device) - since
        free()
    print("\n" + ", ".join(f"checkpoints {label}: {taken:.2f} s" for label, taken in seconds.items()))


PARTS: dict[str, Callable[[Plan, torch.device, Clock], None]] = {
    "throughput": print_throughput,
    "switches": print_switches,
    "resume": print_resume,
    "curves": print_curves,
}

if __name__ == "__main__":
    sys.exit(main())
