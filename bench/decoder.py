"""Forward and backward of our decoder beside nanoGPT's and transformers', in turns in one process.

In: --nanogpt DIR (a checkout of nanoGPT; left out with a line if absent), --shape tiny|10m, --rounds, --threads.
Out: milliseconds of forward + loss + backward, fastest and median, and how many times as fast as each peer. All get
the same ids, layers, width, context and about the same parameters; float32, eager.

    python -m bench.decoder --nanogpt ../nanoGPT --shape tiny --rounds 40
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model.hf.config import config_to_hf
from model.network.decoder import new_decoder
from model.network.linear import HAS_FAST_ONEDNN
from model.network.shape import DecoderConfig
from model.training.loss import language_model_loss

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    n_layers: int
    n_heads: int
    d_model: int
    seq_len: int
    rows: int
    vocab_size: int = 65  # characters of tinyshakespeare


SIZES = {  # nanoGPT's recipe for a CPU, and its character model
    "tiny": Size(n_layers=4, n_heads=4, d_model=128, seq_len=64, rows=12),
    "10m": Size(n_layers=6, n_heads=6, d_model=384, seq_len=256, rows=4),
}


def our_configs(size: Size) -> dict[str, DecoderConfig]:
    qwen3 = DecoderConfig(
        vocab_size=size.vocab_size,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        n_kv_heads=size.n_heads,
        d_model=size.d_model,
        d_head=size.d_model // size.n_heads,
        d_ff=-(-size.d_model // 3) * 8,  # 8/3 of d_model, a multiple of 8
        max_seq_len=size.seq_len,
        tie_embeddings=True,  # as the peers
    )
    ungated = {"d_ff": 4 * size.d_model}
    gpt2 = {"norm": "layernorm", "positions": "learned", "qk_norm": False, "mlp": "gelu_tanh", "mlp_bias": True}
    return {
        "ours, Qwen3": qwen3,
        "ours, Llama": replace(qwen3, qk_norm=False),
        "ours, Arcee": replace(qwen3, qk_norm=False, mlp="relu2", **ungated),
        "ours, GPT-2": replace(qwen3, **gpt2, **ungated, qkv_bias=True, output_bias=True),
    }


def our_step(cfg: DecoderConfig, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> Step:
    model = new_decoder(cfg, seed=0)

    def step() -> None:
        loss, n_targets = language_model_loss(model, {"ids_BT": ids_BT, "targets_BT": targets_BT})
        (loss / n_targets).backward()
        model.zero_grad(set_to_none=True)

    return step


def nanogpt_step(folder: Path, size: Size, ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> Step:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"n_layer": size.n_layers, "n_head": size.n_heads, "n_embd": size.d_model, "block_size": size.seq_len}
    model = module.GPT(module.GPTConfig(**sizes, vocab_size=size.vocab_size, dropout=0.0, bias=False))

    def step() -> None:
        model(ids_BT, targets_BT)[1].backward()
        model.zero_grad(set_to_none=True)

    return step


def transformers_step(cfg: DecoderConfig, ids_BT: torch.Tensor) -> Step:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**config_to_hf(replace(cfg, tie_embeddings=True))))

    def step() -> None:
        model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def in_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; two rounds before them are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-2, rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--shape", default="tiny", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = SIZES[args.shape]
    ids = torch.randint(0, size.vocab_size, (size.rows, size.seq_len + 1), generator=torch.Generator().manual_seed(0))
    ids_BT, targets_BT = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    configs = our_configs(size)
    steps = {name: our_step(cfg, ids_BT, targets_BT) for name, cfg in configs.items()}
    peers = []
    if args.nanogpt is not None and (args.nanogpt / "model.py").exists():
        steps["nanoGPT"] = nanogpt_step(args.nanogpt, size, ids_BT, targets_BT)
        peers.append("nanoGPT")
    else:
        print("nanoGPT is left out: give its checkout by --nanogpt DIR")
    if importlib.util.find_spec("transformers") is not None:
        steps["transformers Qwen3"] = transformers_step(configs["ours, Qwen3"], ids_BT)
        peers.append("transformers Qwen3")
    else:
        print("transformers is left out: it is not installed")
    seconds = in_turns(steps, args.rounds)
    print(f"{args.shape}: {size}, {args.threads} threads, products by {'oneDNN' if HAS_FAST_ONEDNN else 'MKL'}")
    for name, taken in seconds.items():
        ratios = [
            f"{statistics.median(p / t for p, t in zip(seconds[peer], taken, strict=True)):.2f}x" for peer in peers
        ]
        print(f"{name:20s} {min(taken) * 1e3:8.1f} ms fastest {statistics.median(taken) * 1e3:8.1f} median  {ratios}")
    print(f"ratios: median over the rounds of a peer's time / this time, for {', '.join(peers) or 'no peer'}")


if __name__ == "__main__":
    main()
