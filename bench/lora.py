"""Steps of LoRA on a model of SmolLM2-135M's shape: ours, ours with all weights, and peft with transformers' Trainer.

In: the shape, with random weights, or the folder of a model. Out: a markdown table of seconds and CPU seconds per
step and of peaks of memory, printed. Contestants run in processes of their own and take turns; all have the same
weights, batches, adapted layers, rank, float32 and threads, and the first loss of all is compared.

    .venv/bin/python -m bench.lora [--model FOLDER] [--rows 4] [--seq-len 256] [--steps 6] [--rounds 2] [--threads 2]
        [--layers 30]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.machine import machine

CONTESTANTS = {"lora": "LoRA, ours", "peft": "LoRA, peft with Trainer", "full": "all weights, ours"}
N_WARMUP = 1  # steps
RANK, ALPHA, LEARNING_RATE = 8, 16, 1e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    args = arguments()
    if args.contestant is not None:
        print(json.dumps({"lora": ours, "full": ours, "peft": theirs}[args.contestant](args)))
        return
    rounds: dict[str, list[dict]] = {name: [] for name in args.names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder, args.model, args.layers)
        for _ in range(args.rounds):
            for name in args.names:
                rounds[name].append(child(folder, name, args))
    losses = {result["losses"][0] for results in rounds.values() for result in results}
    assert max(losses) - min(losses) < 1e-3, f"the contestants begin with different losses: {losses}"
    print(f"{machine(args.threads)}; {args.rows} rows of {args.seq_len} tokens, {args.threads} threads\n")
    print("| | s per step | CPU s per step | peak MB | loss after the last step |\n|---|---:|---:|---:|---:|")
    for name, results in rounds.items():
        wall, cpu = ([median(result[key][N_WARMUP:]) for result in results] for key in ("seconds", "cpu"))
        peak, last = max(result["peak"] for result in results), results[-1]["losses"][-1]
        print(f"| {CONTESTANTS[name]} | {median(wall):.2f} | {median(cpu):.2f} | {peak / 1e6:,.0f} | {last:.4f} |")
    if "peft" in rounds:
        for key, title in (("seconds", "wall clock"), ("cpu", "CPU time")):
            ratios = [
                median(peer[key][N_WARMUP:]) / median(own[key][N_WARMUP:])
                for own, peer in zip(rounds["lora"], rounds["peft"], strict=True)
            ]
            print(f"\nours over peft, {title}: " + ", ".join(f"{ratio:.2f}" for ratio in ratios) + " (asked: 1.3)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model in our format; default: random weights")
    parser.add_argument("--layers", type=int, default=30, help="of random weights")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--names", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(folder: Path, name: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "bench.lora", "--contestant", name, "--folder", str(folder)]
    for key in ("rows", "seq_len", "steps"):
        command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    answer = subprocess.run(command, env=os.environ | threads, capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        raise SystemExit(f"{name} failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def write_models(folder: Path, model: Path | None, n_layers: int) -> None:
    """folder/ours and folder/theirs with the same weights."""
    from model.hf.files import write_folder
    from model.network.decoder import new_decoder
    from model.network.registry import describe, load_decoder, save_model
    from model.network.shape import DecoderConfig, switches_of

    switches = switches_of("llama") | {"norm_eps": 1e-5, "tie_embeddings": True}
    shape = {"n_layers": n_layers, "n_heads": 9, "n_kv_heads": 3, "d_model": 576, "d_head": 64, "d_ff": 1536}
    cfg = DecoderConfig(vocab_size=49_152, max_seq_len=8192, rope_theta=1e5, **shape, **switches)
    decoder = load_decoder(model) if model is not None else new_decoder(cfg, seed=0)
    (folder / "ours").mkdir()
    save_model(folder / "ours", decoder, describe(decoder.cfg))
    write_folder(folder / "theirs", decoder)


def batch_of(step: int, args: argparse.Namespace, vocab_size: int):
    """Ids and one more of each row, (B, T + 1)."""
    import torch

    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, vocab_size, (args.rows, args.seq_len + 1), generator=generator)


class Clock:
    """Seconds and CPU seconds between calls of `tick`, and the peak of memory."""

    def __init__(self) -> None:
        self.seconds, self.cpu, self.last = [], [], (time.perf_counter(), time.process_time())

    def tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds.append(now[0] - self.last[0])
        self.cpu.append(now[1] - self.last[1])
        self.last = now

    def result(self, losses: list[float]) -> dict:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": self.seconds, "cpu": self.cpu, "peak": peak, "losses": losses}


def ours(args: argparse.Namespace) -> dict:
    from model.network.lora import add_lora
    from model.network.lora_config import LoraConfig
    from model.network.registry import load_decoder
    from model.training.config import TrainConfig
    from model.training.step import new_state, train_step

    decoder = load_decoder(args.folder / "ours").train()
    if args.contestant == "lora":
        add_lora(decoder, LoraConfig(rank=RANK, alpha=ALPHA), seed=0)
    train = TrainConfig(
        n_steps=args.steps, rows=args.rows, seq_len=args.seq_len, micro_batch=args.rows, muon_lr=None,
        adamw_lr=LEARNING_RATE, schedule="linear", decay_fraction=0.0, warmup_fraction=0.0, beta2=0.999,
    )  # fmt: skip
    state, losses, clock = new_state(decoder, train), [], Clock()
    for step in range(args.steps):
        ids = batch_of(step, args, decoder.cfg.vocab_size)
        report = train_step(state, {"ids_BT": ids[:, :-1], "targets_BT": ids[:, 1:]}, train)
        losses.append(float(report.loss))
        clock.tick()
    return clock.result(losses)


def theirs(args: argparse.Namespace) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    theirs = AutoModelForCausalLM.from_pretrained(args.folder / "theirs", dtype=torch.float32)
    cfg = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft_model, clock = get_peft_model(theirs, cfg), Clock()
    # Row r of step s predicts the token after each of its ids; the last one is not read by the model, as in ours.
    batches = [batch_of(step, args, theirs.config.vocab_size) for step in range(args.steps)]
    rows = [
        {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]} for batch in batches for row in batch
    ]

    class Ticks(TrainerCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            clock.tick()

    settings = TrainingArguments(
        output_dir=str(args.folder / "trainer"), max_steps=args.steps, per_device_train_batch_size=args.rows,
        learning_rate=LEARNING_RATE, lr_scheduler_type="linear", use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="sequential",
        weight_decay=0.0, max_grad_norm=1.0, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(peft_model, settings, train_dataset=rows, callbacks=[Ticks()])  # type: ignore[arg-type]
    clock.last = time.perf_counter(), time.process_time()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return clock.result(losses)


if __name__ == "__main__":
    main()
