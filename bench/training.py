"""How fast we train, beside nanoGPT and transformers' Trainer, and what the loss, the data and the logging cost.

In: --nanogpt DIR with its train.py (without it, it is left out, and a line says so). Out: tables, printed. Every
contestant runs in a process of its own, and they take turns for --rounds rounds; a ratio is the median over rounds of
the ratio within a round, and its spread is given with it: what else the machine does then falls on all alike.

    python -m bench.training --nanogpt ../nanoGPT [--steps 200] [--rounds 3] [--threads 2] [--only speed]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.machine import machine
from bench.training_contestants import SHAPES, write_data

N_WARMUP = 10  # steps at the start that count for nobody
LABELS = {
    "nanogpt": "nanoGPT train.py (GPT-2, AdamW)",
    "ours-gpt2": "gristmill, GPT-2, AdamW",
    "ours-qwen3": "gristmill, Qwen3, AdamW",
    "ours-compiled": "gristmill, Qwen3, AdamW, compile=True",
    "ours-muon": "gristmill, Qwen3, Muon (default)",
    "trainer-gpt2": "transformers Trainer, GPT-2, AdamW",
    "trainer-qwen3": "transformers Trainer, Qwen3, AdamW",
}
ASKED = (  # ours, the peer, at least
    ("ours-gpt2", "nanogpt", {"cpu-recipe": 1.1, "10m": 1.0}),
    ("ours-qwen3", "nanogpt", {}),
    ("ours-gpt2", "trainer-gpt2", {"cpu-recipe": 1.3, "10m": 1.3}),
    ("ours-qwen3", "trainer-qwen3", {"cpu-recipe": 1.3, "10m": 1.3}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder with nanoGPT's train.py")
    parser.add_argument("--steps", type=int, default=200, help="of each contestant in a round; a fifth at 10 M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["cpu-recipe", "10m"])
    parser.add_argument("--only", choices=("speed", "loss", "overhead"))
    args = parser.parse_args()
    print(machine(1), f"{args.threads} threads\n")
    for shape in args.shapes if args.only in (None, "speed") else ():
        print_speed(shape, args)
    if args.only in (None, "overhead"):
        print_overhead(args)
    if args.only in (None, "loss"):
        print_loss(args.rounds, args.threads)


def contestants(args: argparse.Namespace) -> list[str]:
    names = list(LABELS)
    if args.nanogpt is None:
        names.remove("nanogpt")
        print("nanoGPT is left out: give its folder by --nanogpt\n")
    if any(importlib.util.find_spec(package) is None for package in ("transformers", "accelerate")):
        names = [name for name in names if not name.startswith("trainer")]
        print("transformers' Trainer is left out: pip install transformers accelerate\n")
    return names


def print_speed(shape: str, args: argparse.Namespace) -> None:
    names, n_steps = contestants(args), args.steps if shape != "10m" else max(N_WARMUP + 10, args.steps // 5)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    parameters = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch))
        for _ in range(args.rounds):
            for name in names:
                result = child(Path(scratch), name, shape, n_steps, args)
                rounds[name].append(median(result["seconds"][N_WARMUP:]))
                parameters[name] = result["parameters"]
    size = SHAPES[shape]
    print(f"## {shape}: {size}, {args.rounds} rounds of {n_steps} steps\n")
    print("| | parameters | ms per step | tokens/s |\n|---|---:|---:|---:|")
    for name, seconds in rounds.items():
        step = median(seconds)
        rate = size.rows * size.seq_len / step
        print(f"| {LABELS[name]} | {parameters[name] / 1e6:.2f} M | {step * 1e3:.1f} | {rate:,.0f} |")
    print("\n| ratio of tokens/s | median | all rounds | asked |\n|---|---:|---|---:|")
    for ours, peer, asked in ASKED:
        if peer in rounds:
            ratios = [theirs / own for own, theirs in zip(rounds[ours], rounds[peer], strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {LABELS[ours]} / {LABELS[peer]} | {median(ratios):.2f} | {each} | {asked.get(shape, '-')} |")
    print(flush=True)


def child(folder: Path, name: str, shape: str, n_steps: int, args: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "bench.training_contestants", str(folder), name]
    command += ["--shape", shape, "--steps", str(n_steps)]
    if name == "nanogpt":
        command += ["--nanogpt", str(args.nanogpt)]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    answer = subprocess.run(command, env=os.environ | threads, capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        raise SystemExit(f"{name} failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def print_overhead(args: argparse.Namespace) -> None:
    """Shares of a whole run of the shape where steps are shortest, checkpoints at its middle and its end."""
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch))
        n_steps = max(2 * 250, args.steps)  # a checkpoint every 250 steps
        result = child(Path(scratch), "ours-qwen3", "cpu-recipe", n_steps, args)
    logging = result["report"] + result["save"]
    whole = sum(result["seconds"]) + result["save"]
    print(f"## Beside the arithmetic, over {n_steps} steps of the CPU recipe's shape (Qwen3, AdamW)\n")
    print("| | ms per step | share of the run | asked |\n|---|---:|---:|---:|")
    for name, seconds, asked in (
        ("data loading", result["data"], "1 %"),
        ("logging and checkpoints", logging, "2 %"),
    ):
        print(f"| {name} | {seconds / n_steps * 1e3:.3f} | {seconds / whole:.2%} | <= {asked} |")
    print(flush=True)


LOSS = """
import json, resource, sys, time
import torch
from torch.nn import functional as F
from model.training.cross_entropy import linear_cross_entropy
n_rows, d_model, vocab_size = 2048, 384, 50304
torch.manual_seed(0)
x = torch.randn(n_rows, d_model, requires_grad=True)
weight = torch.randn(vocab_size, d_model, requires_grad=True)
targets = torch.randint(0, vocab_size, (n_rows,))
def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets, reduction="sum")
loss = plain if sys.argv[1] == "plain" else linear_cross_entropy
before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
for _ in range(3):
    start = time.perf_counter()
    loss(x, weight, targets).backward()
    seconds.append(time.perf_counter() - start)
    x.grad = weight.grad = None
print(json.dumps([min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3]))
"""


def print_loss(n_rounds: int, n_threads: int) -> None:
    """Time and peak memory of head and loss at a vocabulary of 50,304, forward and backward."""
    measured: dict[str, list[tuple[float, float]]] = {"plain": [], "chunked": []}
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    for _ in range(n_rounds):
        for kind, values in measured.items():
            answer = subprocess.run(
                [sys.executable, "-c", LOSS, kind], env=environment, capture_output=True, encoding="utf-8", check=True
            )
            values.append(tuple(json.loads(answer.stdout)))
    print("## Head and loss, 2,048 tokens, 384 wide, vocabulary 50,304, forward and backward\n")
    print("| | s | peak MB above the operands |\n|---|---:|---:|")
    (plain_s, plain_mb), (own_s, own_mb) = (
        [median(v) for v in zip(*values, strict=True)] for values in measured.values()
    )
    print(f"| F.cross_entropy of all logits | {plain_s:.2f} | {plain_mb:.0f} |")
    print(f"| model/training/loss.py, in chunks | {own_s:.2f} | {own_mb:.0f} |")
    print(f"| ratio | {own_s / plain_s:.2f} (asked <= 1) | {own_mb / plain_mb:.2f} (asked <= 0.5) |\n", flush=True)


if __name__ == "__main__":
    main()
