"""How fast a small model trains on all cores, alone and beside a process that keeps one of them busy.

In: --preset, --seconds, --rounds. Out: a table. Contestants are "replicas" (a replica of the model per thread, the
default of small models), "operations" (threads divide every operation) and "singles": as many trainings at once as
there are threads, each in one thread, so that nobody waits for anybody. The rate of the singles together is what the
cores give to that many threads beside that load, and the share of a contestant is its rate over theirs.

Contestants take turns of --seconds for --rounds rounds; shares are medians of the ratios within a round: what else
the machine does affects all alike. Processor time and waits (voluntary context switches) per step hardly depend on
it.

    python -m bench.busy [--preset demo] [--seconds 3] [--rounds 10] [--threads 2]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import IO

import torch

from bench.machine import machine
from model.network.decoder import new_decoder
from model.training.presets import PRESETS
from model.training.replicas import replicas_for
from model.training.step import new_state, train_step

CONTESTANTS = ("replicas", "operations", "singles")
N_WARMUP = 3  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rows", type=int, help="of a batch; as the preset has it")
    parser.add_argument("--seq-len", type=int, help="of a row; as the preset has it")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_in_turns(args)
        return
    turns: dict[tuple[bool, str], list[dict]] = {(is_busy, c): [] for is_busy in (False, True) for c in CONTESTANTS}
    load = os.getloadavg()[0]
    with children(args) as trainings:
        for _ in range(args.rounds):
            for is_busy, name in turns:
                with busy_process(is_busy):
                    turns[is_busy, name].append(turn(trainings[name], args.seconds))
    print(machine(1), f"{args.threads} threads, preset {args.preset}, load at the start {load:.1f}\n")
    print("| beside | contestant | steps/s | share of the singles' rate | CPU ms per step | waits per step |")
    print("|---|---|---:|---:|---:|---:|")
    for (is_busy, name), results in turns.items():
        singles = turns[is_busy, "singles"]
        share = median(own["rate"] / single["rate"] for own, single in zip(results, singles, strict=True))
        rate, cpu, waits = (median(result[key] for result in results) for key in ("rate", "cpu", "waits"))
        beside = "one busy process" if is_busy else "nothing"
        print(f"| {beside} | {name} | {rate:.2f} | {share:.2f} | {cpu * 1e3:.0f} | {waits:.0f} |")


@contextmanager
def children(args: argparse.Namespace) -> Iterator[dict[str, list[subprocess.Popen[str]]]]:
    """Processes by contestant, warm, each waiting for its turns."""
    started: dict[str, list[subprocess.Popen[str]]] = {}
    try:
        for name in CONTESTANTS:
            n_processes, n_threads = (args.threads, 1) if name == "singles" else (1, args.threads)
            command = [sys.executable, "-m", "bench.busy", "--child", name, "--preset", args.preset]
            command += ["--vocab", str(args.vocab), "--threads", str(n_threads)]
            command += ["--rows", str(args.rows)] if args.rows else []
            command += ["--seq-len", str(args.seq_len)] if args.seq_len else []
            # the wait of libgomp's threads is what pipeline/cli.py sets
            environment = os.environ | {"OMP_NUM_THREADS": str(n_threads), "GOMP_SPINCOUNT": "1000"}
            started[name] = [
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
                )
                for _ in range(n_processes)
            ]
        for process in (process for processes in started.values() for process in processes):
            _pipes(process)[1].readline()
        yield started
    finally:
        for process in (process for processes in started.values() for process in processes):
            process.communicate()  # the end of its input


@contextmanager
def busy_process(is_wanted: bool) -> Iterator[None]:
    if not is_wanted:
        yield
        return
    last_core = str(max(os.sched_getaffinity(0)))
    process = subprocess.Popen(["taskset", "--cpu-list", last_core, sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)  # to start, and to use up the advantage that a new process has
        yield
    finally:
        process.kill()
        process.wait()


def turn(trainings: list[subprocess.Popen[str]], seconds: float) -> dict[str, float]:
    """Steps per second of all processes together; processor seconds and waits per step."""
    for training in trainings:
        to_child, _ = _pipes(training)
        to_child.write(f"{seconds}\n")
        to_child.flush()
    results = [json.loads(_pipes(training)[1].readline()) for training in trainings]
    n_steps = sum(result["steps"] for result in results)
    per_step = {key: sum(result[key] for result in results) / n_steps for key in ("cpu", "waits")}
    return {"rate": sum(result["steps"] / result["seconds"] for result in results), **per_step}


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def train_in_turns(args: argparse.Namespace) -> None:
    """Train for as many seconds as each line of the input says."""
    preset = PRESETS[args.preset]
    cfg, decoder = preset.train, preset.shape.with_vocab(args.vocab)
    n_rows, seq_len = args.rows or cfg.rows, args.seq_len or cfg.seq_len
    state = new_state(new_decoder(decoder, cfg.seed), cfg)
    replicas = replicas_for(state.model, args.threads, n_rows) if args.child == "replicas" else None
    state.use_replicas(replicas)
    torch.set_num_threads(args.threads if replicas is None else replicas.n_threads_each)
    ids_BT = torch.randint(0, args.vocab, (n_rows, seq_len + 1))
    batch = {"ids_BT": ids_BT[:, :-1].contiguous(), "targets_BT": ids_BT[:, 1:].contiguous()}
    for _ in range(N_WARMUP):
        train_step(state, batch, cfg)
    print("warm", flush=True)
    for line in sys.stdin:
        before, start, n_steps = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < float(line):
            float(train_step(state, batch, cfg).loss)
            n_steps += 1
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result = {"steps": n_steps, "seconds": seconds, "cpu": cpu, "waits": after.ru_nvcsw - before.ru_nvcsw}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
