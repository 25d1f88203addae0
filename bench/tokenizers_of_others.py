"""Imported tokenizers beside AutoTokenizer of transformers: SmolLM2 (byte pairs, in tiktoken) and MiniLM (WordPiece).

In: nothing; the weights are those of bench/open_weights.py. Out: seconds of each round for 10,000 documents in
batches of 256, alternating, and the ratio of the medians. The ids are compared first.

    python -m bench.tokenizers_of_others
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.open_weights import minilm_folder, smollm2_file
from model.data.tokenizer import Tokenizer
from model.hf.gguf_read import read_gguf
from model.hf.tokenizer_import import import_gguf_tokenizer, import_tokenizer
from tests.model.hf.tokenizers_of_others import mixed_texts, real_documents

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    documents = [*real_documents(7_000), *mixed_texts(3_000, 9)]
    print(f"{len(documents):,} documents, {sum(len(text.encode()) for text in documents) / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, ours in imported(Path(folder)):
            compare(name, ours, theirs_in(Path(folder) / name), documents, args.repeats)


def imported(folder: Path) -> list[tuple[str, Tokenizer]]:
    return [
        ("smollm2", import_gguf_tokenizer(read_gguf(smollm2_file()).fields, folder / "smollm2", 49_152)),
        ("minilm", import_tokenizer(minilm_folder(), folder / "minilm", 30_522)),
    ]


def theirs_in(folder: Path) -> Callable[[list[str]], list[list[int]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True, model_max_length=10**9)
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]


def compare(
    name: str,
    ours: Tokenizer,
    theirs: Callable[[list[str]], list[list[int]]],
    documents: list[str],
    repeats: int,
) -> None:
    batches = [documents[i : i + BATCH] for i in range(0, len(documents), BATCH)]
    assert all(ours.encode_batch(batch) == theirs(batch) for batch in batches), name
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(repeats):
        for side, encode in (("ours", ours.encode_batch), ("transformers", theirs)):
            start = time.perf_counter()
            for batch in batches:
                encode(batch)
            seconds[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, values in seconds.items():
        print(f"{name} {side}: {medians[side]:.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"{name}: {medians['transformers'] / medians['ours']:.2f}x")


if __name__ == "__main__":
    main()
