"""How long `gristmill trace` takes on a store of many documents: the whole command, from Python's start to its end.

In: nothing. Out: a markdown table, printed and written to bench/trace.md: seconds of the command by kind of query,
first (the index is made) and then (median), the size of the index, and what lies in the store.

The store is synthetic and whole: schema-true Parquet shards of every stage with dropped and evidence rows, real
shingles, token shards, and the records of a pretrained and a fine-tuned checkpoint; texts lie in the outputs of
`clean` and `filter`, which are those that are read for a text. A twentieth of the documents goes
at `filter`, another one at `dedup`. With --cold the pages of the store are dropped from the memory of the system
before each call (posix_fadvise), as far as the system does that.

    .venv/bin/python -m bench.trace [--documents 1000000] [--folder DIR] [--runs 9] [--cold] [--out bench/trace.md]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.token_shards import write_token_shard
from pipeline.corpus.dedup.shingles import Shingler
from pipeline.store.layout import Layout, save_current
from pipeline.store.records import (
    CORPUS,
    DOCUMENT,
    DROPPED,
    EVIDENCE,
    FILTERED,
    PAGE,
    SPLIT_CORPUS,
    Checkpoint,
    Shards,
)
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, write_table
from pipeline.store.store import Outcome, Stage, Store, Work
from pipeline.training.pretrain import PretrainConfig, pretrain_recipe

ROOT = Path(__file__).resolve().parent.parent
SOURCES, SHARDS = ("manuals", "news", "books", "notes"), 16  # shards a source: the default of `collect`
TEXTS_AT_ONCE = 500
WORDS_A_DOCUMENT = 150  # about 1 kB
ONE_IN = 4  # DedupConfig.sample_one_in
LOST_AT_FILTER, LOST_AT_DEDUP = 7, 11  # of 20 documents, by their number
TOKENS_A_DOCUMENT, TOKENS_A_FILE = 250, 50_000_000
PIPELINE = (("clean", DOCUMENT), ("filter", FILTERED), ("dedup", CORPUS), ("dedup_lines", CORPUS))
PIPELINE += (("decontaminate", CORPUS), ("split", SPLIT_CORPUS))
CONFIGS = {"dedup": {"min_similarity": 0.8, "min_containment": 0.9, "shingle_words": 5, "sample_one_in": ONE_IN}}
MODEL = pretrain_recipe(PretrainConfig(preset="small", n_steps=20_000))
STEP = "1234"


@dataclass(frozen=True, slots=True)
class Block:
    """The documents of one shard."""

    name: str
    source: str
    numbers: np.ndarray

    @property
    def page_ids(self) -> list[str]:
        return [id_of("page", number) for number in self.numbers.tolist()]

    @property
    def ids(self) -> list[str]:
        return [id_of("text", number) for number in self.numbers.tolist()]

    @property
    def urls(self) -> list[str]:
        return [url_of(self.source, number) for number in self.numbers.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="data folder to make, or made before; default: a temporary one")
    parser.add_argument("--runs", type=int, default=9, help="calls a query, of which the median counts")
    parser.add_argument("--cold", action="store_true", help="drop the store from the memory of the system each time")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "trace.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as temporary:
        layout = Layout((args.folder or Path(temporary)).resolve())
        if not layout.current.exists():
            started = time.perf_counter()
            make_store(layout, args.documents)
            print(f"store made in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        shutil.rmtree(layout.store / "trace", ignore_errors=True)
        lines = table(layout, args.runs, args.cold)
    text = "\n".join([f"{args.documents:,} documents. {machine()}.", "", *lines, ""])
    args.out.write_text(text, "utf-8")
    print(text)


def make_store(layout: Layout, n_documents: int) -> None:
    store = Store(root=layout.store)
    blocks = list(blocks_of(n_documents))
    pages = [built(store, "collect", partial(write_pages, blocks=own(blocks, s)), {"source": s}) for s in SOURCES]
    inputs: tuple[Any, ...] = tuple(pages)
    left, handles = blocks, {}
    for name, schema in PIPELINE:
        lost = {"filter": LOST_AT_FILTER, "dedup": LOST_AT_DEDUP}.get(name)
        write = partial(write_documents, blocks=left, schema=schema, lost=lost)
        handles[name] = built(store, name, write, CONFIGS.get(name, {}), *inputs)
        left = [Block(b.name, b.source, b.numbers[b.numbers % 20 != lost]) for b in left] if lost else left
        inputs = (handles[name],)
        print(f"{name}: {sum(len(b.numbers) for b in left):,} documents left", file=sys.stderr)
    tokens = built(store, "tokenize", partial(write_tokens, blocks=left), {}, *inputs)
    model = built(store, "pretrain", write_weights, MODEL, tokens, handle=Checkpoint)
    tuned = built(store, "finetune", write_weights, {"epochs": 2}, model, handle=Checkpoint)
    assets = {f"pages/{source}": page for source, page in zip(SOURCES, pages, strict=True)}
    assets |= {"documents": handles["filter"], "corpus": handles["split"], "token_shards": tokens}
    for asset, handle in (assets | {"foundation_model": model, "sarcasm_model": tuned}).items():
        save_current(layout, asset, handle)


def built(store: Store, name: str, write: Any, config: Any, *inputs: Any, handle: Any = Shards) -> Any:
    def function(cfg: Any, inputs: Any, work: Work) -> Outcome:
        return Outcome(rows=write(work) or 0)

    return store.build(Stage(name=name, version=1, function=function, handle=handle), config, *inputs).handle


def blocks_of(n_documents: int) -> Iterator[Block]:
    numbers = np.arange(n_documents)
    for i, source in enumerate(SOURCES):
        for shard in range(SHARDS):
            yield Block(f"{source}-{shard:05d}.parquet", source, numbers[i * SHARDS + shard :: len(SOURCES) * SHARDS])


def own(blocks: list[Block], source: str) -> list[Block]:
    return [block for block in blocks if block.source == source]


def id_of(kind: str, number: int) -> str:
    """32 hex digits, another one a number (an odd factor modulo a power of two is a bijection)."""
    salt = 0x9E3779B97F4A7C15F39CC0605CEDC835 if kind == "page" else 0xD1B54A32D192ED03A24BAED4963EE407
    return f"{(number + 1) * salt % 2**128:032x}"


def url_of(source: str, number: int) -> str:
    return f"https://{source}.example.org/section-{number % 977}/chapter-{number % 89}/page-{number}.html"


def texts_of(block: Block) -> pa.Array:
    """A document has the same text in every stage, whatever went around it."""
    places, first = block.numbers // (len(SOURCES) * SHARDS), int(block.numbers[0]) % (len(SOURCES) * SHARDS)
    words = pa.array([f"w{i:x}" for i in range(50_000)])
    numbers = np.random.default_rng(first).integers(0, len(words), (int(places[-1]) + 1, WORDS_A_DOCUMENT))[places]
    chosen = words.take(pa.array(numbers.reshape(-1)))
    offsets = pa.array(np.arange(0, len(chosen) + 1, WORDS_A_DOCUMENT, dtype=np.int32))
    lists = pa.ListArray.from_arrays(offsets, chosen)
    return pc.call_function("binary_join", [lists, pa.scalar(" ")]).cast(pa.large_string())


def filled(schema: pa.Schema, columns: dict[str, Any], n_rows: int) -> pa.Table:
    """A table with the given columns; the others are null or neutral."""
    arrays = []
    for field in schema:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        elif field.nullable:
            arrays.append(pa.nulls(n_rows, field.type))
        else:
            value: Any = [] if pa.types.is_nested(field.type) else "" if pa.types.is_string(field.type) else 0
            arrays.append(
                pa.array([value] * n_rows).cast(field.type) if value != [] else pa.array([[]] * n_rows, field.type)
            )
    return pa.Table.from_arrays(arrays, schema=schema)


def write_pages(work: Work, blocks: list[Block]) -> int:
    for block in blocks:
        n = len(block.numbers)
        columns = {"id": block.page_ids, "url": block.urls, "source": [block.source] * n, "licence": ["MIT"] * n}
        columns |= {"media_type": ["text/html"] * n, "content": [b"<p>page"] * n}
        columns |= {"collected_at": [datetime(2026, 1, 1, tzinfo=UTC)] * n}
        write_table(work.directory / block.name, filled(PAGE, columns, n))
    return sum(len(block.numbers) for block in blocks)


def write_documents(work: Work, blocks: list[Block], schema: pa.Schema, lost: int | None) -> int:
    for block in blocks:
        n = len(block.numbers)
        texts = texts_of(block) if work.stage in ("clean", "filter", "dedup") else [""] * n
        columns: dict[str, Any] = {"id": block.ids, "page_id": block.page_ids, "url": block.urls, "text": texts}
        columns |= {"source": [block.source] * n, "licence": ["MIT"] * n, "extractor": ["resiliparse"] * n}
        columns |= {"n_words": [WORDS_A_DOCUMENT] * n, "language": ["en"] * n, "cluster_size": [1] * n}
        columns |= {"cluster_id": block.page_ids, "family_id": block.page_ids, "split": ["train"] * n}
        names = {name: columns[name] for name in schema.names if name in columns}
        if work.stage == "dedup":
            write_signatures(work, block, texts)
            names["text"] = [""] * n
        table = filled(schema, names, n)
        goes = block.numbers % 20 == lost if lost else np.zeros(n, bool)
        write_table(work.directory / block.name, table.filter(pa.array(~goes)))
        if lost:
            write_lost(work, block, goes)
    return sum(int((block.numbers % 20 != lost).sum()) for block in blocks)


def write_lost(work: Work, block: Block, goes: np.ndarray) -> None:
    gone = Block(block.name, block.source, block.numbers[goes])
    n = len(gone.numbers)
    columns = {"id": gone.ids, "page_id": gone.page_ids, "source": [block.source] * n, "url": gone.urls}
    columns |= {"stage": [work.stage] * n, "score": [0.9] * n, "preview": ["w1 w2"] * n}
    columns |= {"reason": ["near_duplicate" if work.stage == "dedup" else "too_few_words"] * n}
    write_table(work.directory / DROPPED_FOLDER / block.name, filled(DROPPED, columns, n))
    if work.stage == "dedup":
        kept = Block(block.name, block.source, gone.numbers + 1)
        pairs = {"kept_id": kept.ids, "dropped_id": gone.ids, "kept_page_id": kept.page_ids}
        pairs |= {"dropped_page_id": gone.page_ids, "rule": ["similarity"] * n, "similarity": [0.9] * n}
        write_table(work.directory / EVIDENCE_FOLDER / block.name, filled(EVIDENCE, pairs, n))


def write_signatures(work: Work, block: Block, texts: pa.Array) -> None:
    """page_id and sample, which is what an index of passages reads."""
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        windows = Shingler(5).windows_of(texts.slice(first, TEXTS_AT_ONCE).to_pylist())
        hashes += windows
        owners += [np.full(len(one), first + i) for i, one in enumerate(windows)]
    flat, owner = np.concatenate(hashes), np.concatenate(owners)
    sampled = flat < np.uint64(2**64 // ONE_IN)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[sampled], minlength=len(texts)))]).astype(np.int32)
    sample = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat[sampled]))
    write_table(work.directory / "signatures" / block.name, pa.table({"page_id": block.page_ids, "sample": sample}))


def write_tokens(work: Work, blocks: list[Block]) -> int:
    numbers = np.concatenate([block.numbers for block in blocks])
    order = np.random.default_rng(1).permutation(len(numbers))
    a_file = TOKENS_A_FILE // TOKENS_A_DOCUMENT
    sides = {"train": numbers[order[100:]], "validation": numbers[order[:50]], "test": numbers[order[50:100]]}
    for side, of_side in sides.items():
        for i in range(0, len(of_side), a_file):
            ids = [id_of("text", number) for number in of_side[i : i + a_file].tolist()]
            path = work.directory / side / f"{i // a_file:05d}.arrow"
            path.parent.mkdir(exist_ok=True)
            tokens = [np.zeros(TOKENS_A_DOCUMENT, np.uint16)] * len(ids)
            write_token_shard(path, ids, [1000] * len(ids), tokens, vocab_size=8192)
    return len(numbers)


def write_weights(work: Work) -> int:
    (work.directory / "model.safetensors").write_bytes(b"weights")
    return MODEL.train.n_steps


def table(layout: Layout, runs: int, cold: bool) -> list[str]:
    number, lost = 60, LOST_AT_DEDUP
    block, lost_block = (next(b for b in blocks_of(2000) if n in b.numbers.tolist()) for n in (number, lost))
    text = texts_of(Block(block.name, block.source, np.array([number]))).to_pylist()[0]
    url = url_of(block.source, number)
    queries = {
        "URL": [url],
        "end of a URL": [f"/page-{number}.html"],
        "page id": [id_of("page", number)],
        "document id": [id_of("text", number)],
        "URL of a duplicate": [url_of(lost_block.source, lost)],
        "a URL that is not there": ["https://nowhere.example.org/"],
        "a passage of 50 words": [" ".join(text.split()[40:90])],
        "a training step": ["--step", "foundation_model", STEP],
        "100 training steps": ["--step", "foundation_model", "1200-1299"],
    }
    rows = ["| query | first call | then |" if not cold else "| query | first call | then, cold |", "|---|---:|---:|"]
    for name, arguments in queries.items():
        first = seconds_of(layout, arguments, cold)
        then = statistics.median(seconds_of(layout, arguments, cold) for _ in range(runs))
        rows.append(f"| {name} | {first:.2f} s | {then:.2f} s |")
    sizes = {folder.name: size_of(folder) for folder in sorted(layout.store.iterdir()) if folder.is_dir()}
    lies = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items())
    return [*rows, "", f"The index is {sizes['trace'] / 1e6:,.0f} MB. The store: {lies}."]


def seconds_of(layout: Layout, arguments: list[str], cold: bool) -> float:
    if cold:
        forget_pages(layout.store)
    environment = {**os.environ, "GRISTMILL_DATA": str(layout.data)}
    command = [str(Path(sys.executable).parent / "gristmill"), "trace", *arguments]
    started = time.perf_counter()
    answer = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    seconds = time.perf_counter() - started
    if answer.returncode and "is neither" not in answer.stderr:
        raise SystemExit(f"{' '.join(command)}: {answer.stderr}")
    return seconds


def forget_pages(folder: Path) -> None:
    """Ask the system to drop what it holds of the files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8")
    return f"{models[0] if models else 'unknown processor'}, {os.cpu_count()} cores, commit {commit.stdout.strip()}"


if __name__ == "__main__":
    main()
