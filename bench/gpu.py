"""One call on a machine with a GPU, of under 8 minutes: is training fast there, does bfloat16 learn as float32 does,
and does a killed run end with the same bits?

In: nothing but torch, numpy, safetensors and model/ beside it. Out: tables in markdown, printed as they come, with
device, versions and commit. Without a device it says so and ends. Steps: throughput of 124 M parameters over
micro-batches, eager beside compiled, then a longer run at the best; 350 M; 200 steps in bfloat16 and in float32 from
the same weights on the same data; a run that kills itself and goes on, beside one that does not.

    python -m bench.gpu                      # --device cpu --tiny walks the same path with tiny sizes

MFU is FLOPs that the formula counts, over what the device can do (989 TFLOP/s on an H200 or H100, dense bfloat16).
FLOPs per token, T tokens per row: 6 N + 12 L H K T (arXiv:2204.02311 appendix B), N all matrices and the head,
without the embedding's look-up. Two other conventions stand beside it: N without the head, and attention's causal
half.
"""

import argparse
import contextlib
import dataclasses
import gc
import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import model.training.step
from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.network.size import flops_per_token, n_hidden_matrix_parameters, n_parameters
from model.training.checkpoint import complete_checkpoints
from model.training.compilation import chosen_compile, compile_layers
from model.training.config import TrainConfig
from model.training.curve import read_curve
from model.training.memory import estimate
from model.training.presets import PRESETS, from_sizes
from model.training.run import Job, run
from model.training.step import TrainState, new_state, train_step

VOCAB_SIZE = 50_304  # a multiple of 64
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bfloat16, by the makers' data sheets
ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How large everything is."""

    sizes: dict[str, DecoderConfig]
    micro_batches: tuple[int, ...]  # rows, tried with the first size
    sweep_rows: int  # of a step while they are tried
    rows: int  # of a step of the longer runs
    steps: int  # timed, after WARMUP_STEPS
    curve_rows: int
    curve_steps: int


WARMUP_STEPS = 3


def plan_of(tiny: bool) -> Plan:
    if tiny:
        shape = {"n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_ff": 32, "max_seq_len": 32, "tie_embeddings": True}
        one, two = (DecoderConfig(vocab_size=64, n_layers=n, d_model=16, **shape) for n in (2, 3))
        return Plan(
            sizes={"tiny": one, "less tiny": two}, micro_batches=(1, 2), sweep_rows=2, rows=4, steps=2,
            curve_rows=2, curve_steps=20,
        )  # fmt: skip
    sizes = {
        "124 M": PRESETS["gpt2_124m"].shape.with_vocab(VOCAB_SIZE),
        "350 M": from_sizes(24, 1024).shape.with_vocab(VOCAB_SIZE),
    }
    return Plan(
        sizes=sizes, micro_batches=(16, 32, 64), sweep_rows=64, rows=512, steps=10, curve_rows=16, curve_steps=200
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU walks through in seconds")
    parser.add_argument("--seconds", type=float, default=450.0, help="after which no further part begins")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--resume-child", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (--device cpu --tiny walks the path without one)")
        return
    device = torch.device(args.device)
    if args.resume_child:
        train_and_die(Path(args.resume_child[0]), int(args.resume_child[1]), device)
        return
    begun = time.monotonic()
    print(machine(device), "\n", flush=True)
    for name in args.parts:
        if time.monotonic() - begun > args.seconds:
            print(f"{name}: left out, {args.seconds:.0f} s are over\n")
            continue
        PARTS[name](plan_of(args.tiny), device)
        print(f"({time.monotonic() - begun:.0f} s since the beginning)\n", flush=True)


def machine(device: torch.device) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, commit {commit or 'unknown'}"


# Throughput.


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    tokens_a_second: float
    step_ms: float
    memory: int  # bytes at the peak; 0 where the device does not say
    first_seconds: float  # of the first step, with compiling


def measured(cfg: DecoderConfig, train: TrainConfig, device: torch.device, n_steps: int, compiled: bool) -> Speed:
    """Median speed of `n_steps` whole steps: micro-batches, clipping, update."""
    state = fresh_state(cfg, train, device, compiled)
    batches = itertools.cycle([random_batch(cfg, train, seed) for seed in range(2)])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(WARMUP_STEPS + n_steps):
        start = now(device)
        train_step(state, next(batches), train)
        seconds.append(now(device) - start)
    step = sorted(seconds[WARMUP_STEPS:])[n_steps // 2]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Speed(train.tokens_per_step / step, step * 1e3, peak, seconds[0])


def fresh_state(cfg: DecoderConfig, train: TrainConfig, device: torch.device, compiled: bool) -> TrainState:
    decoder = new_decoder(cfg, 0).to(device)
    if compiled:
        compile_layers(decoder)
    decoder.train()
    return new_state(decoder, train)


def random_batch(cfg: DecoderConfig, train: TrainConfig, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, cfg.vocab_size, (train.rows, train.seq_len + 1), generator=generator)
    return {"ids_BT": ids[:, :-1].contiguous(), "targets_BT": ids[:, 1:].contiguous()}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train_config(cfg: DecoderConfig, rows: int, micro_batch: int, **others: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "n_steps": 10_000,
        "rows": rows,
        "seq_len": cfg.max_seq_len,
        "micro_batch": micro_batch,
    }
    return TrainConfig(**(settings | others))


def peak_flops(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def mfu(cfg: DecoderConfig, rate: float, device: torch.device) -> list[str]:
    """By the formula above; with N without the head; with the causal half of attention only."""
    peak = peak_flops(device)
    if peak is None:
        return ["unknown"] * 3
    whole = flops_per_token(cfg, cfg.max_seq_len)
    head = 6 * cfg.vocab_size * cfg.d_model
    attention = whole - 6 * n_hidden_matrix_parameters(cfg) - head
    return [f"{rate * flops / peak:.1%}" for flops in (whole, whole - head, whole - attention / 2)]


def print_throughput(plan: Plan, device: torch.device) -> None:
    (name, cfg), *others = plan.sizes.items()
    can_compile = device.type == "cuda" and chosen_compile(None, device.type)
    print(f"## Micro-batch, {name}, {plan.sweep_rows} x {cfg.max_seq_len} tokens per step, Muon\n")
    print("| rows at once | | tokens/s | MFU | peak GB | estimated GB | first step s |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    best, best_rate = plan.micro_batches[0], 0.0
    tries = [(rows, can_compile) for rows in plan.micro_batches] + [(plan.micro_batches[1], False)] * can_compile
    for rows, compiled in tries:
        speed = print_sweep_row(cfg, train_config(cfg, plan.sweep_rows, rows), device, plan.steps, compiled)
        if speed is not None and speed.tokens_a_second > best_rate and compiled == can_compile:
            best, best_rate = rows, speed.tokens_a_second
    print(f"\n## Throughput, {plan.rows} rows per step, compiled: {can_compile}\n")
    print(
        "| size | N | optimiser | rows at once | ms per step | tokens/s | MFU | N without head | causal half | GB |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    print_speed(name, cfg, train_config(cfg, plan.rows, best), device, plan.steps, can_compile)
    print_speed(name, cfg, train_config(cfg, plan.rows, best, muon_lr=None), device, plan.steps, can_compile)
    for other, larger in others:
        rows = max(1, best // 2)
        print_speed(other, larger, train_config(larger, plan.rows // 2, rows), device, plan.steps, can_compile)
    print(flush=True)


def print_sweep_row(
    cfg: DecoderConfig, train: TrainConfig, device: torch.device, n_steps: int, compiled: bool
) -> Speed | None:
    kind = "compiled" if compiled else "eager"
    try:
        speed = measured(cfg, train, device, n_steps, compiled)
    except torch.OutOfMemoryError:
        print(f"| {train.micro_batch} | {kind} | out of memory | | | | |", flush=True)
        return None
    finally:
        free()
    expected = estimate(cfg, train, device.type).total(train.micro_batch or train.rows) / 1e9
    print(
        f"| {train.micro_batch} | {kind} | {speed.tokens_a_second:,.0f} |"
        f" {mfu(cfg, speed.tokens_a_second, device)[0]} | {speed.memory / 1e9:.1f} | {expected:.1f} |"
        f" {speed.first_seconds:.1f} |",
        flush=True,
    )
    return speed


def print_speed(
    name: str, cfg: DecoderConfig, train: TrainConfig, device: torch.device, n_steps: int, compiled: bool
) -> None:
    speed = measured(cfg, train, device, n_steps, compiled)
    free()
    n_multiplying = n_hidden_matrix_parameters(cfg) + cfg.vocab_size * cfg.d_model
    shares = " | ".join(mfu(cfg, speed.tokens_a_second, device))
    print(
        f"| {name} ({n_parameters(cfg) / 1e6:.1f} M) | {n_multiplying / 1e6:.1f} M |"
        f" {'Muon' if train.muon_lr else 'AdamW'} | {train.micro_batch} | {speed.step_ms:.0f} |"
        f" {speed.tokens_a_second:,.0f} | {shares} | {speed.memory / 1e9:.1f} |",
        flush=True,
    )


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()


# Does bfloat16 learn as float32 does?


def chain_batches(cfg: DecoderConfig, train: TrainConfig) -> Iterator[dict[str, Tensor]]:
    """Text of a made-up language: after each of 512 tokens one of four may come, so that there is something to learn
    (down to ln 4 = 1.386 nats) within 200 steps."""
    generator = torch.Generator().manual_seed(1)
    n_words = min(512, cfg.vocab_size)
    follows = torch.randint(0, n_words, (n_words, 4), generator=generator)
    while True:
        ids = torch.empty(train.rows, train.seq_len + 1, dtype=torch.int64)
        ids[:, 0] = torch.randint(0, n_words, (train.rows,), generator=generator)
        draws = torch.randint(0, 4, (train.rows, train.seq_len), generator=generator)
        for t in range(train.seq_len):
            ids[:, t + 1] = follows[ids[:, t], draws[:, t]]
        yield {"ids_BT": ids[:, :-1].contiguous(), "targets_BT": ids[:, 1:].contiguous()}


def curve(cfg: DecoderConfig, train: TrainConfig, device: torch.device, precision: Callable | None) -> list[float]:
    """Losses of train.n_steps steps; `precision` in place of the training's own."""
    own = model.training.step.precision
    model.training.step.precision = precision or own
    try:
        state, batches = fresh_state(cfg, train, device, compiled=False), chain_batches(cfg, train)
        losses = [train_step(state, next(batches), train).loss for _ in range(train.n_steps)]
        return torch.stack(losses).tolist()
    finally:
        model.training.step.precision = own


def print_curves(plan: Plan, device: torch.device) -> None:
    name, cfg = next(iter(plan.sizes.items()))
    train = train_config(cfg, plan.curve_rows, plan.curve_rows, n_steps=plan.curve_steps, muon_lr=0.02, adamw_lr=3e-3)
    curves = {
        "bfloat16 products": curve(cfg, train, device, None),
        "float32": curve(cfg, train, device, lambda _: contextlib.nullcontext()),
    }
    places = [math.ceil(train.n_steps * share) for share in (0.05, 0.25, 0.5, 0.75, 1.0)]
    free()
    print(f"## Loss over {train.n_steps} steps of {train.tokens_per_step:,} tokens, {name}, same weights and data\n")
    print("| | " + " | ".join(f"step {place}" for place in places) + " | mean of the last tenth |")
    print("|---|" + "---:|" * (len(places) + 1))
    ends = {}
    for kind, losses in curves.items():
        tail = losses[-max(1, len(losses) // 10) :]
        ends[kind] = sum(tail) / len(tail)
        print(f"| {kind} | " + " | ".join(f"{losses[place - 1]:.4f}" for place in places) + f" | {ends[kind]:.4f} |")
    half, full = ends.values()
    print(f"\nbfloat16 ends {half - full:+.4f} nats from float32 ({(half - full) / full:+.2%})\n", flush=True)


# Exact resume.

RESUME_STEPS, KILLED_AT = 30, 17


class ChainBatches:
    """Batches by number, as model/training/run.py reads them."""

    def __init__(self, cfg: DecoderConfig, train: TrainConfig) -> None:
        self.cfg, self.train = cfg, train

    def n_rows(self, k: int) -> int:
        return self.train.rows

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> dict[str, Tensor]:
        return random_batch(self.cfg, self.train, seed=k)

    def documents_of_batch(self, k: int) -> list[str]:
        return [f"batch-{k}"]


class Fatal:
    """An observer that kills its process with -9 when it hears of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step: int, values) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def checkpoint(self, path, step, values) -> None: ...


def train_and_die(folder: Path, step: int, device: torch.device) -> None:
    """Train a small model in `folder`, from its last checkpoint, and die at `step`; with 0 to the end.

    CUDA sums gradients of look-ups and attention in any order unless told otherwise, so that no two runs are alike
    to the bit, killed or not: here it is told.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    shape = {"n_heads": 4, "n_kv_heads": 4, "d_head": 64, "d_ff": 704, "max_seq_len": 256, "tie_embeddings": True}
    cfg = DecoderConfig(vocab_size=4096, n_layers=4, d_model=256, **shape)
    if device.type == "cpu":
        cfg = plan_of(tiny=True).sizes["tiny"]
    train = train_config(cfg, 8, 4, n_steps=RESUME_STEPS, checkpoint_every=10, validate_every=RESUME_STEPS)
    decoder = new_decoder(cfg, 0).to(device)
    job = Job(model=decoder, cfg=train, description=describe(cfg), batches=ChainBatches(cfg, train))
    run(folder, job, Fatal(step))


def print_resume(plan: Plan, device: torch.device) -> None:
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        codes = []
        for folder, step in ((whole, 0), (killed, KILLED_AT), (killed, 0)):
            command = [sys.executable, "-m", "bench.gpu", "--device", device.type, "--resume-child"]
            answer = subprocess.run(
                [*command, str(folder), str(step)],
                cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False,
            )  # fmt: skip
            codes.append(answer.returncode)
            if answer.returncode not in (0, -signal.SIGKILL):
                print(f"the run of {folder.name} failed:\n{answer.stderr[-2000:]}\n", flush=True)
                return
        last = [complete_checkpoints(folder / "checkpoints")[-1] for folder in (whole, killed)]
        names = ("model.safetensors", "optimizer.safetensors")
        same = {name: (last[0] / name).read_bytes() == (last[1] / name).read_bytes() for name in names}
        losses = [[line["loss"] for line in read_curve(folder)] for folder in (whole, killed)]
    print(f"## Exact resume: killed with -9 at step {KILLED_AT}, gone on from step 10 to {RESUME_STEPS}\n")
    print("| | bit-identical |\n|---|---|")
    for name, is_same in (same | {"losses of all steps": losses[0] == losses[1]}).items():
        print(f"| {name} | {'yes' if is_same else 'NO'} |")
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"\n(exit codes {codes}; largest difference of a loss {difference})")


PARTS: dict[str, Callable[[Plan, torch.device], None]] = {
    "throughput": print_throughput,
    "resume": print_resume,
    "curves": print_curves,
}

if __name__ == "__main__":
    main()
