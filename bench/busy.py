"""How fast a small model trains on all cores, alone and beside a process that keeps one of them busy.

In: --preset, --seconds, --rounds. Out: a table. Contestants are "replicas" (a replica of the model per thread, the
default of small models), "operations" (threads divide every operation) and "singles": as many trainings at once as
there are threads, each in one thread, so that nobody waits for anybody. The rows per second of the singles together
are what the cores give to that many threads beside that load, and the share of a contestant is its rate over theirs.

Contestants take turns for --rounds rounds, and shares are medians of the ratios within a round: what else the machine
does falls on all alike. Processor time and voluntary context switches per step hardly depend on it at all.

    python -m bench.busy [--preset demo] [--seconds 10] [--rounds 5] [--threads 2]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from bench.machine import machine
from model.network.decoder import new_decoder
from model.training.presets import PRESETS
from model.training.replicas import replicas_for
from model.training.step import new_state, train_step

CONTESTANTS = ("replicas", "operations", "singles")
N_WARMUP = 3  # steps that are not counted
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=10.0, help="that a turn is measured for")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(trained(args)))
        return
    print(machine(1), f"{args.threads} threads, preset {args.preset}, load {os.getloadavg()[0]:.1f}\n")
    turns = {(name, is_busy): [] for is_busy in (False, True) for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name, is_busy in turns:
            turns[name, is_busy].append(turn(name, is_busy, args))
    print("| beside | contestant | steps/s | share of the singles' rate | CPU ms per step | waits per step |")
    print("|---|---|---:|---:|---:|---:|")
    for (name, is_busy), results in turns.items():
        rates = [result["rate"] for result in results]
        shares = [rate / single["rate"] for rate, single in zip(rates, turns["singles", is_busy], strict=True)]
        cpu, waits = (median(result[key] for result in results) for key in ("cpu", "waits"))
        label = "one busy process" if is_busy else "nothing"
        print(f"| {label} | {name} | {median(rates):.2f} | {median(shares):.2f} | {cpu * 1e3:.0f} | {waits:.0f} |")


def turn(name: str, is_busy: bool, args: argparse.Namespace) -> dict[str, float]:
    """Rate of all processes of a contestant together; processor seconds and waits per step."""
    n_processes, n_threads = (args.threads, 1) if name == "singles" else (1, args.threads)
    command = [
        sys.executable,
        "-m",
        "bench.busy",
        "--child",
        name,
        "--preset",
        args.preset,
        "--vocab",
        str(args.vocab),
    ]
    command += ["--seconds", str(args.seconds), "--threads", str(n_threads)]
    last_core = max(os.sched_getaffinity(0))
    pinned = ["taskset", "--cpu-list", str(last_core), sys.executable, "-c", BUSY]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads), "GOMP_SPINCOUNT": "1000"}  # as pipeline/cli.py
    busy = subprocess.Popen(pinned) if is_busy else None
    try:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        children = [subprocess.Popen(command, env=environment, **pipes) for _ in range(n_processes)]  # type: ignore
        for child in children:
            child.stdout.readline()  # is warm
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        results = [json.loads(child.communicate()[0]) for child in children]
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    n_steps = sum(result["steps"] for result in results)
    return {
        "rate": sum(result["steps"] / result["seconds"] for result in results),
        "cpu": sum(result["cpu"] for result in results) / n_steps,
        "waits": sum(result["waits"] for result in results) / n_steps,
    }


def trained(args: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    cfg, decoder = preset.train, preset.shape.with_vocab(args.vocab)
    state = new_state(new_decoder(decoder, cfg.seed), cfg)
    if args.child == "replicas":
        state.use_replicas(replicas_for(state.model, args.threads, cfg.rows))
    ids_BT = torch.randint(0, args.vocab, (cfg.rows, cfg.seq_len + 1))
    batch = {"ids_BT": ids_BT[:, :-1].contiguous(), "targets_BT": ids_BT[:, 1:].contiguous()}
    for _ in range(N_WARMUP):
        train_step(state, batch, cfg)
    print("warm", flush=True)
    sys.stdin.readline()
    before, start, n_steps = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < args.seconds:
        float(train_step(state, batch, cfg).loss)
        n_steps += 1
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"steps": n_steps, "seconds": seconds, "cpu": cpu, "waits": after.ru_nvcsw - before.ru_nvcsw}


if __name__ == "__main__":
    main()
