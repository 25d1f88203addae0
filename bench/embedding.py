"""Sentence embeddings beside sentence-transformers: the same weights, texts and threads, both in turns, in one run.

In: the folder of an encoder in Hugging Face's layout, as all-MiniLM-L6-v2. Out: seconds per round for 1,000 sentences
of docs/, from text to normalised vectors, and how equal the vectors are. Needs an environment with
sentence-transformers. Other processes slow both sides alike, because they take turns; CPU seconds are those of this
process alone.

    python -m bench.embedding --folder MODEL --rounds 9 --threads 1
"""

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from model.data.tokenizer import load_model_tokenizer
from model.generation.embed import embed
from model.hf.importing import import_model
from model.network.registry import load_encoder

DOCS = Path(__file__).parents[1] / "docs"
N_SENTENCES = 1000
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def sentences() -> list[str]:
    """Of the running text of docs/, without tables, code and headings; again from the start if there are too few."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for paragraph in page.read_text("utf-8").split("\n\n"):
            if paragraph and paragraph[0] not in "|#`-!<":
                found += [text for text in SENTENCE.split(" ".join(paragraph.split())) if len(text) > 20]
    return (found * (1 + N_SENTENCES // len(found)))[:N_SENTENCES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    peer = SentenceTransformer(str(args.folder), device="cpu")
    with tempfile.TemporaryDirectory() as directory:
        import_model(args.folder, Path(directory))
        model = load_encoder(Path(directory))
        tokenizer = load_model_tokenizer(Path(directory), model.cfg.vocab_size)
    texts, longest = sentences(), peer.max_seq_length
    contestants: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: embed(model, tokenizer, texts, max_tokens=longest),
        "sentence-transformers": lambda: np.asarray(peer.encode(texts, normalize_embeddings=True)),
    }
    vectors = {name: run() for name, run in contestants.items()}  # also warms up
    seconds, cpu_seconds = ({name: list[float]() for name in contestants} for _ in range(2))
    for _ in range(args.rounds):
        for name, run in contestants.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    n_words = sum(len(text.split()) for text in texts)
    print(f"{len(texts)} sentences, {n_words:,} words, {args.threads} threads, {args.rounds} rounds in turns\n")
    print("| | median, s | fastest, s | sentences/s | median of CPU seconds |\n|---|---:|---:|---:|---:|")
    for name, found in seconds.items():
        median = statistics.median(found)
        cpu = statistics.median(cpu_seconds[name])
        print(f"| {name} | {median:.2f} | {min(found):.2f} | {len(texts) / median:,.0f} | {cpu:.2f} |")
    cosine = (vectors["ours"] * vectors["sentence-transformers"]).sum(axis=1).min()
    for name, found in (("seconds", seconds), ("CPU seconds", cpu_seconds)):
        ratios = [theirs / ours for ours, theirs in zip(*found.values(), strict=True)]
        print(f"\nratio of {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"\nleast cosine of the two vectors of a text: {cosine:.7f}")


if __name__ == "__main__":
    main()
