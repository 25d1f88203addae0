"""Tokens a second of an imported open model: ours beside transformers' `generate` and llama.cpp.

In: the GGUF file of SmolLM2-135M-Instruct, or of another model (--file). Out: Markdown tables, printed.

All three have the same weights: llama.cpp reads the file as it is and multiplies in the file's number formats, the
other two have the weights dequantised to float32. Prompts are the same ids of a text, draws are greedy, and no
contestant may stop early. The contestants take turns, on the same number of threads; a figure is the median over the
turns, and a ratio is the median of the ratios within single turns. llama.cpp comes in the package xllamacpp, which is
no dependency: where it is not installed, its columns say nan.

    python -m bench.generation_open [--file FILE] [--prompt 64] [--tokens 64] [--repeats 5] [--threads 1]
"""

import argparse
import copy
import importlib
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.generation import n_equal, prompts_of, their_tokens
from bench.machine import machine
from bench.open_weights import smollm2_file
from model.generation.decode import pack
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.config import config_to_hf
from model.hf.importing import import_model
from model.hf.weights import model_to_hf
from model.network.decoder import Decoder
from model.network.registry import load_decoder

TARGET = 1.2  # times the tokens per second of transformers
BATCHES = (1, 8)
Prompts = list[list[int]]


def peer_of(decoder: Decoder) -> Any:
    """transformers' model with the same weights, all of which strict loading checks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = config_to_hf(decoder.cfg)
    peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    weights = model_to_hf(decoder, decoder.cfg, torch.float32)
    if decoder.cfg.tie_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    peer.load_state_dict(weights)
    return peer


class LlamaCpp:
    """llama.cpp on the file as it is, with a slot for each row: rows are decoded together, as its server does it."""

    def __init__(self, file: Path, n_rows: int, n_tokens: int, n_threads: int) -> None:
        self.api: Any = importlib.import_module("xllamacpp")
        params = self.api.CommonParams()
        params.model.path = str(file)
        params.n_parallel, params.n_ctx, params.kv_unified = n_rows, n_rows * n_tokens, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
        params.n_threads_http, params.verbosity, params.fit_params = n_rows + 2, 0, False
        self.server = self.api.Server(params)

    def generate(self, prompts: Prompts, n_new: int) -> None:
        with ThreadPoolExecutor(len(prompts)) as threads:
            answers = list(threads.map(lambda prompt: self._answer(prompt, n_new), prompts))
        assert all(answer["usage"]["completion_tokens"] == n_new for answer in answers)

    def _answer(self, prompt: list[int], n_new: int) -> Any:
        rest = {"n_predict": n_new, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        return self.server.handle_completions({"prompt": prompt, **rest})


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn; one turn of all to warm up is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row_of(decoder: Decoder, peer: Any, prompts: Prompts, args: argparse.Namespace) -> str:
    cfg = SampleConfig(max_new_tokens=args.tokens, temperature=0)
    step = pack(copy.deepcopy(decoder), len(prompts))
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: generate(step, prompts, cfg),
        "transformers": lambda: their_tokens(peer, prompts, cfg),
    }
    same = n_equal(contestants["ours"](), contestants["transformers"]())
    if importlib.util.find_spec("xllamacpp") is not None:
        llama_cpp = LlamaCpp(args.file, len(prompts), args.prompt + args.tokens, args.threads)
        contestants["llama.cpp"] = lambda: llama_cpp.generate(prompts, args.tokens)
    seconds = in_turns(contestants, args.repeats)
    n = len(prompts) * args.tokens
    cells = [f"{len(prompts)}", f"{n / statistics.median(seconds['ours']):,.1f}", f"{same:,} of {n:,}"]
    for name in ("transformers", "llama.cpp"):
        times = seconds.get(name, [math.nan])
        ratio = statistics.median(b / a for a, b in zip(seconds["ours"], times, strict=False))
        cells += [f"{n / statistics.median(times):,.1f}", f"{ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="GGUF file; default: SmolLM2-135M-Instruct, which is fetched")
    parser.add_argument("--prompt", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="new ones a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.file = args.file or smollm2_file()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        imported = import_model(args.file, Path(folder))
        decoder = load_decoder(Path(folder))
    peer = peer_of(decoder)
    print(machine(1))
    print(
        f"{imported.name}: {imported.n_parameters:,} parameters, stored as {', '.join(imported.stored)}."
        f" {args.threads} threads, prompts of {args.prompt} tokens, {args.tokens} new ones a row.\n"
    )
    print("| batch | ours, tokens/s | as transformers' | transformers | ours / it | llama.cpp | ours / it |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for batch in BATCHES:
        print(row_of(decoder, peer, prompts_of(batch, args.prompt, decoder.cfg.vocab_size), args), flush=True)


if __name__ == "__main__":
    main()
