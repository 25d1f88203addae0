"""Steps of fine-tuning an encoder: ours beside plain transformers code, and what padding and the optimizer cost.

In: a folder with the data sets (--data), the encoder as a folder of ours (--base) and of Hugging Face (--hf). Out:
JSON with the processor seconds per 1,000 examples and the padding of both, and the milliseconds of one update by each
of torch's forms of AdamW.

Both train all weights with AdamW on batches of the same number of rows in float32 on one thread, ours as
model/training does it. The reference draws its batches at random and pads each to its longest text, as a Trainer with
DataCollatorWithPadding. Blocks of steps alternate, so that other processes disturb both alike.

    python -m bench.task_steps --data DIR --base DIR --hf DIR [--rows 32] [--steps 40]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine
from model.data.examples import EncodedExamples, ExampleBatches, encoded
from model.data.tokenizer import load_model_tokenizer
from model.network.heads import classifier_from
from model.network.registry import load_base_network
from model.training.config import TrainConfig
from model.training.loss import classification_loss
from model.training.step import new_state, train_step

BLOCK = 10  # steps of one contestant before the other's turn
RATE = 5e-5


def rows_of(data: Path) -> tuple[list[str], np.ndarray]:
    lines = (data / "sst2_train.txt").read_text("utf-8").splitlines()
    labels, texts = zip(*(line.split(" ", 1) for line in lines if line), strict=True)
    return list(texts), np.array(labels, np.int64)


def ours(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """One step at a time; yields its tokens and the positions that passed through the model."""
    base = load_base_network(args.base)
    texts, labels = rows_of(args.data)
    tokens, _ = encoded(load_model_tokenizer(args.base, base.cfg.vocab_size), texts, 512)
    batches = ExampleBatches(
        EncodedExamples(list(map(str, labels)), tokens, {"labels_B": labels}), rows=args.rows, seed=0
    )
    cfg = TrainConfig(n_steps=10**6, rows=args.rows, seq_len=1, muon_lr=None, adamw_lr=RATE)
    state = new_state(classifier_from(base, 2, seed=0), cfg)
    for k in range(args.steps):
        batch = batches.batch(k)
        train_step(state, batch, cfg, classification_loss, batches.n_rows(k))
        yield int(batch["lengths_B"].sum()), batch["ids_BT"].numel()


def reference(args: argparse.Namespace) -> Iterator[tuple[int, int]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    tokenizer = AutoTokenizer.from_pretrained(args.hf)
    model = AutoModelForSequenceClassification.from_pretrained(args.hf, num_labels=2).train()
    texts, labels = rows_of(args.data)
    encodings = tokenizer(texts, truncation=True, padding=False)
    rows = [
        {"input_ids": ids, "labels": int(label)} for ids, label in zip(encodings["input_ids"], labels, strict=True)
    ]
    collate, optimizer = DataCollatorWithPadding(tokenizer), torch.optim.AdamW(model.parameters(), lr=RATE)
    order = np.random.default_rng(0).permutation(len(rows))
    for k in range(args.steps):
        batch = collate([rows[place] for place in order[k * args.rows : (k + 1) * args.rows]])
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield int(batch["attention_mask"].sum()), batch["input_ids"].numel()


def measured(args: argparse.Namespace) -> dict[str, Any]:
    contestants: dict[str, Callable[[argparse.Namespace], Iterator[tuple[int, int]]]] = {
        "ours": ours, "reference": reference
    }  # fmt: skip
    running = {name: start(args) for name, start in contestants.items()}
    for steps in running.values():
        next(steps)  # loads the model and makes the first allocations
    totals = {name: np.zeros(3) for name in running}
    for _ in range((args.steps - 1) // BLOCK):
        for name, steps in running.items():
            for _ in range(BLOCK):
                started = time.process_time()
                n_tokens, n_cells = next(steps)
                totals[name] += (time.process_time() - started, n_tokens, n_cells)
    n_examples = (args.steps - 1) // BLOCK * BLOCK * args.rows
    found = {
        name: {"seconds_per_1000": 1000 * seconds / n_examples, "tokens_per_second": n_tokens / seconds,
               "padding": 1 - n_tokens / n_cells}
        for name, (seconds, n_tokens, n_cells) in totals.items()
    }  # fmt: skip
    faster = found["reference"]["seconds_per_1000"] / found["ours"]["seconds_per_1000"]
    return {"rows": args.rows, "steps": args.steps, **found, "times_as_fast": faster}


def update_milliseconds(base: Path) -> dict[str, float]:
    """One update of all weights of the encoder, by each form of torch's AdamW; the median of ten."""
    model = classifier_from(load_base_network(base), 2, seed=0)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    forms: dict[str, dict[str, Any]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "default": {}}
    return {name: _median(torch.optim.AdamW(model.parameters(), lr=1e-6, **form)) for name, form in forms.items()}


def _median(optimizer: torch.optim.Optimizer) -> float:
    seconds = []
    for _ in range(11):
        started = time.process_time()
        optimizer.step()
        seconds.append(time.process_time() - started)
    return 1000 * float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("--data", "--base", "--hf"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=41)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {**measured(args), "update_ms": update_milliseconds(args.base), "machine": machine(1)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
