"""How fast `tokenize` is beside its own encoder, what its peers need for the same text, and how its memory grows.

In: --data, a folder with documents as `split` leaves them (default: the newest in data/store/split), or with text
files; of these --documents, repeated with changes until --mb MB are there (a copy begins elsewhere and has other
words in places). Out: Markdown tables, printed.

- speed: raw is tiktoken's `encode_ordinary_batch` with as many threads as there are cores, on texts in memory. Ours
  is the whole stage: reading Parquet, encoding, writing, shuffling, gathering, fsync and digests. All take turns.
- peers, on the first --peer-mb MB of the same text: `encode_batch_fast` of Hugging Face's tokenizers with the
  tokenizer.json of the same tokenizer, texts in memory; datatrove's DocumentTokenizer with its shuffle, its tasks as
  many as cores, when --datatrove names a Python that has it.
- memory: the peak of this process and its workers, for every size of --sizes, in a process of its own.

    python -m bench.token_shards [--documents N] [--mb 200] [--sizes 50 200 800] [--datatrove PYTHON]
"""

import argparse
import functools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import Memory, machine
from model.data.tokenizer import load_tokenizer
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig
from pipeline.store.engine import LocalProcesses, n_usable_cores
from pipeline.store.records import SPLIT_CORPUS, Counts, Shards
from pipeline.store.shards import read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store, Work, read_handle

ROOT = Path(__file__).resolve().parent.parent
N_SHARDS = 64
CHANGED_WORDS = 50  # every so manieth word of a copy is another one
RAW = "raw encode_ordinary_batch"
BATCH_BYTES = 16_000_000  # of text that raw is given at once: its lists of Python numbers are large
MB = 1e6
DATATROVE = """
import sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    corpus, tokenizer, out, n = sys.argv[1:]
    n = int(n)
    tokenize = DocumentTokenizer(out, tokenizer, eos_token="<|endoftext|>", max_tokens_per_file=50_000_000, seed=1)
    pipeline = [ParquetReader(corpus, glob_pattern="*.parquet", read_metadata=False), tokenize]
    executor = LocalPipelineExecutor(pipeline, tasks=n, workers=n, skip_completed=False, logging_dir=out + ".log")
    start = time.perf_counter()
    executor.run()
    print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--documents", type=int, help="at most so many of the data")
    parser.add_argument("--characters", type=int, help="cut the documents into pieces of so many")
    parser.add_argument("--mb", type=float, default=200, help="MB of text that speed is measured on; 0 = not")
    parser.add_argument("--peer-mb", type=float, default=20, help="MB of it that the peers are measured on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--sizes", type=float, nargs="*", default=[50, 200, 800], help="MB of text, for memory")
    parser.add_argument("--shuffle-mb", type=int, default=TokenizeConfig().shuffle_memory_mb, help="its setting")
    parser.add_argument("--datatrove", type=Path, help="a Python that has datatrove")
    parser.add_argument("--folder", type=Path, help="where the corpora lie; default: a temporary folder")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.shuffle_mb)))
        return
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-", dir=args.folder) as temporary:
        folder, texts = Path(temporary), read_texts(args)
        print(machine(0), end="\n\n")
        if args.mb:
            print(speed_table(folder, texts, args), end="\n\n")
        if args.sizes:
            print(memory_table(folder, texts, args))


def read_texts(args: argparse.Namespace) -> list[str]:
    folder = args.data
    if folder is None:
        found = sorted((ROOT / "data" / "store" / "split").glob("*/record.json"), key=lambda one: one.stat().st_mtime)
        if not found:
            raise SystemExit("no documents in data/store/split: materialise `corpus`, or give --data")
        folder = found[-1].parent
    if paths := shard_paths(folder):
        texts = [text for path in paths for text in read_table(path, columns=["text"])["text"].to_pylist()]
    else:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".rst", ".html"))
        texts = [text for path in paths if (text := path.read_text("utf-8", "ignore"))]
    texts = texts[: args.documents]
    if (n := args.characters) is not None:
        texts = [text[i : i + n] for text in texts for i in range(0, len(text), n)]
    return texts


def replicated(texts: list[str], n_bytes: float) -> Iterator[str]:
    """`texts` again and again, each time changed, until they hold `n_bytes`."""
    rng, words = random.Random(1), texts[0].split()
    done, copy = 0, 0
    while True:
        for text in texts:
            if copy:
                own = text.split(" ")
                start = rng.randrange(len(own))
                own = own[start:] + own[:start]
                own[::CHANGED_WORDS] = rng.choices(words, k=len(own[::CHANGED_WORDS]))
                text = " ".join(own)
            yield text
            done += len(text.encode())
            if done >= n_bytes:
                return
        copy += 1


def write_corpus(store: Store, texts: list[str], n_bytes: float) -> Shards:
    """A finished output of `split` in the store."""

    def divided(cfg: Any, inputs: tuple, work: Work) -> Outcome:
        shards: list[list[dict[str, object]]] = [[] for _ in range(N_SHARDS)]
        empty: dict[str, object] = {
            field.name: None if field.nullable else SPLIT_CORPUS_ZERO[field.name] for field in SPLIT_CORPUS
        }
        for i, text in enumerate(replicated(texts, n_bytes)):
            key = text_digest(str(i))
            ids = {"id": key, "page_id": key, "source": f"source-{i % 4}", "url": f"file:///{i}"}
            side = "validation" if i % 100 == 99 else "train"
            shards[i % N_SHARDS].append(empty | ids | {"text": text, "split": side, "cluster_size": 1})
        for i, rows in enumerate(shards):
            write_rows(work.directory / f"source-{i:05d}.parquet", rows, SPLIT_CORPUS)
        n_rows = sum(map(len, shards))
        return Outcome(rows=n_rows, counts=Counts(rows_in=n_rows, kept=n_rows))

    stage = Stage(name="split", version=1, function=divided, handle=Shards)
    return store.build(stage, {"bytes": int(n_bytes)}).handle


def zero_of(field: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_nested(field.type):
        return []
    return "" if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) else 0


SPLIT_CORPUS_ZERO = {field.name: zero_of(field) for field in SPLIT_CORPUS}


def speed_table(folder: Path, texts: list[str], args: argparse.Namespace) -> str:
    store = Store(root=folder / "store")
    corpus = write_corpus(store, texts, args.mb * MB)
    file = store.build(TOKENIZER, TokenizerConfig(vocab_size=args.vocab_size), corpus).handle
    documents = texts_of(corpus)
    some = write_corpus(store, texts, min(args.mb, args.peer_mb) * MB)
    few = texts_of(some)
    n_bytes, n_few = (sum(len(text.encode()) for text in own) for own in (documents, few))
    runners: dict[str, tuple[int, Callable[[], float]]] = {
        RAW: (n_bytes, lambda: raw_seconds(file.directory, documents)),
        "stage tokenize": (n_bytes, lambda: stage_seconds(folder, corpus, file, args.shuffle_mb)),
        "tokenizers encode_batch_fast": (n_few, lambda: hugging_face_seconds(file.directory, few)),
    }
    if args.datatrove:
        run_datatrove = functools.partial(datatrove_seconds, args.datatrove, folder, some, file)
        runners["datatrove DocumentTokenizer"] = (n_few, run_datatrove)
    else:
        print("datatrove is left out: give --datatrove, a Python that has it.\n")
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(args.repeats):
        for name, (_, run) in runners.items():
            seconds[name].append(run())
    base = n_bytes / statistics.median(seconds[RAW])
    lines = [
        f"{len(documents):,} documents; {n_usable_cores()} threads or workers; vocabulary"
        f" {load_tokenizer(file.directory).vocab_size:,}; median of {args.repeats}.\n",
        "| | MB | seconds | lowest to highest | MB/s | of raw |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, own in seconds.items():
        size, middle = runners[name][0], statistics.median(own)
        spread = f"{min(own):.2f} to {max(own):.2f}"
        speed = size / middle
        lines.append(
            f"| {name} | {size / MB:.0f} | {middle:.2f} | {spread} | {speed / MB:.1f} | {speed / base:.2f} |"
        )
    return "\n".join(lines)


def texts_of(corpus: Shards) -> list[str]:
    paths = shard_paths(corpus.directory)
    return [text for path in paths for text in read_table(path, columns=["text"])["text"].to_pylist()]


def raw_seconds(tokenizer: Path, documents: list[str]) -> float:
    encode = load_tokenizer(tokenizer).engine.encoding.encode_ordinary_batch
    batches: list[list[str]] = [[]]
    size = 0
    for text in documents:
        batches[-1].append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            batches.append([])
            size = 0
    start = time.perf_counter()
    for batch in batches:
        encode(batch, num_threads=n_usable_cores())
    return time.perf_counter() - start


def hugging_face_seconds(tokenizer: Path, documents: list[str]) -> float:
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode_batch_fast
    start = time.perf_counter()
    for i in range(0, len(documents), 1000):
        encode(documents[i : i + 1000], add_special_tokens=False)
    return time.perf_counter() - start


def datatrove_seconds(python: Path, folder: Path, corpus: Shards, file: Any) -> float:
    out = folder / "datatrove"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(python), "-c", DATATROVE, str(corpus.directory), str(file.directory / "tokenizer.json"), str(out)]
    answer = subprocess.run([*command, str(n_usable_cores())], capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        raise SystemExit(f"datatrove failed: {answer.stderr[-2000:]}")
    return float(answer.stdout.split()[-1])


def stage_seconds(folder: Path, corpus: Shards, file: Any, shuffle_mb: int) -> float:
    shutil.rmtree(folder / "run", ignore_errors=True)
    recipe = TokenizeRecipe(config=TokenizeConfig(shuffle_memory_mb=shuffle_mb))
    start = time.perf_counter()
    Store(root=folder / "run", engine=LocalProcesses()).build(TOKENIZE, recipe, corpus, file)
    return time.perf_counter() - start


def memory_table(folder: Path, texts: list[str], args: argparse.Namespace) -> str:
    lines = [
        "| MB of text | tokens | seconds | parent before, MB | peak of parent | peak of a worker | peak of all |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in args.sizes:
        own = folder / f"{size:g}"
        store = Store(root=own / "store")
        corpus = write_corpus(store, texts, size * MB)
        file = store.build(TOKENIZER, TokenizerConfig(vocab_size=args.vocab_size), corpus).handle
        (own / "inputs.json").write_text(json.dumps([str(corpus.directory), str(file.directory)]), "utf-8")
        command = [sys.executable, "-m", "bench.token_shards", "--memory-of", str(own)]
        command += ["--shuffle-mb", str(args.shuffle_mb)]
        answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        shutil.rmtree(own)
        cost = json.loads(answer.stdout)
        names = ("start_mb", "parent_mb", "worker_mb", "total_mb")
        peaks = " | ".join(f"{cost[name]:.0f}" for name in names)
        lines.append(f"| {size:g} | {cost['tokens']:,} | {cost['seconds']:.1f} | {peaks} |")
    return "\n".join(lines)


def memory_of(folder: Path, shuffle_mb: int) -> dict[str, float]:
    corpus, file = (read_handle(Path(path)) for path in json.loads((folder / "inputs.json").read_text("utf-8")))
    with Memory() as memory:
        seconds = stage_seconds(folder, corpus, file, shuffle_mb)
    record = next((folder / "run" / "tokenize").glob("*/record.json"))
    tokens = json.loads(record.read_text("utf-8"))["measures"]["train_tokens"]
    return {"tokens": tokens, "seconds": seconds, **memory.measures()}


if __name__ == "__main__":
    main()
