"""What a document costs `dedup` from 10,000 to 1,000,000 documents of about 1 kB: seconds, memory, disk, by step.

In: nothing, or a folder of texts (--data) whose words in their order are what documents are made of. Out: a markdown
table on stdout, and in the file that --out names.

A corpus has sources of 16 shards, as `collect` makes them. Its documents are drawn from a Zipf vocabulary (or are
runs of the texts' words), with stock sentences in between that many share; one in ten is an exact copy of another
one and one in ten a copy with words edited. Every size runs in a process of its own, whose memory is looked at
twenty times a second together with that of its workers. The ratio to linear is ms per document, over that of the
smallest size. With --probes, so many new documents are then compared with the output of each size as an accepted
corpus.

    .venv/bin/python -m bench.dedup_scale [--documents 10000 100000 1000000] [--data DIR] [--folder DIR] [--workers N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from bench.machine import machine
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import FILTERED, Counts, Shards
from pipeline.store.settings import read_assignments
from pipeline.store.shards import text_digest, write_table
from pipeline.store.store import Outcome, Stage, Store, Work, read_handle

ROOT = Path(__file__).resolve().parent.parent
SHARDS_A_SOURCE = 16  # as CollectConfig.n_shards
SHARD_DOCUMENTS = 15_625  # then there is one more source: 4 sources of a million documents
WORDS = 160  # a document on average: about 1 kB
SENTENCE_WORDS = 20
STOCK_SENTENCES = 2000
STOCK_SHARE = 0.03  # of all sentences
EXACT_SHARE = 0.1
NEAR_SHARE = 0.1
EDITED_WORDS = (0.0, 0.04)  # share of the words of a near copy that are others: similarity 0.7 to 1
POOL = 30_000  # documents that copies are made of, held in memory
VOCABULARY = 200_000
SAMPLE_SECONDS = 0.05
STEPS = {  # unit of progress -> what is done meanwhile
    "documents": "signatures",
    "queries": "candidates",
    "texts": "shingles",
    "ranks": "verification",
    "shards": "writing",
}
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    documents: int
    data: str | None
    seed: int = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--data", type=Path, help="folder of .txt files; default: a Zipf vocabulary")
    parser.add_argument("--folder", type=Path, help="where all is made and stays; default: a temporary one")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 = as many as cores")
    parser.add_argument("--probes", type=int, help="new documents to compare with what each size leaves")
    parser.add_argument("--accepted", type=Path, help="with --corpus: output that it must not repeat")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="a setting of dedup")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--corpus", type=Path, help="deduplicate this corpus and print what it cost")
    args = parser.parse_args()
    if args.corpus:
        print(json.dumps(cost_of(args.corpus, args.accepted, args.folder, args.workers, args.set)))
        return
    costs: dict[int, dict[str, Any]] = {}
    probes: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as temporary:
        folder = args.folder or Path(temporary)
        for size in sorted(args.documents):
            data = str(args.data) if args.data else None
            store = Store(root=folder / "corpora")
            corpus = store.build(CORPUS_STAGE, CorpusConfig(documents=size, data=data)).handle
            root = folder / f"store-{size}-{time.time_ns()}"
            costs[size] = child_cost(corpus, None, root, args.workers, args.set)
            if args.probes:
                new = store.build(CORPUS_STAGE, CorpusConfig(documents=args.probes, data=data, seed=5)).handle
                accepted = Path(costs[size]["directory"])
                probes[size] = child_cost(new, accepted, folder / f"{root.name}-new", args.workers, args.set)
    text = "\n".join([machine(args.workers), "", *table(costs), "", *(probe_table(probes) if probes else ()), ""])
    if args.out:
        args.out.write_text(text, "utf-8")
    print(text)


def write_corpus(cfg: CorpusConfig, inputs: tuple[()], work: Work) -> Outcome:
    rng = np.random.default_rng(cfg.seed)
    texts = Texts(rng, cfg.data)
    n_shards = -(-cfg.documents // SHARD_DOCUMENTS) if cfg.documents > SHARD_DOCUMENTS else SHARDS_A_SOURCE
    n_shards = -(-n_shards // SHARDS_A_SOURCE) * SHARDS_A_SOURCE
    for shard in range(n_shards):
        source = f"source{shard // SHARDS_A_SOURCE}"
        n_rows = cfg.documents * (shard + 1) // n_shards - cfg.documents * shard // n_shards
        name = f"{source}-{shard % SHARDS_A_SOURCE:05d}.parquet"
        write_table(work.directory / name, documents(rng, source, shard, texts.take(n_rows)))
    counts = Counts(rows_in=cfg.documents, kept=cfg.documents)
    return Outcome(rows=cfg.documents, counts=counts)


CORPUS_STAGE = Stage(name="filter", version=1, function=write_corpus, handle=Shards)


class Texts:
    """Documents one after the other; some are copies of earlier ones."""

    def __init__(self, rng: np.random.Generator, data: str | None):
        self.rng = rng
        if data is None:
            self.words = np.array([spelled(rank) for rank in range(VOCABULARY)], dtype=object)
            self.chances = np.cumsum(1 / np.arange(3, VOCABULARY + 3))
            self.chances /= self.chances[-1]
        else:
            files = sorted(Path(data).rglob("*.txt"))
            self.words = np.array(
                " ".join(path.read_text("utf-8", errors="replace") for path in files).split(), dtype=object
            )
            self.chances = None
        self.stock = [self.sentence() for _ in range(STOCK_SENTENCES)]
        self.pool: list[list[str]] = []

    def take(self, n_documents: int) -> list[str]:
        return [" ".join(self.document()) for _ in range(n_documents)]

    def document(self) -> list[str]:
        kind = self.rng.random()
        if self.pool and kind < EXACT_SHARE + NEAR_SHARE:
            words = self.pool[self.rng.integers(len(self.pool))]
            return words if kind < EXACT_SHARE else self.edited(words)
        n_sentences = max(1, self.rng.poisson(WORDS / SENTENCE_WORDS))
        words = self.run(n_sentences * SENTENCE_WORDS)
        for at in np.flatnonzero(self.rng.random(n_sentences) < STOCK_SHARE):
            words[at * SENTENCE_WORDS : (at + 1) * SENTENCE_WORDS] = self.stock[self.rng.integers(len(self.stock))]
        if len(self.pool) < POOL:
            self.pool.append(words)
        else:
            self.pool[self.rng.integers(POOL)] = words
        return words

    def edited(self, words: list[str]) -> list[str]:
        share = self.rng.uniform(*EDITED_WORDS)
        own = list(words)
        for at in np.flatnonzero(self.rng.random(len(own)) < share):
            own[at] = f"edit{self.rng.integers(10**9)}"
        return own

    def sentence(self) -> list[str]:
        return self.run(SENTENCE_WORDS)

    def run(self, n_words: int) -> list[str]:
        if self.chances is None:
            start = self.rng.integers(len(self.words) - n_words)
            return self.words[start : start + n_words].tolist()
        return self.words[np.searchsorted(self.chances, self.rng.random(n_words))].tolist()


def spelled(rank: int) -> str:
    """Short words for frequent ranks, as in a language: 2 to 9 letters."""
    consonants, vowels, word = "bcdfghjklmnpqrstvwz", "aeiou", ""
    rank += 19
    while rank:
        word += consonants[rank % 19] + vowels[rank // 19 % 5]
        rank //= 95
    return word


def documents(rng: np.random.Generator, source: str, shard: int, texts: list[str]) -> pa.Table:
    n = len(texts)
    names = [f"{shard:05d}-{row:06d}" for row in range(n)]
    columns: dict[str, Any] = {
        "id": [text_digest(text) for text in texts],
        "page_id": [text_digest(name) for name in names],
        "source": [source] * n,
        "url": [f"https://{source}.example/{name}.html" for name in names],
        "text": texts,
        "language": ["en"] * n,
        "n_words": [text.count(" ") + 1 for text in texts],
    }
    arrays = [pa.array(columns.get(field.name) or filler(rng, field, n), field.type) for field in FILTERED]
    return pa.table(arrays, schema=FILTERED)


def filler(rng: np.random.Generator, field: pa.Field, n: int) -> Any:
    if pa.types.is_floating(field.type):
        return rng.random(n).round(4)
    if pa.types.is_integer(field.type):
        return rng.integers(0, 20, n)
    if field.nullable:
        return [None] * n
    return ["" if pa.types.is_string(field.type) else []] * n


def child_cost(
    corpus: Shards, accepted: Path | None, root: Path, n_workers: int, settings: list[str]
) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.dedup_scale", "--corpus", str(corpus.directory), "--folder", str(root)]
    command += ["--workers", str(n_workers), *(f"--set={setting}" for setting in settings)]
    command += ["--accepted", str(accepted)] if accepted else []
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    cost = json.loads(answer.stdout)
    print(f"{corpus.rows} documents: {cost}", file=sys.stderr)
    return cost


def cost_of(corpus: Path, accepted: Path | None, root: Path, n_workers: int, settings: list[str]) -> dict[str, Any]:
    cfg = read_assignments(DedupConfig, settings)
    clock = Clock()
    store = Store(root=root, engine=LocalProcesses(n_workers=n_workers), show=clock.show)
    with Watch(root) as watch:
        started = time.perf_counter()
        built = store.build(DEDUP, cfg, *(read_handle(path) for path in (corpus, accepted) if path))
        seconds = time.perf_counter() - started
    assert built.counts is not None and built.counts.is_conserved()
    return {
        "rows": built.counts.rows_in,
        "dropped": built.counts.dropped,
        "digest": built.handle.digest,
        "directory": str(built.handle.directory),
        "seconds": seconds,
        "steps": clock.steps(started + seconds),
        **watch.measures(),
        "output_mb": built.record["bytes"] / MB,
        "measures": {name: built.record["measures"][name] for name in ("candidate_pairs", "compared_pairs")},
    }


class Clock:
    """Notes when each unit of progress is first heard of."""

    def __init__(self):
        self.begins: dict[str, float] = {}

    def show(self, stage: str, done: int, total: int | None, unit: str) -> None:
        self.begins.setdefault(unit, time.perf_counter())

    def steps(self, end: float) -> dict[str, float]:
        """Seconds of each step, from its first sign to that of the next one."""
        moments = [*self.begins.values(), end]
        return {STEPS[unit]: moments[i + 1] - moments[i] for i, unit in enumerate(self.begins)}


class Watch:
    """Looks at this process and its children from a thread: peak of resident memory (sum) and of spilled bytes."""

    def __init__(self, root: Path):
        self.process = psutil.Process()
        self.root = root
        self.start = self.total = self.parent = self.process.memory_info().rss
        self.spilled = self.database = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()

    def measures(self) -> dict[str, float]:
        return {
            "peak_mb": self.total / MB,
            "parent_mb": self.parent / MB,
            "spilled_mb": self.spilled / MB,
            "scratch_mb": self.database / MB,
        }

    def _watch(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            parent = self.process.memory_info().rss
            self.parent = max(self.parent, parent)
            self.total = max(self.total, parent + sum(memory(self.process)))
            sizes = list(scratch_sizes(self.root))
            self.spilled = max(self.spilled, sum(size for path, size in sizes if "spill" in path.parts))
            self.database = max(self.database, sum(size for _, size in sizes))


def memory(process: psutil.Process) -> Iterator[int]:
    for child in process.children(recursive=True):
        try:
            yield child.memory_info().rss
        except psutil.NoSuchProcess:
            continue


def scratch_sizes(root: Path) -> Iterator[tuple[Path, int]]:
    for path in root.glob("dedup/*/.scratch/**/*"):
        try:
            yield path, path.stat().st_size
        except OSError:  # it was there a moment ago
            continue


def table(costs: dict[int, dict[str, Any]]) -> list[str]:
    steps = list(STEPS.values())
    head = ["documents", "seconds", *steps, "ms per document", "to linear", "peak MB", "spilled MB", "scratch MB"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    first = next(iter(costs.values()))
    for size, cost in costs.items():
        ms = 1000 * cost["seconds"] / size
        cells = [f"{size:,}", f"{cost['seconds']:.1f}", *(f"{cost['steps'].get(step, 0):.1f}" for step in steps)]
        cells += [f"{ms:.3f}", f"{ms / (1000 * first['seconds'] / first['rows']):.2f}"]
        cells += [f"{cost[name]:.0f}" for name in ("peak_mb", "spilled_mb", "scratch_mb")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def probe_table(costs: dict[int, dict[str, Any]]) -> list[str]:
    """What new documents cost by the size of the accepted corpus that they are compared with."""
    lines = ["| accepted | new | seconds | candidates | ms a new document | peak MB |", "|" + "---|" * 6]
    for size, cost in costs.items():
        cells = [f"{size:,}", f"{cost['rows']:,}", f"{cost['seconds']:.1f}", f"{cost['steps']['candidates']:.1f}"]
        cells += [f"{1000 * cost['seconds'] / cost['rows']:.2f}", f"{cost['peak_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
