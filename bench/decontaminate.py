"""What decontamination costs: documents/s, MB/s and memory of the stage, beside plain Python and datatrove.

In: --documents N invented documents of about 1 kB whose words are as unequally frequent as those of English, an
evaluation set of --examples N invented sentences, one of which stands in every 1,000th document. Out: a markdown
table. The stage runs in a process of its own (--stage), so that its peak of memory is its own; worker processes
count in. Plain Python (a set of tuples of words, looked up run by run) reads the first --baseline documents in one
process, timed alternately with the stage's own scanner on the same documents. --peer PYTHON names an environment
that has datatrove and lighteval; without them its line says why.

    python -m bench.decontaminate [--documents 10000 100000] [--examples 5000] [--workers N] [--peer PYTHON]
"""

import argparse
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.machine import Memory
from pipeline.corpus.decontaminate.evaluation_runs import Scanner, run_index
from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.store.engine import LocalProcesses, n_usable_cores
from pipeline.store.records import CORPUS, Counts, Shards
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Built, Outcome, Stage, Store, Work

VOCABULARY = 50_000  # words
WORDS = 170  # a document, about 1 kB
A_SHARD = 5000  # documents
PLANTED_EVERY = 1000
SEED = 7
REPEATS = 3
MB = 1e6
PEER = """
import importlib.util as util, json
import datatrove
missing = [name for name in ("lighteval",) if util.find_spec(name) is None]
print(json.dumps({"version": getattr(datatrove, "__version__", ""), "missing": missing}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--baseline", type=int, default=2000, help="documents that plain Python reads")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 = as many as cores")
    parser.add_argument("--peer", type=Path, help="python of an environment with datatrove and lighteval")
    parser.add_argument("--stage", type=int, help="run the stage on so many documents and print its cost")
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(cost_of(args.stage, args.examples, args.workers)))
        return
    print(
        f"{platform.processor() or platform.machine()}, {n_usable_cores()} cores, Python {platform.python_version()}"
    )
    print("\n| documents | MB | seconds | documents/s | MB/s | found | peak of all MB | peak worker MB |")
    print("|---" * 8 + "|")
    for n_documents in args.documents:
        print(row_of(child_cost(n_documents, args.examples, args.workers)), flush=True)
    print(f"\n{against_plain_python(args.baseline, args.examples)}")
    print(peer_line(args.peer))


def row_of(cost: dict[str, float]) -> str:
    return (
        f"| {cost['documents']:,.0f} | {cost['mb']:.1f} | {cost['seconds']:.1f} |"
        f" {cost['documents'] / cost['seconds']:,.0f} | {cost['mb'] / cost['seconds']:.1f} | {cost['found']:.0f} |"
        f" {cost['all_mb']:.0f} | {cost['worker_mb']:.0f} |"
    )


def child_cost(n_documents: int, n_examples: int, n_workers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.decontaminate", "--stage", str(n_documents)]
    command += ["--examples", str(n_examples), "--workers", str(n_workers)]
    answer = subprocess.run(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return json.loads(answer.stdout)


def cost_of(n_documents: int, n_examples: int, n_workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        store = Store(root=Path(folder), engine=LocalProcesses(n_workers=n_workers))
        writer = get_context("spawn").Process(target=inputs_of, args=(store, n_documents, n_examples))
        writer.start()  # another process, whose memory is not counted
        writer.join()
        written, examples = inputs_of(store, n_documents, n_examples)
        with Memory() as memory:
            started = time.perf_counter()
            built = store.build(DECONTAMINATE, DecontaminateRecipe(tasks=("bench",)), written.handle, examples.handle)
            seconds = time.perf_counter() - started
    measures = built.record["measures"]
    return {
        "documents": n_documents,
        "mb": written.record["measures"]["bytes"] / MB,
        "seconds": seconds,
        "found": measures["cut_documents"] + built.record["counts"]["dropped"].get("contaminated", 0),
        "all_mb": memory.total / MB,
        "worker_mb": memory.worker / MB,
    }


def inputs_of(store: Store, n_documents: int, n_examples: int) -> tuple[Built, Built]:
    """The corpus and the examples, written or found."""
    return (
        store.build(stage("dedup", partial(write_corpus, n_documents, n_examples)), {"documents": n_documents}),
        store.build(stage("examples", partial(write_examples, n_examples)), {"examples": n_examples}),
    )


def stage(name: str, function: Any) -> Stage:
    return Stage(name=name, version=1, function=function, handle=Shards)


def write_corpus(n_documents: int, n_examples: int, cfg: Any, inputs: tuple[()], work: Work) -> Outcome:
    n_bytes = 0
    template = {field.name: None if field.nullable else neutral(field.type) for field in CORPUS}
    items = sentences(n_examples)
    rows: list[dict[str, object]] = []
    for i, text in enumerate(texts(n_documents, items)):
        n_bytes += len(text)
        rows.append({**template, "id": str(i), "page_id": str(i), "text": text, "n_words": WORDS})
        if len(rows) == A_SHARD or i == n_documents - 1:
            write_rows(work.directory / f"{i // A_SHARD:05d}.parquet", rows, CORPUS)
            rows = []
    counts = Counts(rows_in=n_documents, kept=n_documents)
    return Outcome(rows=n_documents, counts=counts, measures={"bytes": n_bytes})


def neutral(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else 0


def write_examples(n_examples: int, cfg: Any, inputs: tuple[()], work: Work) -> Outcome:
    rows: list[dict[str, object]] = [
        {"id": text_digest(text), "text": text, "label": "x", "split": "test", "group_id": "x"}
        for text in sentences(n_examples)
    ]
    write_rows(work.directory / "examples.parquet", rows, EXAMPLE)
    return Outcome(rows=n_examples)


def sentences(n: int) -> list[str]:
    rng = random.Random(SEED)
    vocabulary, weights = words(rng)
    return [" ".join(rng.choices(vocabulary, cum_weights=weights, k=rng.randrange(6, 30))) for _ in range(n)]


def texts(n_documents: int, items: list[str]) -> Iterator[str]:
    rng = random.Random(SEED)
    vocabulary, weights = words(rng)
    rng.seed(SEED + 1)  # or the documents would begin with the sentences
    for i in range(n_documents):
        text = rng.choices(vocabulary, cum_weights=weights, k=WORDS)
        if i % PLANTED_EVERY == 0:
            text[WORDS // 2 : WORDS // 2] = [items[i // PLANTED_EVERY % len(items)]]
        text[10::12] = [f"{word}.\n" for word in text[10::12]]
        yield " ".join(text)


def words(rng: random.Random) -> tuple[list[str], list[float]]:
    """Invented words and their cumulative weights, by Zipf's law."""
    syllables = [f"{a}{b}" for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ol")]
    vocabulary = sorted({"".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(2 * VOCABULARY)})
    rng.shuffle(vocabulary)
    total, weights = 0.0, []
    for rank, _ in enumerate(vocabulary[:VOCABULARY], 1):
        total += 1 / rank
        weights.append(total)
    return vocabulary[:VOCABULARY], weights


def against_plain_python(n_documents: int, n_examples: int) -> str:
    """Scanner and a set of tuples on the same documents, one process each, alternately; the best of each."""
    cfg, items = DecontaminateConfig(), sentences(n_examples)
    sample = list(texts(n_documents, items))
    mb = sum(map(len, sample)) / MB
    scanner = Scanner(run_index(items, cfg.n_words, cfg.min_words), cfg.n_words, cfg.min_words)
    runs = plain_runs(items, cfg.n_words, cfg.min_words)
    best = {"scanner": float("inf"), "plain": float("inf")}
    ours = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ours = sorted(set(scanner.runs_of_all(sample)[0].tolist()))
        between = time.perf_counter()
        theirs = [i for i, text in enumerate(sample) if plain_found(text, runs)]
        ended = time.perf_counter()
        best = {
            "scanner": min(best["scanner"], between - started),
            "plain": min(best["plain"], ended - between),
        }
        assert ours == theirs, (ours, theirs)
    return (
        f"One process, {n_documents:,} documents: {mb / best['scanner']:.1f} MB/s, plain Python"
        f" {mb / best['plain']:.1f} MB/s, {best['plain'] / best['scanner']:.1f} times as long; both found"
        f" {len(ours)}."
    )


def plain_runs(items: list[str], n_words: int, min_words: int) -> dict[int, set[tuple[str, ...]]]:
    runs: dict[int, set[tuple[str, ...]]] = {}
    for item in items:
        own = re.findall(r"[^\W_]+", item.lower())
        length = min(n_words, len(own))
        windows = (tuple(own[i : i + length]) for i in range(len(own) - length + 1))
        runs.setdefault(length, set()).update(run for run in windows if len(set(run)) >= min_words)
    return runs


def plain_found(text: str, runs: dict[int, set[tuple[str, ...]]]) -> bool:
    own = re.findall(r"[^\W_]+", text.lower())
    return any(
        tuple(own[i : i + length]) in of_length
        for length, of_length in runs.items()
        for i in range(len(own) - length + 1)
    )


def peer_line(python: Path | None) -> str:
    if python is None:
        return "datatrove: not measured (no --peer)."
    answer = subprocess.run([str(python), "-c", PEER], capture_output=True, encoding="utf-8")
    if answer.returncode:
        return f"datatrove: not measured, it does not start there: {answer.stderr.strip().splitlines()[-1]}"
    found = json.loads(answer.stdout)
    return (
        f"datatrove {found['version']}: not measured, its decontamination imports {found['missing'][0]}, which is not"
        " there."
        if found["missing"]
        else f"datatrove {found['version']}: not measured, it indexes tasks of lighteval by name, not texts."
    )


if __name__ == "__main__":
    main()
