"""The contestants of `bench.instruction --part speed`, each in a process of its own, and the turns that they take.

In: the same conversations in the same order. Out: processor seconds per token of a training step of ours and of TRL's
SFTTrainer, whose Python is that of another environment: this file imports nothing of ours there. A contestant loads
its model, and then makes as many steps as each line that it reads asks for, and answers with what they took.

Both train all weights in float32 with AdamW, with a loss on answers alone, and without computing layers twice. With
--no-packing a step of both has the same conversations: TRL pads them to the longest, ours puts short ones side by
side; the first losses of both must be equal. With --packing a step of TRL is one row of 512 tokens.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

STEPS = 3  # of a turn
TURNS = 4  # after one that is not counted
RATE = 1e-5
LONGEST = 512  # tokens of a row of TRL's


def measured_in_turns(args: argparse.Namespace) -> None:
    rows = json.loads((args.data / "instructions.json").read_text("utf-8"))
    pairs = [["\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]] for row in rows]
    shared = {"pairs": pairs, "rows": args.rows, "packing": args.packing, "threads": args.threads}
    pythons = {"ours": sys.executable, "trl": str(args.peer)}
    contestants = {
        name: Contestant(python, name, {**shared, "folder": str(folder)})
        for (name, python), folder in zip(pythons.items(), (args.base, args.hf), strict=True)
    }
    turns: dict[str, list[dict]] = {name: [] for name in contestants}
    for _ in range(TURNS + 1):
        for name, contestant in contestants.items():
            turns[name].append(contestant.turn())
    first = {name: one[0]["losses"][0] for name, one in turns.items()}
    print(f"{args.rows} conversations a step, {args.threads} threads, float32, AdamW, all weights; TRL"
          f" {'packs' if args.packing else 'pads'}. First losses: {first}\n")  # fmt: skip
    print("| | tokens of a step | positions of a step | CPU s a step | ms per token |\n|---|---:|---:|---:|---:|")
    for name, counted in turns.items():
        tokens, cells, cpu = (
            sum(one[key] for one in counted[1:]) / STEPS / TURNS for key in ("tokens", "cells", "cpu")
        )
        print(f"| {name} | {tokens:,.0f} | {cells:,.0f} | {cpu:.2f} | {1000 * cpu / tokens:.2f} |")
    ratios = [
        theirs["cpu"] / theirs["tokens"] / (own["cpu"] / own["tokens"])
        for own, theirs in zip(turns["ours"][1:], turns["trl"][1:], strict=True)
    ]
    print(f"\nOurs over TRL, by turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {median(ratios):.2f}")
    if not args.packing:
        assert abs(first["ours"] - first["trl"]) < 2e-3, "the contestants do not learn the same"


class Contestant:
    def __init__(self, python: str, name: str, task: dict) -> None:
        self.process = subprocess.Popen(
            [python, str(Path(__file__)), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self._say(json.dumps(task))
        assert self._answer() == "ready"

    def turn(self) -> dict:
        self._say(str(STEPS))
        return self._answer()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> "dict | str":
        """Its next line of JSON; a trainer may print others."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise SystemExit(f"a contestant ended with exit code {self.process.wait()}")


class Turns:
    """Waits for turns, and answers after as many steps as were asked for. In the process of a contestant."""

    def __init__(self) -> None:
        self.say("ready")
        self.wait()

    def say(self, what: object) -> None:
        print("ANSWER " + json.dumps(what), flush=True)

    def wait(self) -> None:
        line = sys.stdin.readline()
        if not line:  # nobody asks any more
            raise SystemExit
        self.n_left = int(line)
        self.found = {"tokens": 0, "cells": 0, "losses": []}
        self.started = time.process_time()

    def step(self, tokens: int, cells: int, loss: float) -> None:
        self.found["tokens"] += tokens
        self.found["cells"] += cells
        self.found["losses"].append(loss)
        self.n_left -= 1
        if not self.n_left:
            self.say({**self.found, "cpu": time.process_time() - self.started})
            self.wait()


def ours(task: dict) -> None:
    import torch

    from model.data.chat import Message, load_chat_template
    from model.data.conversations import ROOM_ON_CPU, packed_rows
    from model.data.tokenizer import TOKENIZER
    from model.training.config import TrainConfig
    from model.training.finetuning import load_base
    from model.training.step import new_state, train_step

    torch.set_num_threads(task["threads"])
    base = load_base(Path(task["folder"]))
    template = load_chat_template(base.tokenizer, base.directory / TOKENIZER)
    rendered = template.rendered([(Message("user", a), Message("assistant", b)) for a, b in task["pairs"]])
    cfg = TrainConfig(n_steps=10**6, rows=task["rows"], seq_len=1, muon_lr=None, adamw_lr=RATE)
    for one in rendered:
        one.is_supervised[-1] = True  # the line end behind the end of the turn, which TRL supervises, too
    state, turns = new_state(base.network.train(), cfg), Turns()
    for step in range(10**6):
        chosen = [rendered[place % len(rendered)] for place in range(step * task["rows"], (step + 1) * task["rows"])]
        batch = packed_rows(chosen, room=ROOM_ON_CPU)
        report = train_step(state, batch, cfg)
        turns.step(sum(len(one.ids) - 1 for one in chosen), batch["ids_BT"].numel(), float(report.loss))


def trl(task: dict) -> None:
    import tempfile

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["folder"])
    model = AutoModelForCausalLM.from_pretrained(task["folder"], dtype=torch.float32)
    rows = [
        {"prompt": [{"role": "user", "content": a}], "completion": [{"role": "assistant", "content": b}]}
        for a, b in task["pairs"]
    ]
    n_rows = 1 if task["packing"] else task["rows"]
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=10**6, per_device_train_batch_size=n_rows,
        learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0, use_cpu=True, bf16=False, report_to=[],
        save_strategy="no", logging_steps=10**6, disable_tqdm=True, dataloader_pin_memory=False, max_grad_norm=1.0,
        train_sampling_strategy="sequential", gradient_checkpointing=False, packing=task["packing"],
        max_length=LONGEST, completion_only_loss=True, shuffle_dataset=False,
    )  # fmt: skip
    seen: dict[str, torch.Tensor] = {}

    class Counting(SFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.update(inputs)
            found = super().compute_loss(model, inputs, *args, **kwargs)
            seen["loss"] = (found[0] if isinstance(found, tuple) else found).detach()
            return found

    class Steps(TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            self.turns = Turns()

        def on_step_end(self, *args, **kwargs) -> None:
            mask = seen.get("attention_mask")
            n_cells = seen["input_ids"].numel()
            n_tokens = n_cells if mask is None else int(mask.sum()) - len(mask)  # the last one is a target only
            self.turns.step(n_tokens, n_cells, float(seen["loss"]))

    data = Dataset.from_list(rows)
    Counting(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[Steps()]).train()


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        sys.path.insert(0, str(Path(__file__).parent.parent))
    {"ours": ours, "trl": trl}[sys.argv[1]](json.loads(sys.stdin.readline()))
