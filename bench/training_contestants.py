"""One contestant of bench/training.py in a process of its own: trains at a given shape, prints step times as JSON.

In: a folder that `write_data` filled, a contestant and a shape by name. Out: one line of JSON: seconds of every step,
parameters, and for ours how many of them went into data, reports and checkpoints. All train in float32 on the same
made-up tokens: speed does not depend on what they say. nanoGPT's is its own train.py, run in a folder of links to it.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCAB_SIZE = 65  # characters of tinyshakespeare
N_TOKENS = 400_000
NANOGPT_LINE = re.compile(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    n_layers: int
    n_heads: int
    d_model: int
    seq_len: int
    rows: int


SHAPES = {
    "cpu-recipe": Shape(n_layers=4, n_heads=4, d_model=128, seq_len=64, rows=12),
    "10m": Shape(n_layers=6, n_heads=6, d_model=384, seq_len=256, rows=12),
    "tiny": Shape(n_layers=2, n_heads=2, d_model=16, seq_len=16, rows=4),
}


def write_data(folder: Path, seed: int = 0) -> None:
    """The same tokens as nanoGPT's train.bin and as one of our shards, with documents of 1,000 tokens."""
    from model.data.token_shards import write_token_shard

    tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, N_TOKENS).astype(np.uint16)
    dataset = folder / "data" / "shakespeare_char"
    dataset.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        tokens.tofile(dataset / name)
    (dataset / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCAB_SIZE}))
    texts = np.split(tokens, range(1000, N_TOKENS, 1000))
    names = [f"document-{i}" for i in range(len(texts))]
    write_token_shard(folder / "tokens.arrow", names, [len(t) for t in texts], texts, vocab_size=VOCAB_SIZE)


def ours(folder: Path, shape: Shape, n_steps: int, *, gpt2: bool, muon: bool, compiled: bool = False) -> dict:
    """Our model/training/run.py with all that it does for every step; one checkpoint in the middle, one
    at the end."""
    import model.training.run
    from model.data.batches import TokenBatches
    from model.data.token_shards import read_token_shard
    from model.network.decoder import new_decoder
    from model.network.registry import describe
    from model.network.size import n_parameters
    from model.training.config import TrainConfig

    decoder = our_decoder(shape, gpt2)
    train = TrainConfig(
        n_steps=n_steps,
        rows=shape.rows,
        seq_len=shape.seq_len,
        micro_batch=shape.rows,
        compile=compiled,
        muon_lr=0.02 if muon else None,
        adamw_lr=1e-3,
        checkpoint_every=max(1, n_steps // 2),
        validate_every=n_steps,
    )
    shards = [read_token_shard(folder / "tokens.arrow")]
    batches = TimedBatches(TokenBatches(shards, rows=shape.rows, seq_len=shape.seq_len, seed=0))
    job = model.training.run.Job(
        model=new_decoder(decoder, 0), cfg=train, description=describe(decoder), batches=batches
    )
    clock = Clock()
    plain_fit, model.training.run.fit = model.training.run.fit, clock.fit
    try:
        model.training.run.run(folder / f"run-{os.getpid()}", job, Silent())
    finally:
        model.training.run.fit = plain_fit
    parts = {"data": batches.seconds, "report": clock.report_seconds, "save": clock.save_seconds}
    return {"seconds": clock.seconds(), "parameters": n_parameters(decoder), **parts}


def our_decoder(shape: Shape, gpt2: bool):
    from model.network.shape import DecoderConfig
    from model.training.presets import d_ff_of

    as_gpt2 = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "mlp": "gelu_tanh"} if gpt2 else {}
    return DecoderConfig(
        vocab_size=VOCAB_SIZE,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        d_model=shape.d_model,
        d_head=shape.d_model // shape.n_heads,
        d_ff=4 * shape.d_model if gpt2 else d_ff_of(shape.d_model),
        max_seq_len=shape.seq_len,
        tie_embeddings=True,
        **as_gpt2,
    )


class TimedBatches:
    """Batches that add up how long they take to make."""

    def __init__(self, batches) -> None:
        self.batches, self.seconds = batches, 0.0

    def batch(self, *which):
        start = time.perf_counter()
        made = self.batches.batch(*which)
        self.seconds += time.perf_counter() - start
        return made

    def __getattr__(self, name: str):
        return getattr(self.batches, name)


class Clock:
    """Stands between run and fit: when each step was reported, and how long reports and checkpoints took."""

    def __init__(self) -> None:
        self.times, self.report_seconds, self.save_seconds, self.pauses = [], 0.0, 0.0, {}

    def fit(self, *arguments, report: Callable, save: Callable, **others) -> None:
        from model.training.loop import fit

        def timed_report(step, values) -> None:
            start = time.perf_counter()
            report(step, values)
            self.times.append(time.perf_counter())
            self.report_seconds += self.times[-1] - start

        def timed_save():
            start = time.perf_counter()
            made = save()
            self.pauses[len(self.times)] = time.perf_counter() - start
            self.save_seconds += self.pauses[len(self.times)]
            return made

        fit(*arguments, report=timed_report, save=timed_save, **others)

    def seconds(self) -> list[float]:
        """Between one step's report and the next, without the checkpoints between them."""
        gaps = np.diff(self.times)
        return [float(gap) - self.pauses.get(i + 1, 0.0) for i, gap in enumerate(gaps)]


class Silent:
    def metrics(self, step, values) -> None: ...
    def checkpoint(self, path, step, values) -> None: ...


def nanogpt(folder: Path, shape: Shape, n_steps: int, source: Path) -> dict:
    """Its train.py, started as its README says for a CPU; the times are those that it prints."""
    for name in ("train.py", "model.py", "configurator.py", "config"):
        if not (folder / name).exists():
            (folder / name).symlink_to(source.resolve() / name)
    flags = {
        "device": "cpu", "compile": False, "eval_iters": 1, "eval_interval": 10**9, "log_interval": 1,
        "block_size": shape.seq_len, "batch_size": shape.rows, "n_layer": shape.n_layers, "n_head": shape.n_heads,
        "n_embd": shape.d_model, "max_iters": n_steps, "lr_decay_iters": n_steps, "dropout": 0.0,
    }  # fmt: skip
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    answer = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        raise SystemExit(f"nanoGPT's train.py failed:\n{answer.stderr[-2000:]}")
    n_parameters = re.search(r"number of parameters: ([\d.]+)M", answer.stdout)
    seconds = [float(ms) / 1e3 for ms in NANOGPT_LINE.findall(answer.stdout)]
    return {"seconds": seconds, "parameters": 1e6 * float(n_parameters[1]) if n_parameters else 0.0}


def trainer(folder: Path, shape: Shape, n_steps: int, *, gpt2: bool) -> dict:
    """transformers' Trainer with its default optimiser; it neither logs nor saves."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    common = {"vocab_size": VOCAB_SIZE, "tie_word_embeddings": True}
    if gpt2:
        config = transformers.GPT2Config(
            n_layer=shape.n_layers, n_head=shape.n_heads, n_embd=shape.d_model, n_positions=shape.seq_len,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
        )  # fmt: skip
        network = transformers.GPT2LMHeadModel(config)
    else:
        from model.training.presets import d_ff_of

        config = transformers.Qwen3Config(
            num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_heads,
            hidden_size=shape.d_model, head_dim=shape.d_model // shape.n_heads,
            intermediate_size=d_ff_of(shape.d_model), max_position_embeddings=shape.seq_len, **common,
        )  # fmt: skip
        network = transformers.Qwen3ForCausalLM(config)
    tokens = np.fromfile(folder / "data" / "shakespeare_char" / "train.bin", dtype=np.uint16).astype(np.int64)
    n_rows = len(tokens) // shape.seq_len
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(tokens).split(shape.seq_len)[:n_rows]]
    times: list[float] = []

    class Times(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            times.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=shape.rows, max_steps=n_steps,
        logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, learning_rate=1e-3,
    )  # fmt: skip
    transformers.Trainer(model=network, args=arguments, train_dataset=rows, callbacks=[Times()]).train()  # type: ignore
    return {"seconds": np.diff(times).tolist(), "parameters": network.num_parameters()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("contestant", choices=[*CONTESTANTS, "nanogpt"])
    parser.add_argument("--shape", choices=SHAPES, default="cpu-recipe")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--nanogpt", type=Path, help="folder with nanoGPT's train.py")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.contestant == "nanogpt":
        result = nanogpt(args.folder, shape, args.steps, args.nanogpt)
    else:
        result = CONTESTANTS[args.contestant](args.folder, shape, args.steps)
    print(json.dumps(result))


CONTESTANTS: dict[str, Callable[[Path, Shape, int], dict]] = {
    "ours-gpt2": lambda *given: ours(*given, gpt2=True, muon=False),
    "ours-qwen3": lambda *given: ours(*given, gpt2=False, muon=False),
    "ours-muon": lambda *given: ours(*given, gpt2=False, muon=True),
    "ours-compiled": lambda *given: ours(*given, gpt2=False, muon=False, compiled=True),
    "trainer-qwen3": lambda *given: trainer(*given, gpt2=False),
    "trainer-gpt2": lambda *given: trainer(*given, gpt2=True),
}

if __name__ == "__main__":
    main()
