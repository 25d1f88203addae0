"""Masked-token training of a BERT shape: ours beside transformers' Trainer.

In: nothing; the tokens are made up, because speed does not depend on what they mean. Out: a Markdown table, printed.

Both train the same shape from random weights in float32, with AdamW, without dropout, on batches of equal size and on
the same number of threads; rows are full, and all tokens of a row attend to each other. Both do what a user gets.
Ours masks, computes, clips, updates, reports every step and writes checkpoints (model/training/pretraining.py).
Theirs is Trainer with DataCollatorForLanguageModeling and SDPA, and writes nothing. Each turn is a process of its
own, the two take turns, and a figure is the median step of the median turn. Processor time is what a step costs; wall
time depends on what else the machine does.

    python -m bench.mlm [--shape mini] [--steps 16] [--turns 3] [--threads 1]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.machine import machine

TARGET = 1.3  # times the tokens per second of transformers' Trainer
N_WARM = 4  # steps at the beginning that do not count


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    n_layers: int
    n_heads: int
    d_model: int
    seq_len: int
    rows: int
    vocab_size: int  # with the mask token, which comes last


SHAPES = {
    "mini": Shape(n_layers=4, n_heads=4, d_model=256, seq_len=128, rows=16, vocab_size=30_522),  # BERT-mini's
    "demo": Shape(n_layers=4, n_heads=4, d_model=128, seq_len=128, rows=8, vocab_size=4097),
    "tiny": Shape(n_layers=2, n_heads=2, d_model=16, seq_len=16, rows=4, vocab_size=65),
}


class Clock:
    """Wall and processor seconds of every step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def medians(self) -> tuple[float, float]:
        steps = np.diff(np.array(self.marks[N_WARM:]), axis=0)
        return float(np.median(steps[:, 0])), float(np.median(steps[:, 1]))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:  # an observer of our training
        if "loss" in values:
            self.mark()

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


def made_up_tokens(shape: Shape) -> np.ndarray:
    """Texts of 16 rows each, opened by token 0; int64 (documents, tokens)."""
    tokens = np.random.default_rng(0).integers(5, shape.vocab_size - 1, (64, 16 * shape.seq_len))
    tokens[:, 0] = 0
    return tokens


def ours(shape: Shape, n_steps: int) -> tuple[float, float, int]:
    from model.data.token_shards import DESCRIPTION, write_token_shard
    from model.network.shape import config_for
    from model.training.presets import changed, preset_of
    from model.training.pretraining import Pretraining, pretrain

    sizes = {name: getattr(shape, name) for name in ("n_layers", "n_heads", "d_model", "seq_len", "rows")}
    plan = {"n_steps": n_steps, "muon_lr": None, "adamw_lr": 1e-4, "checkpoint_every": n_steps // 2}
    plan |= {"packing": "concatenated", "document_mask": False, "micro_batch": None}
    preset = changed(preset_of("demo", "bert"), sizes | plan, "bert")
    with tempfile.TemporaryDirectory() as name:
        folder, n_tokens = Path(name), shape.vocab_size - 1
        texts = list(made_up_tokens(shape))
        for split in ("train", "validation"):
            (folder / "shards" / split).mkdir(parents=True)
        path = folder / "shards" / "train" / "0.arrow"
        write_token_shard(path, [str(i) for i in range(len(texts))], [1] * len(texts), texts, n_tokens)
        about = {"vocab_size": n_tokens, "end_of_text": 0, "tokenizer": "made up"}
        (folder / "shards" / DESCRIPTION).write_text(json.dumps(about), "utf-8")
        clock = Clock()
        plan_of_run = Pretraining(
            shards=folder / "shards", out=folder / "out", network=config_for(preset.shape, n_tokens),
            train=preset.train, made_from={},
        )  # fmt: skip
        pretrain(plan_of_run, clock)
        return *clock.medians(), plan_of_run.params()["parameters"]


def theirs(shape: Shape, n_steps: int) -> tuple[float, float, int]:
    from tokenizers import Tokenizer, models
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    words = {f"w{i}": i for i in range(1, shape.vocab_size - 1)} | {"[PAD]": 0, "[MASK]": shape.vocab_size - 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[PAD]")), pad_token="[PAD]", mask_token="[MASK]"
    )
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads, intermediate_size=4 * shape.d_model,
            max_position_embeddings=shape.seq_len, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    rows = made_up_tokens(shape).reshape(-1, shape.seq_len)
    data = [{"input_ids": rows[i % len(rows)].tolist()} for i in range(n_steps * shape.rows)]
    clock = Clock()

    class Marks(TrainerCallback):
        def on_step_end(self, *args, **named) -> None:
            clock.mark()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=n_steps, per_device_train_batch_size=shape.rows, save_strategy="no",
            report_to=[], logging_strategy="no", use_cpu=True, learning_rate=1e-4, disable_tqdm=True,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        Trainer(model, arguments, collator, data, callbacks=[Marks()]).train()  # type: ignore[arg-type]
    return *clock.medians(), sum(weight.numel() for weight in model.parameters())


CONTESTANTS = {"ours": ours, "transformers": theirs}


def turn(contestant: str, args: argparse.Namespace) -> tuple[float, float, int]:
    """The median step of one process: wall seconds, processor seconds; and parameters."""
    command = [sys.executable, "-m", "bench.mlm", "--only", contestant, "--shape", args.shape]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    out = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    wall, processor, n_parameters = json.loads(out.splitlines()[-1])
    return wall, processor, n_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.only:
        torch.set_num_threads(args.threads)
        print(json.dumps(CONTESTANTS[args.only](shape, args.steps)))
        return
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.turns):
        for name, turns in found.items():
            turns.append(turn(name, args))
    n_tokens, medians = shape.rows * shape.seq_len, {}
    print(f"{machine(args.threads)}; {args.shape}: {shape}; {args.turns} turns of {args.steps} steps\n")
    print("| contestant | parameters | tokens/s | tokens per processor second |\n|---|---:|---:|---:|")
    for name, turns in found.items():
        medians[name] = [n_tokens / statistics.median(one[i] for one in turns) for i in (0, 1)]
        print(f"| {name} | {turns[0][2]:,} | {medians[name][0]:,.0f} | {medians[name][1]:,.0f} |")
    ratios = [ours / theirs for ours, theirs in zip(medians["ours"], medians["transformers"], strict=True)]
    print(f"| ratio, asked for {TARGET} | | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
