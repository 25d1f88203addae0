"""One batch and one decoding step on their way: what goes into and comes out of each part of the decoder; and how
long building a batch takes.

    python -m bench.batch_walk [--preset demo] [--vocab 4096] [--rows 8] [--tokens 100]
    python -m bench.batch_walk --build [--rows 512] [--tokens 1024]

The first form prints a line per call of the first layer and of the modules around it, in the order of the calls, then
the loss; then the same of one decoding step of two texts, of 10 and of 6 tokens, and how many products it is once the
model is packed. The ids are random: the lines show shapes and sizes, and the loss of a new model is ln(vocabulary).

The second form prints a Markdown table of the milliseconds per global batch, for all of its rows and for the eighth
that one of eight processes builds: plain windows, windows with a document mask, and packed documents with a mask, of
documents of 100 tokens on average in eight shards. Medians of --turns turns; the ways take turns.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.data.batches import TokenBatches
from model.data.token_shards import TokenShard, read_token_shard, write_token_shard
from model.generation.decode import pack
from model.network.decoder import Decoder, new_decoder
from model.network.packed import PackedLinear
from model.network.size import flops_per_token, n_parameters
from model.training.loss import language_model_loss
from model.training.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo", choices=PRESETS)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--build", action="store_true", help="measure how long building a batch takes")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    if args.build:
        print_building(args.rows or 512, args.tokens or 1024, args.turns)
        return
    args.rows, args.tokens = args.rows or 8, args.tokens or 100
    cfg = PRESETS[args.preset].shape.with_vocab(args.vocab)
    model = new_decoder(cfg, seed=0)
    print(f"{args.preset}: {n_parameters(cfg):,} parameters, {flops_per_token(cfg, args.tokens):,} FLOPs a token")
    hooks = [
        module.register_forward_hook(line_of(name, module))
        for name, module in model.named_modules()
        if name and is_first_or_outside(name)
    ]
    ids_BT = torch.randint(0, cfg.vocab_size, (args.rows, args.tokens), generator=torch.Generator().manual_seed(0))
    loss, n_targets = language_model_loss(model, {"ids_BT": ids_BT, "targets_BT": ids_BT.roll(-1, dims=1)})
    loss.backward()
    n_nats = float(loss.detach())
    print(f"loss {n_nats:.1f} nats over {int(n_targets):,} targets: {n_nats / int(n_targets):.4f} each\n")
    walk_decoding(model.eval(), ids_BT[:2], (10, 6), max_len=args.tokens)
    for hook in hooks:
        hook.remove()
    pack(model, n_rows=2)
    n_linear = sum(isinstance(module, PackedLinear) for module in model.modules())
    n_products = len({id(module.weights) for module in model.modules() if isinstance(module, PackedLinear)})
    print(f"packed: {n_linear} modules share {n_products} products")


@torch.inference_mode()
def walk_decoding(model: Decoder, ids_BT: torch.Tensor, lengths: tuple[int, ...], max_len: int) -> None:
    """Reads the first `lengths` ids of the rows, then prints a pass over one more id of each."""
    cache = model.new_cache(n_rows=len(lengths), max_len=max_len)
    with contextlib.redirect_stdout(io.StringIO()):
        model.trunk(ids_BT[:, : max(lengths)], cache=cache)
    cache.truncate(lengths)
    print(f"a decoding step of rows with {lengths} tokens; keys in the cache: {tuple(cache.keys_LNGSK.shape)}")
    model(ids_BT[:, -1:], cache=cache)
    print(f"now {tuple(cache.lengths)} tokens")


WAYS = {
    "plain": {},
    "document mask": {"document_mask": True},
    "packed, document mask": {"packing": "documents", "document_mask": True},
}


def print_building(rows: int, seq_len: int, n_turns: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = short_documents(Path(folder), n_tokens=16 * rows * seq_len)
        batches = {
            name: TokenBatches(shards, rows=rows, seq_len=seq_len, seed=0, **way) for name, way in WAYS.items()
        }
        seconds: dict[tuple[str, int], list[float]] = {}
        for turn in range(n_turns + 1):  # the first one warms the files up
            for name, one in batches.items():
                for n_ranks in (1, 8):
                    start = time.perf_counter()
                    one.batch(turn, turn % n_ranks, n_ranks)
                    seconds.setdefault((name, n_ranks), []).append(time.perf_counter() - start)
    print(f"Milliseconds per batch of {rows} x {seq_len} tokens, medians of {n_turns} turns\n")
    print("| | all rows | an eighth |\n|---|---:|---:|")
    for name in WAYS:
        whole, eighth = (1000 * statistics.median(seconds[name, n_ranks][1:]) for n_ranks in (1, 8))
        print(f"| {name} | {whole:.1f} | {eighth:.1f} |")


def short_documents(folder: Path, n_tokens: int, n_shards: int = 8) -> list[TokenShard]:
    rng, shards = np.random.default_rng(0), []
    for number in range(n_shards):
        lengths = rng.geometric(1 / 100, size=n_tokens // n_shards // 100 + 1)
        documents = np.split(rng.integers(0, 50_000, lengths.sum()).astype(np.uint16), np.cumsum(lengths)[:-1])
        ids = [f"{number}-{i}" for i in range(len(documents))]
        write_token_shard(folder / f"{number}.arrow", ids, lengths.tolist(), documents, vocab_size=50_000)
        shards.append(read_token_shard(folder / f"{number}.arrow"))
    return shards


def is_first_or_outside(name: str) -> bool:
    """Of the layers the first alone."""
    return ".layers." not in f".{name}." or name.startswith("model.layers.0")


def line_of(name: str, module: nn.Module):
    n_weights = sum(weight.numel() for weight in module.parameters())

    def hook(_: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        shape_in = tuple(inputs[0].shape)
        print(f"{name:44s} {shape_in!s:20s} -> {tuple(output.shape)!s:20s} {n_weights:>10,} weights")

    return hook


if __name__ == "__main__":
    main()
