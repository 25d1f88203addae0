"""Tokens a second of `model.generation.generate` beside transformers' `generate` with the same weights.

In: --model, a folder with a trained decoder (default: random weights only), --prompt, --tokens, --repeats. Out:
Markdown tables, printed.

- speed: the same prompts, the same number of new tokens, float32, greedy and sampled (temperature 0.8, top 50),
  with batches of 1 and of 8, in one process. Both take turns; a figure is the median of --repeats turns. Greedy text
  should be the same; the last column counts the tokens for which it is (two roundings may decide a tie differently).
- padded: the 8 prompts have lengths from a quarter of --prompt up to it.
- cache: ours with the cache and without it, greedy.
- first token: milliseconds until the first token of a row, which is the time to read the prompt.
- packing: milliseconds to pack the weights, which is paid once per model.
- peer: with --peer, only this: processor seconds of this worktree beside those of another one, in two processes that
  take turns; the figure is the median of the ratios of single turns, and greedy text must be the same.

    python -m bench.generation [--model DIR] [--prompt 64] [--tokens 64] [--repeats 9] [--peer WORKTREE]
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.machine import machine
from model.generation.decode import pack
from model.generation.generate import generate, tokens
from model.generation.sample_config import SampleConfig
from model.hf.config import config_to_hf
from model.network.decoder import Decoder
from model.network.registry import load_decoder
from model.network.shape import DecoderConfig

BATCHES = (1, 8)
TARGET = 1.5  # times the tokens per second of transformers
LARGE = {"n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_model": 512, "d_head": 64, "d_ff": 1408}
SMALL = {"n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_model": 256, "d_head": 64, "d_ff": 688}
CONFIGS = {
    "random": {"vocab_size": 8192, "max_seq_len": 512, **LARGE},
    "random, small, tied": {"vocab_size": 4096, "max_seq_len": 512, "tie_embeddings": True, **SMALL},
}
Prompts = list[list[int]]


def random_decoder(cfg: DecoderConfig) -> Decoder:
    """Weights large enough for text that varies; speed does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    model = Decoder(cfg).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=weight.size(1) ** -0.5, generator=generator)
    return model


def peer_of(model: Decoder) -> Any:
    """transformers' model with the same weights. Ours carry its names, so that strict loading checks all of them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    peer = Qwen3ForCausalLM(Qwen3Config(**config_to_hf(model.cfg))).eval()
    peer.load_state_dict(model.state_dict())
    return peer


def their_tokens(peer: Any, prompts: Prompts, cfg: SampleConfig) -> Prompts:
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sampling = {"do_sample": False}
    if cfg.temperature:
        sampling = {"do_sample": True, "temperature": cfg.temperature, "top_k": cfg.top_k}
    out_BT = peer.generate(
        ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=cfg.max_new_tokens,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
        **sampling,
    )
    return out_BT[:, longest:].tolist()


def prompts_of(n: int, length: int, vocab_size: int, *, padded: bool = False) -> Prompts:
    generator = torch.Generator().manual_seed(1)
    lengths = [max(1, length * (row + n // 3) // (n - 1 + n // 3)) if padded else length for row in range(n)]
    return [torch.randint(0, vocab_size, (size,), generator=generator).tolist() for size in lengths]


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each; one turn of all to warm up is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def n_equal(ours: Prompts, theirs: Prompts) -> int:
    """Tokens until each row first differs, added up."""
    total = 0
    for one, other in zip(ours, theirs, strict=True):
        total += next(
            (place for place, pair in enumerate(zip(one, other, strict=True)) if len({*pair}) > 1), len(one)
        )
    return total


def speed_rows(name: str, model: Decoder, args: argparse.Namespace) -> None:
    peer = peer_of(model)
    greedy = SampleConfig(max_new_tokens=args.tokens, temperature=0)
    sampled = SampleConfig(max_new_tokens=args.tokens, temperature=0.8, top_k=50)
    for batch, padded in [(1, False), (8, False), (8, True)]:
        step = pack(copy.deepcopy(model), batch)
        prompts = prompts_of(batch, args.prompt, model.cfg.vocab_size, padded=padded)
        for kind, cfg in (("greedy", greedy), ("sampled", sampled)):
            seconds = in_turns(
                {
                    "ours": lambda prompts=prompts, cfg=cfg, step=step: generate(step, prompts, cfg),
                    "theirs": lambda prompts=prompts, cfg=cfg: their_tokens(peer, prompts, cfg),
                },
                args.repeats,
            )
            n = batch * args.tokens
            same = "-"
            if kind == "greedy":
                same = f"{n_equal(generate(step, prompts, cfg), their_tokens(peer, prompts, cfg)):,} of {n:,}"
            print(
                f"| {name} | {batch}{' padded' if padded else ''} | {kind} | {n / seconds['ours']:,.0f} |"
                f" {n / seconds['theirs']:,.0f} | {seconds['theirs'] / seconds['ours']:.2f} | {same} |",
                flush=True,
            )


def cache_rows(name: str, model: Decoder, args: argparse.Namespace) -> None:
    cfg = SampleConfig(max_new_tokens=args.tokens, temperature=0)
    for batch in BATCHES:
        prompts, step = prompts_of(batch, args.prompt, model.cfg.vocab_size), pack(copy.deepcopy(model), batch)
        same = n_equal(generate(step, prompts, cfg), generate(model, prompts, cfg, use_cache=False))
        seconds = in_turns(
            {
                "with": lambda prompts=prompts, step=step: generate(step, prompts, cfg),
                "without": lambda prompts=prompts: generate(model, prompts, cfg, use_cache=False),
                "first": lambda prompts=prompts, step=step: next(tokens(step, prompts, cfg)),
                "copying": lambda: copy.deepcopy(model),
                "packing": lambda batch=batch: pack(copy.deepcopy(model), batch),
            },
            args.repeats,
        )
        n = batch * args.tokens
        print(
            f"| {name} | {batch} | {n / seconds['with']:,.0f} | {n / seconds['without']:,.0f} |"
            f" {seconds['without'] / seconds['with']:.1f} | {seconds['first'] * 1e3:.1f} |"
            f" {(seconds['packing'] - seconds['copying']) * 1e3:.1f} | {same:,} of {n:,} |",
            flush=True,
        )


def peer_rows(sources: dict[str, str], vocab_sizes: dict[str, int], args: argparse.Namespace) -> None:
    """Processor seconds here and in the worktree --peer, in turns."""
    trees = {"here": Path(__file__).resolve().parent.parent, "peer": args.peer.resolve()}
    script = str(trees["here"] / "bench" / "generation_peer.py")
    children = {
        name: subprocess.Popen(
            [sys.executable, script, str(args.threads)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for name, tree in trees.items()
    }

    def turn(name: str, call: dict[str, Any]) -> dict[str, Any]:
        child = children[name]
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(call) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    print("\n| model | batch | draw | here, tokens per processor second | peer | here / peer | same text |")
    print("|---|---|---|---:|---:|---:|---|")
    for model, source in sources.items():
        for batch, padded, temperature in [(1, False, 0), (8, False, 0), (8, True, 0), (8, False, 0.8)]:
            settings = {"max_new_tokens": args.tokens, "temperature": temperature, "top_k": 50}
            prompts = prompts_of(batch, args.prompt, vocab_sizes[model], padded=padded)
            call = {"model": source, "prompts": prompts, "settings": settings}
            turns = [{name: turn(name, call) for name in children} for _ in range(args.repeats + 1)][1:]
            seconds = {name: statistics.median(one[name]["seconds"] for one in turns) for name in children}
            ratio = statistics.median(one["peer"]["seconds"] / one["here"]["seconds"] for one in turns)
            same = all(one["here"]["rows"] == one["peer"]["rows"] for one in turns)
            n, draw = batch * args.tokens, "sampled" if temperature else "greedy"
            print(
                f"| {model} | {batch}{' padded' if padded else ''} | {draw} | {n / seconds['here']:,.0f} |"
                f" {n / seconds['peer']:,.0f} | {ratio:.2f} | {'yes' if same else 'no'} |",
                flush=True,
            )
    for child in children.values():
        assert child.stdin is not None
        child.stdin.close()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR")
    parser.add_argument("--prompt", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="new ones a row")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--peer", type=Path, metavar="WORKTREE", help="another commit, to compare speed and text with"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = {} if args.model is None else {"trained": load_decoder(args.model)}
    models |= {name: random_decoder(DecoderConfig(**cfg)) for name, cfg in CONFIGS.items()}
    print(machine(1))
    print(f"{args.threads} threads, prompts of {args.prompt} tokens, {args.tokens} new ones a row, float32.\n")
    for name, model in models.items():
        cfg = model.cfg
        print(f"{name}: {cfg.n_layers} layers, {cfg.d_model} wide, vocabulary {cfg.vocab_size:,}.")
    if args.peer is not None:
        sources = {} if args.model is None else {"trained": str(args.model.resolve())}
        sources |= {name: json.dumps(cfg) for name, cfg in CONFIGS.items()}
        peer_rows(sources, {name: model.cfg.vocab_size for name, model in models.items()}, args)
        return
    print("\n| model | batch | draw | ours, tokens/s | transformers, tokens/s | ratio | same greedy tokens |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name, model in models.items():
        speed_rows(name, model, args)
    print("\n| model | batch | with cache, tokens/s | without | ratio | first token, ms | packing, ms | same |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, model in models.items():
        cache_rows(name, model, args)


if __name__ == "__main__":
    main()
