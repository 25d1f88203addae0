"""What each vocabulary costs, and whether transformers gives the ids that we give, on real documents.

In: --data, a folder with documents as `split` leaves them, or with text files (default: the newest in
data/store/split); of these the first --documents, a document a paragraph, so that there are many. Out: Markdown
tables, printed.

- costs: seconds to write all files of a vocabulary (ranks, and tokenizer.json with its merges), to load it, and the
  bytes per token of the documents. A vocabulary of 4,096 tokens is trained on the documents, the others are published
  and fetched into --cache.
- ids: documents whose ids by AutoTokenizer are not ours; there must be none.

    python -m bench.vocabularies [--documents 10000] [--data DIR] [--cache data/cache]
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import machine
from model.data.tokenizer import load_tokenizer
from model.data.vocabularies import PUBLISHED, TRAINED_PATTERNS
from pipeline.corpus.tokens.tokenizer import train_ranks
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.corpus.tokens.vocabularies import fetch_ranks
from pipeline.store.shards import read_table, shard_paths

ROOT = Path(__file__).resolve().parent.parent
PATTERN = "qwen2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path, default=ROOT / "data" / "cache")
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    texts = list(itertools.islice(paragraphs(args.data or newest_split()), args.documents))
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"{machine(1)}\n\n{len(texts):,} documents, {n_bytes / 1e6:.1f} MB\n")
    print("| vocabulary | tokens | write, s | load, s | bytes per token | documents with other ids in transformers |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in (f"trained ({PATTERN})", *PUBLISHED):
        ranks = (
            fetch_ranks(name, args.cache)
            if name in PUBLISHED
            else train_ranks(texts, args.vocab_size - 1, TRAINED_PATTERNS[PATTERN])
        )
        with tempfile.TemporaryDirectory() as folder:
            print(measured_line(name, ranks, Path(folder), texts, n_bytes), flush=True)


def measured_line(name: str, ranks: dict[bytes, int], folder: Path, texts: list[str], n_bytes: int) -> str:
    started = time.perf_counter()
    write_tokenizer(folder, ranks, name if name in PUBLISHED else PATTERN)
    written = time.perf_counter()
    tokenizer = load_tokenizer(folder)
    loaded = time.perf_counter()
    ours, theirs = tokenizer.encode_batch(texts), ids_of_transformers(folder, texts)
    differ = sum(one != other for one, other in zip(ours, theirs, strict=True))
    n_tokens = sum(map(len, ours))
    return (
        f"| {name} | {tokenizer.vocab_size:,} | {written - started:.2f} | {loaded - written:.2f} |"
        f" {n_bytes / n_tokens:.2f} | {differ} |"
    )


def ids_of_transformers(folder: Path, texts: list[str]) -> list[list[int]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]


def paragraphs(folder: Path) -> Iterator[str]:
    """Of shards of documents, or of text files; shuffled by nothing, so that a run can be repeated."""
    for text in whole_texts(folder):
        yield from (part for part in text.split("\n\n") if part.strip())


def whole_texts(folder: Path) -> Iterator[str]:
    if paths := shard_paths(folder):
        for path in paths:
            yield from read_table(path, columns=["text"])["text"].to_pylist()
    else:
        for path in sorted(folder.rglob("*.txt")):
            yield path.read_text("utf-8", "replace")


def newest_split() -> Path:
    records = sorted((ROOT / "data" / "store" / "split").glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise SystemExit("data/store/split holds no documents; run `make demo`, or give --data")
    return records[-1].parent


if __name__ == "__main__":
    main()
