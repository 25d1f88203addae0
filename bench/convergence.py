"""Bits per byte for tokens and seconds, beside nanoGPT: trials of our settings, and a duel over seeds.

In: a text (--data FILE for one character a token, or --shards DIR of token shards) and, for the peer, --nanogpt DIR,
a checkout whose model.py is imported by its path (a duel without it says so and does nothing). Out: a JSON line per
run in --out, and markdown tables of them, printed.

    python -m bench.convergence trials --data FILE --out RUNS --trial muon_lr=0.02 --trial muon_lr=0.04,n_steps=600
    python -m bench.convergence duel   --data FILE --nanogpt DIR --out RUNS --seeds 3 --trial n_steps=1300
    python -m bench.convergence table  --out RUNS

Both models see the same number of tokens per step and have the same number of parameters to 1 %. Both are judged by
model.evaluate.document_losses over the same windows, which do not overlap. In a duel the two train in turns, a
hundredth of their steps each, so that what else the machine does falls on both; evaluation and the making of the
models are not timed. A run whose line is in RUNS is not made again.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.data.batches import token_batches
from model.data.token_shards import (
    TokenShard,
    read_description,
    read_token_shard,
    read_token_shards,
    write_token_shard,
)
from model.evaluate import document_losses
from model.network.decoder import new_decoder
from model.network.shape import DecoderShape
from model.training.config import TrainConfig
from model.training.presets import from_depth
from model.training.step import new_state, train_step

TURNS = 100  # turns that a training is cut into, when it shares the core with another
RESULTS = {"parameters", "tokens", "seconds", "bits_per_byte", "bits_per_byte_averaged", "threads"}

# nanoGPT's README, "I only have a macbook": 4 layers, 4 heads, 128 wide, context 64, batch 12; ours has a gated
# feed-forward of 336 instead of 512 (three matrices, not two) and no vectors for positions, so that sizes agree.
CHARACTERS = (
    DecoderShape(n_layers=4, n_heads=4, n_kv_heads=4, d_model=128, d_head=32, d_ff=336, max_seq_len=64),
    TrainConfig(n_steps=1300, rows=12, seq_len=64, micro_batch=12),
)
# the same width and depth on the default corpus, 1,024 tokens per step
WORDS = (
    DecoderShape(
        n_layers=4, n_heads=4, n_kv_heads=4, d_model=128, d_head=32, d_ff=344, max_seq_len=128, tie_embeddings=True
    ),
    TrainConfig(n_steps=1300, rows=8, seq_len=128, micro_batch=8),
)
# what nanoGPT's CPU recipe sets (config/train_shakespeare_char.py and the flags of the README)
NANOGPT = {
    "n_steps": 2000,
    "learning_rate": 1e-3,
    "final_lr_fraction": 0.1,
    "warmup": 100,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 0.1,
    "clip": 1.0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """What both are trained and judged on."""

    name: str
    vocab_size: int
    train: list[TokenShard]
    held_out: list[TokenShard]
    base: tuple[DecoderShape, TrainConfig]


@dataclasses.dataclass(slots=True)
class Run:
    """One training in progress: `step()` does one update; `model` has what document_losses needs."""

    settings: dict[str, Any]
    model: nn.Module
    n_steps: int
    tokens_per_step: int
    step: Callable[[], object]
    averaged: nn.Module | None = None  # a running mean of the model's weights, where one was asked for
    seconds: float = 0.0
    done: int = 0

    def turn(self) -> bool:
        """A hundredth of the steps, timed. True while some are left."""
        start = time.perf_counter()
        for _ in range(min(-(-self.n_steps // TURNS), self.n_steps - self.done)):
            self.step()
            self.done += 1
        self.seconds += time.perf_counter() - start
        return self.done < self.n_steps

    def result(self, text: Text) -> dict[str, Any]:
        values = {"bits_per_byte": bits_per_byte(self.model, text)}
        if self.averaged is not None:
            values["bits_per_byte_averaged"] = bits_per_byte(self.averaged, text)
        return {
            "text": text.name,
            **self.settings,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "tokens": self.done * self.tokens_per_step,
            "seconds": round(self.seconds, 2),
            **values,
        }


def bits_per_byte(model: nn.Module, text: Text) -> float:
    losses = document_losses(model.eval(), text.held_out, stride=model.cfg.max_seq_len)  # type: ignore[arg-type,union-attr]
    return round(losses.bits_per_byte, 5)


def characters(path: Path, folder: Path) -> Text:
    """A text file, one token a character, the last tenth held out: nanoGPT's data/shakespeare_char."""
    text = path.read_text("utf-8")
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = np.array([alphabet[c] for c in text], np.uint16)
    cut = int(0.9 * len(text))
    for name, part in (("train", slice(0, cut)), ("held_out", slice(cut, None))):
        n_bytes = [len(text[part].encode())]
        write_token_shard(folder / f"{name}.arrow", [name], n_bytes, [ids[part]], len(alphabet))
    shards = [[read_token_shard(folder / f"{name}.arrow")] for name in ("train", "held_out")]
    return Text(path.stem, len(alphabet), *shards, base=CHARACTERS)


def words(folder: Path) -> Text:
    """Token shards of a corpus; the documents of its validation and test splits are held out."""
    vocab_size = read_description(folder)["vocab_size"]
    held_out = [shard for split in ("validation", "test") for shard in read_token_shards(folder, split)]
    return Text("corpus", vocab_size, read_token_shards(folder, "train"), held_out, base=WORDS)


def ours(text: Text, changes: Mapping[str, Any]) -> Run:
    """Our decoder and engine, with `changes` to the base's shape and training; `depth` makes the dial the base."""
    names = {"seed", "duel", "ema", "depth"} | {
        field.name for part in text.base for field in dataclasses.fields(part)
    }
    if unknown := sorted(changes.keys() - names):
        raise ValueError(f"--trial: {unknown[0]} is not a field of DecoderShape or TrainConfig, nor ema or depth")
    preset = from_depth(changes["depth"]) if "depth" in changes else None
    base = (preset.shape, preset.train) if preset is not None else text.base
    shape, train = (_replaced(part, changes) for part in base)
    model = new_decoder(shape.with_vocab(text.vocab_size), train.seed)
    state = new_state(model, train)
    batches = token_batches(text.train, train)
    averaged = new_decoder(shape.with_vocab(text.vocab_size), train.seed) if "ema" in changes else None

    @torch.no_grad()
    def step() -> None:
        with torch.enable_grad():
            train_step(state, batches.batch(state.step), train)
        if averaged is not None:
            decay = min(changes["ema"], state.step / (state.step + 9))  # the first weights count little
            for mean_weight, weight in zip(averaged.parameters(), model.parameters(), strict=True):
                mean_weight.lerp_(weight, 1 - decay)

    settings = {"model": "ours", **changes}
    return Run(settings, model, train.n_steps, train.tokens_per_step, step, averaged)


def _replaced(config: Any, changes: Mapping[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if name in names})


class Peer(nn.Module):
    """nanoGPT's GPT under the names that document_losses reads."""

    def __init__(self, gpt: Any) -> None:
        super().__init__()
        self.gpt = gpt
        self.lm_head = gpt.lm_head
        self.cfg = argparse.Namespace(max_seq_len=gpt.config.block_size, vocab_size=gpt.config.vocab_size)

    def trunk(self, ids_BT: Tensor) -> Tensor:
        parts = self.gpt.transformer
        x_BTD = parts.wte(ids_BT) + parts.wpe(torch.arange(ids_BT.size(1)))
        for block in parts.h:
            x_BTD = block(x_BTD)
        return parts.ln_f(x_BTD)


def nanogpt(checkout: Path, text: Text, changes: Mapping[str, Any]) -> Run:
    """The peer's model and its AdamW, random crops, cosine schedule; the loop of its train.py without its extras."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    shape, train = text.base
    recipe = NANOGPT | {name: value for name, value in changes.items() if name in NANOGPT}
    seed = changes.get("seed", 0)
    torch.manual_seed(seed)
    sizes = {"n_layer": shape.n_layers, "n_head": shape.n_heads, "n_embd": shape.d_model}
    config = module.GPTConfig(block_size=train.seq_len, vocab_size=text.vocab_size, bias=False, dropout=0.0, **sizes)
    gpt = module.GPT(config)
    betas = recipe["beta1"], recipe["beta2"]
    optimizer = gpt.configure_optimizers(recipe["weight_decay"], recipe["learning_rate"], betas, "cpu")
    tokens = np.concatenate([shard.tokens for shard in text.train]).astype(np.int64)
    crops, rates = np.random.default_rng(seed), cosine_rates(recipe)

    def step() -> None:
        starts = crops.integers(0, len(tokens) - train.seq_len - 1, size=train.rows)
        rows = torch.from_numpy(np.stack([tokens[start : start + train.seq_len + 1] for start in starts]))
        for group in optimizer.param_groups:
            group["lr"] = next(rates) if group is optimizer.param_groups[0] else optimizer.param_groups[0]["lr"]
        _, loss = gpt(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), recipe["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Run({"model": "nanoGPT", **changes}, Peer(gpt), recipe["n_steps"], train.tokens_per_step, step)


def cosine_rates(recipe: Mapping[str, Any]) -> Iterator[float]:
    """Learning rates by step: linear warm-up, half a cosine to the final fraction at n_steps."""
    peak, low = recipe["learning_rate"], recipe["learning_rate"] * recipe["final_lr_fraction"]
    for step in range(recipe["n_steps"]):
        if step < recipe["warmup"]:
            yield peak * (step + 1) / (recipe["warmup"] + 1)
        else:
            done = (step - recipe["warmup"]) / (recipe["n_steps"] - recipe["warmup"])
            yield low + 0.5 * (1 + math.cos(math.pi * done)) * (peak - low)


def race(text: Text, runs: list[Run], out: Path) -> None:
    """Train `runs` in turns and write a line for each."""
    waiting = list(runs)
    while waiting:
        waiting = [run for run in waiting if run.turn()]
    with out.open("a", encoding="utf-8") as lines:
        for run in runs:
            line = json.dumps({**run.result(text), "threads": torch.get_num_threads()})
            lines.write(line + "\n")
            print(line, flush=True)


def read_runs(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []


def settings_of(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name not in RESULTS}


def parsed_changes(trial: str) -> dict[str, Any]:
    """`a=1,b=none,c=relu2` as a dict; values are JSON where they can be."""
    changes = {}
    for part in filter(None, trial.split(",")):
        name, _, value = part.partition("=")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = None if value == "none" else value
    return changes


def trials(text: Text, args: argparse.Namespace) -> None:
    """One run for every trial and seed that is not in the file yet."""
    for trial in args.trial:
        for seed in range(args.seeds):
            run = started(text, args, parsed_changes(trial) | {"seed": seed})
            if {"text": text.name, **run.settings} not in map(settings_of, read_runs(args.out)):
                race(text, [run], args.out)


def duel(text: Text, args: argparse.Namespace) -> None:
    """For every seed: the peer and the trials, in turns."""
    if args.nanogpt is None:
        print("skipped: a duel needs --nanogpt, a checkout of nanoGPT")
        return
    for seed in range(args.seeds):
        entries = [{"model": "nanoGPT"} | parsed_changes(args.peer), *map(parsed_changes, args.trial)]
        race(text, [started(text, args, entry | {"seed": seed, "duel": True}) for entry in entries], args.out)


def started(text: Text, args: argparse.Namespace, changes: dict[str, Any]) -> Run:
    kind = changes.pop("model", "ours")
    return ours(text, changes) if kind == "ours" else nanogpt(args.nanogpt, text, changes)


def print_tables(runs: list[dict[str, Any]]) -> None:
    """Runs that differ in their seed alone are one row; duels first, beside their peer."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        key = {name: value for name, value in settings_of(run).items() if name != "seed"}
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    for is_duel in (True, False):
        chosen = [group for group in groups.values() if ("duel" in group[0]) == is_duel]
        print("\n| text | model | settings | parameters | tokens | seconds | bits per byte | averaged | seeds |")
        print("|---|---|---|---:|---:|---:|---:|---:|---:|")
        for group in sorted(chosen, key=lambda group: (group[0]["text"], mean_of(group, "bits_per_byte"))):
            print(row(group))
        for text in sorted({group[0]["text"] for group in chosen}) if is_duel else ():
            compare([group for group in chosen if group[0]["text"] == text])


def mean_of(group: list[dict[str, Any]], name: str) -> float:
    return mean(run[name] for run in group)


def row(group: list[dict[str, Any]]) -> str:
    one = group[0]
    hidden = RESULTS | {"text", "model", "seed", "duel"}
    settings = ", ".join(f"{name}={value}" for name, value in one.items() if name not in hidden)
    averaged = spread(group, "bits_per_byte_averaged") if "bits_per_byte_averaged" in one else ""
    return (
        f"| {one['text']} | {one['model']} | {settings} | {one['parameters']:,} | {one['tokens']:,} |"
        f" {mean_of(group, 'seconds'):.1f} | {spread(group, 'bits_per_byte')} | {averaged} | {len(group)} |"
    )


def spread(group: list[dict[str, Any]], name: str) -> str:
    """Mean over the seeds, and standard deviation where there are several."""
    values = [run[name] for run in group]
    return f"{mean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")


def compare(groups: list[list[dict[str, Any]]]) -> None:
    """Tokens and seconds of ours as a share of the peer's, and by how many bits ours is better."""
    (peer,) = (group for group in groups if group[0]["model"] == "nanoGPT")
    for group in groups:
        if group is not peer:
            tokens = mean_of(group, "tokens") / mean_of(peer, "tokens")
            seconds = [a["seconds"] / b["seconds"] for a, b in zip(group, peer, strict=True)]
            gain = [b["bits_per_byte"] - a["bits_per_byte"] for a, b in zip(group, peer, strict=True)]
            print(
                f"\n{group[0]['text']}: {tokens:.2f} of the peer's tokens; seed by seed {min(seconds):.2f} to"
                f" {max(seconds):.2f} of its seconds and {min(gain):+.4f} to {max(gain):+.4f} bits per byte better"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("trials", "duel", "table"))
    parser.add_argument("--data", type=Path, help="text file, one token a character")
    parser.add_argument("--shards", type=Path, help="folder of token shards")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, a run each")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--trial", action="append", help="field=value,... of DecoderShape and TrainConfig; depth, ema"
    )
    parser.add_argument("--peer", default="", help="the same for the peer of a duel, of NANOGPT's names")
    args = parser.parse_args()
    args.trial = args.trial or [""]
    torch.set_num_threads(args.threads)
    if args.command != "table":
        if (args.data is None) == (args.shards is None):
            parser.error("give --data or --shards")
        with tempfile.TemporaryDirectory() as folder:
            text = characters(args.data, Path(folder)) if args.data else words(args.shards)
            {"trials": trials, "duel": duel}[args.command](text, args)
    print_tables(read_runs(args.out))


if __name__ == "__main__":
    main()
