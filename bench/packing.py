"""Rows of plain windows or of whole spans of documents, with or without a mask between documents: which is better.

In: token shards (--shards), a preset, steps and seeds. Out: two markdown tables. The first says what the two ways of
filling rows leave empty and tear apart, at several lengths of a row. The second trains the four variants in turns, a
block of steps each, so that what else the machine does falls on all alike: bits per byte of the validation documents,
each read alone (model.evaluate.document_losses, windows that do not overlap), and tokens/s against those of plain
windows.

    python -m bench.packing --shards DIR --seeds 0 1 2 --steps 2000 --section 100

--section N cuts every document into sections of about N tokens that are shuffled and count as documents: a corpus of
short texts, which rows tear apart or mix the most. --steps 0 prints the first table only.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import pyarrow as pa
import torch

from bench.machine import machine
from model.data.batches import TokenBatches, split_at_borders, token_batches
from model.data.token_shards import (
    TokenShard,
    read_description,
    read_token_shard,
    read_token_shards,
    write_token_stream,
)
from model.evaluate import document_losses
from model.network.decoder import Decoder, new_decoder
from model.training.config import TrainConfig
from model.training.presets import PRESETS
from model.training.step import new_state, train_step

BLOCK = 20  # steps of one variant before the next one's turn
ROW_LENGTHS = (128, 256, 512, 1024)
VARIANTS = {
    "windows": {"packing": "concatenated", "document_mask": False},
    "windows, mask": {"packing": "concatenated", "document_mask": True},
    "documents": {"packing": "documents", "document_mask": False},
    "documents, mask": {"packing": "documents", "document_mask": True},
}


def sections(shards: Sequence[TokenShard], n_tokens: int, vocab_size: int, path: Path) -> list[TokenShard]:
    """The documents cut into sections of geometrically distributed lengths, in random order, each opened by the
    end-of-text token; bytes are shared out by tokens."""
    rng = np.random.default_rng(0)
    pieces: list[tuple[np.ndarray, int]] = []
    for shard in shards:
        for i, (start, end) in enumerate(zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True)):
            document = shard.tokens[start:end]
            ends = np.cumsum(rng.geometric(1 / n_tokens, size=2 * (end - start) // n_tokens + 10) + 4)
            cuts = [1, *ends[ends < end - start - 4].tolist(), end - start]
            n_bytes = np.diff(np.round(np.array(cuts) / cuts[-1] * int(shard.n_bytes[i]))).astype(int)
            for a, b, n in zip(cuts, cuts[1:], n_bytes.tolist(), strict=False):
                pieces.append((np.concatenate([document[:1], document[a:b]]), n))
    pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    ids = pa.array([f"section {i}" for i in range(len(pieces))], pa.string())
    lengths = np.array([len(tokens) for tokens, _ in pieces])
    flat = np.concatenate([tokens for tokens, _ in pieces])
    write_token_stream(path, ids, np.array([n for _, n in pieces]), flat, lengths, vocab_size)
    return [read_token_shard(path)]


def shares_table(shards: Sequence[TokenShard]) -> list[str]:
    """What rows of several lengths leave empty, tear apart and mix."""
    lines = [
        "| tokens per row | rows hold | rows | cells left empty | never a target | documents torn that would fit"
        " | tokens of its own document before a target, mean | seen tokens of other documents, no mask |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for seq_len in ROW_LENGTHS:
        for packing in ("concatenated", "documents"):
            batches = TokenBatches(shards, rows=1, seq_len=seq_len, seed=0, packing=packing)
            whole = batches.plan.spans(np.arange(batches.rows_per_epoch))
            spans = split_at_borders(whole, batches.stream)
            n_cells, n_targets = batches.rows_per_epoch * seq_len, int(spans.lengths.sum())
            documents = batches.stream.documents_at(spans.starts)
            n_rows = np.bincount(documents, minlength=len(batches.stream.borders) - 1)
            torn = n_rows[np.diff(batches.stream.borders) <= seq_len] > 1
            seen = int((spans.lengths * (spans.lengths + 1)).sum()) // 2
            filled = np.bincount(whole.rows, whole.lengths)
            lines.append(
                f"| {seq_len:,} | {packing} | {batches.rows_per_epoch:,} | {1 - n_targets / n_cells:.3%}"
                f" | {batches.stream.n_tokens - 1 - n_targets:,} | {torn.mean() if len(torn) else 0:.1%}"
                f" | {seen / n_targets:.1f} | {1 - seen / (filled * (filled + 1) / 2).sum():.1%} |"
            )
    return lines


@dataclasses.dataclass(slots=True)
class Trial:
    """One variant in training."""

    model: Decoder
    n_steps: int
    step: Callable[[], object]
    blocks: list[float] = dataclasses.field(default_factory=list)  # seconds of each whole block
    done: int = 0

    def block(self) -> bool:
        """Do a block of steps. True while some are left."""
        n, start = min(BLOCK, self.n_steps - self.done), time.perf_counter()
        for _ in range(n):
            self.step()
        self.done += n
        if n == BLOCK:
            self.blocks.append(time.perf_counter() - start)
        return self.done < self.n_steps


def trial(shards: Sequence[TokenShard], preset: str, vocab_size: int, train: TrainConfig) -> Trial:
    model = new_decoder(PRESETS[preset].shape.with_vocab(vocab_size), train.seed)
    model.train()
    state, batches = new_state(model, train), token_batches(shards, train)
    return Trial(model, train.n_steps, lambda: train_step(state, batches.batch(state.step), train))


def train_all(arguments, shards, held_out, vocab_size: int) -> dict[str, list[tuple[float, float]]]:
    """(bits per byte, seconds of a block against those of plain windows) of each variant, a seed each."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for seed in arguments.seeds:
        base = dataclasses.replace(PRESETS[arguments.preset].train, n_steps=arguments.steps, seed=seed)
        trials = {
            name: trial(shards, arguments.preset, vocab_size, dataclasses.replace(base, **fields))
            for name, fields in VARIANTS.items()
        }
        while [name for name, one in trials.items() if one.block()]:
            pass
        plain = trials["windows"].blocks
        for name, one in trials.items():
            one.model.eval()
            bits = document_losses(one.model, held_out, stride=one.model.cfg.max_seq_len).bits_per_byte
            ratio = median(own / other for own, other in zip(one.blocks, plain, strict=True)) if plain else 1.0
            results[name].append((bits, ratio))
            print(f"seed {seed}, {name}: {bits:.5f} bits per byte, {1 / ratio:.3f} of the tokens/s", flush=True)
    return results


def training_table(results: dict[str, list[tuple[float, float]]]) -> list[str]:
    lines = [
        "| rows hold | bits per byte, mean | each seed | minus windows, mean +- standard deviation | tokens/s |",
        "|:--|--:|:--|--:|--:|",
    ]
    plain = [bits for bits, _ in results["windows"]]
    for name, runs in results.items():
        own = [bits for bits, _ in runs]
        differences = [a - b for a, b in zip(own, plain, strict=True)]
        spread = f" +- {stdev(differences):.5f}" if len(own) > 1 else ""
        lines.append(
            f"| {name} | {mean(own):.5f} | {', '.join(f'{bits:.5f}' for bits in own)}"
            f" | {mean(differences):+.5f}{spread} | {1 / median(ratio for _, ratio in runs):.3f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shards", type=Path, required=True, help="folder with tokens.json, train/, validation/, test/"
    )
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--section", type=int, help="tokens of a section, mean; without it documents are whole")
    arguments = parser.parse_args()
    vocab_size = read_description(arguments.shards)["vocab_size"]
    shards = read_token_shards(arguments.shards, "train")
    held_out = read_token_shards(arguments.shards, "validation")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.section:
            paths = (Path(folder, f"{name}.arrow") for name in ("train", "held_out"))
            shards, held_out = (
                sections(part, arguments.section, vocab_size, path)
                for part, path in zip((shards, held_out), paths, strict=True)
            )
        lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
        print(machine(1), f"torch {torch.__version__}, {torch.get_num_threads()} threads.")
        print(f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens, median {int(np.median(lengths)):,}.\n")
        print("\n".join(shares_table(shards)), end="\n\n")
        if arguments.steps:
            results = train_all(arguments, shards, held_out, vocab_size)
            print("", *training_table(results), sep="\n")


if __name__ == "__main__":
    main()
