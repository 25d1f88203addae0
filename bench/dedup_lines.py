"""What `dedup_lines` finds of boilerplate that was planted, and what it costs in time and memory by corpus size.

In: nothing but numbers. The planted corpora are made here, by code that shares nothing with the stage: sites of
many sizes, each with a menu, a footer and a notice of its own around or between articles of random words, on a set
share of its pages; and as negatives what sites repeat without being boilerplate: stage directions, listings, table
heads, headings, verse and short answers. Out: recall and precision by share of the pages, and for every size a
process of its own with its seconds, ms per document, and peak memory of the process and its workers.

    .venv/bin/python -m bench.dedup_lines [--documents 10000 100000 ...] [--workers N] [--seed N] [--folder DIR]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.machine import Memory, machine
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import CORPUS, REPEATED, Counts, Shards
from pipeline.store.shards import EVIDENCE_FOLDER, read_table, shard_paths, write_table
from pipeline.store.store import Outcome, Stage, Store, read_handle

ROOT = Path(__file__).resolve().parent.parent
SHARES = (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1)  # of the pages of a site that carry its boilerplate
PLANTED_PAGES = 7000
ROWS_OF_SHARD = 10_000
MB = 1e6
VOCABULARY_SIZE = 30_000
SENTENCES = 20_000
NEGATIVES = (
    "Exeunt.",
    "[Enter a Messenger.]",
    "HAMLET",
    "```\nimport numpy as np\nfrom collections.abc import Callable, Iterable, Mapping, Sequence\n```",
    "| name of the parameter | what it means | default |\n| --- | --- | --- |",
    "## Parameters and what they mean for those who call the function",
    "Returns: True",
    "Shall I compare thee?\nThou art more lovely.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 = as many as cores")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="new folder for all that is made; default: a temporary one")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "dedup_lines.md")
    parser.add_argument("--cost", action="store_true", help="run the stage on what lies in --folder; print its cost")
    args = parser.parse_args()
    if args.cost:
        print(json.dumps(cost_of(args.folder, args.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as temporary:
        folder = args.folder or Path(temporary)
        planted = planted_table(folder / "planted", args.seed, args.workers)
        costs = {
            size: child_cost(folder / str(size), size, args.seed, args.workers) for size in sorted(args.documents)
        }
    text = "\n".join([machine(args.workers), "", *planted, "", *cost_table(costs), ""])
    args.out.write_text(text, "utf-8")
    print(text)


class Words:
    """Random words with the frequencies of a language (Zipf), quick enough for a million documents."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = ["".join(self.rng.choices(letters, k=self.rng.randrange(2, 10))) for _ in range(VOCABULARY_SIZE)]
        total, self.weights = 0.0, []
        for rank in range(VOCABULARY_SIZE):
            total += 1 / (rank + 2)
            self.weights.append(total)

    def sentence(self, n_words: int) -> str:
        return " ".join(self.rng.choices(self.words, cum_weights=self.weights, k=n_words)).capitalize() + "."

    def paragraphs(self, n: int) -> list[str]:
        return [" ".join(self.sentence(self.rng.randrange(6, 16)) for _ in range(3)) for _ in range(n)]


def planted_pages(seed: int) -> Iterator[tuple[float, dict[str, Any], Counter[str]]]:
    """Share of the site's pages, a page, and the lines that were planted into it."""
    words = Words(seed)
    rng, n_pages = words.rng, 0
    while n_pages < PLANTED_PAGES:
        share = SHARES[n_pages % len(SHARES)]
        n_of_site, host = rng.choice((8, 20, 60, 200)), f"site{n_pages}.example"
        menu = [f"- {words.sentence(rng.randrange(1, 4))[:-1]}" for _ in range(rng.randrange(3, 10))]
        footer = [words.sentence(rng.randrange(4, 14)) for _ in range(rng.randrange(2, 6))]
        notice = words.sentence(14)
        for i in range(n_of_site):
            parts = [f"# {words.sentence(5)}", *words.paragraphs(rng.randrange(2, 9))]
            parts.insert(rng.randrange(2, len(parts)), rng.choice(NEGATIVES))
            planted: Counter[str] = Counter()
            if rng.random() < share:
                parts.insert(rng.randrange(2, len(parts)), notice)
                parts = ["\n".join(menu), *parts, *footer]
                planted = Counter([*menu, *footer, notice])
            yield share, document(f"https://{host}/{i}", "\n\n".join(parts)), planted
        n_pages += n_of_site


def document(url: str, text: str) -> dict[str, Any]:
    neutral = {one.name: None if one.nullable else _nothing(one.type) for one in CORPUS}
    own = {"id": url, "page_id": url, "source": "web", "url": url, "media_type": "text/html", "text": text}
    return {**neutral, **own, "n_words": len(text.split()), "cluster_size": 1}


def _nothing(kind: pa.DataType) -> Any:
    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pa.scalar(0).cast(kind).as_py()


def planted_table(folder: Path, seed: int, n_workers: int) -> list[str]:
    pages = list(planted_pages(seed))
    store = Store(root=folder, engine=LocalProcesses(n_workers=n_workers))
    built = store.build(DEDUP_LINES, DedupLinesConfig(), written(store, [page for _, page, _ in pages]))
    removed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in shard_paths(built.handle.directory, EVIDENCE_FOLDER):
        for row in read_table(path, REPEATED).to_pylist():
            removed[row["page_id"]][row["preview"]] += 1
    found: dict[float, list[int]] = {share: [0, 0, 0] for share in SHARES}  # planted, found, removed
    for share, page, planted in pages:
        gone = removed[page["page_id"]]
        for place, n in enumerate((planted.total(), (planted & gone).total(), gone.total())):
            found[share][place] += n
    lines = ["| share of the pages of a site | planted lines | removed | recall | precision |", "|---" * 5 + "|"]
    rows = [(f"{share:.0%}", *counts) for share, counts in found.items()]
    rows.append(("all", *(sum(counts[place] for counts in found.values()) for place in range(3))))
    for name, n_planted, n_found, n_removed in rows:
        precision = f"{n_found / n_removed:.4f}" if n_removed else "-"
        lines.append(f"| {name} | {n_planted:,} | {n_removed:,} | {n_found / n_planted:.4f} | {precision} |")
    return lines


def written(store: Store, rows: list[dict[str, Any]]) -> Any:
    def documents(cfg: Any, inputs: tuple, work: Any) -> Outcome:
        for shard, first in enumerate(range(0, len(rows), ROWS_OF_SHARD)):
            table = pa.Table.from_pylist(rows[first : first + ROWS_OF_SHARD], schema=CORPUS)
            write_table(work.directory / f"web-{shard:05d}.parquet", table)
        return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

    return store.build(Stage(name="dedup", version=1, function=documents, handle=Shards), {"rows": len(rows)}).handle


def write_corpus(folder: Path, n_documents: int, seed: int) -> None:
    """About 1 kB a document; sites of 1 to 1000 pages, two thirds of which carry a menu and a footer."""

    def documents(cfg: Any, inputs: tuple, work: Any) -> Outcome:
        words = Words(seed)
        pages = scale_pages(words)
        for shard, first in enumerate(range(0, n_documents, ROWS_OF_SHARD)):
            rows = [next(pages) for _ in range(min(ROWS_OF_SHARD, n_documents - first))]
            write_table(work.directory / f"web-{shard:05d}.parquet", pa.Table.from_pylist(rows, schema=CORPUS))
        return Outcome(rows=n_documents, counts=Counts(rows_in=n_documents, kept=n_documents))

    stage = Stage(name="dedup", version=1, function=documents, handle=Shards)
    built = Store(root=folder / "store").build(stage, {"documents": n_documents, "seed": seed})
    (folder / "input.txt").write_text(str(built.handle.directory), "utf-8")


def scale_pages(words: Words) -> Iterator[dict[str, Any]]:
    rng, site = words.rng, 0
    sentences = [words.sentence(rng.randrange(6, 16)) for _ in range(SENTENCES)]  # to make one for each page is slow
    while True:
        site += 1
        menu = "\n".join(f"- {words.sentence(2)[:-1]}" for _ in range(6))
        footer = "\n\n".join(words.sentence(9) for _ in range(3))
        for page in range(rng.choice((1, 3, 10, 30, 100, 1000))):
            parts = [" ".join(rng.choices(sentences, k=3)) for _ in range(6)]
            parts = [menu, *parts, footer] if site % 3 else parts
            yield document(f"https://site{site}.example/{page}", "\n\n".join(parts))


def child_cost(folder: Path, n_documents: int, seed: int, n_workers: int) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    write_corpus(folder, n_documents, seed)
    command = [
        sys.executable,
        "-m",
        "bench.dedup_lines",
        "--cost",
        "--folder",
        str(folder),
        "--workers",
        str(n_workers),
    ]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    cost = json.loads(answer.stdout)
    print(f"{n_documents}: {cost}", file=sys.stderr)
    return cost


def cost_of(folder: Path, n_workers: int) -> dict[str, float]:
    handle = read_handle(Path((folder / "input.txt").read_text("utf-8")))
    store = Store(root=folder / "store", engine=LocalProcesses(n_workers=n_workers))
    with Memory() as memory:
        started = time.perf_counter()
        built = store.build(DEDUP_LINES, DedupLinesConfig(), handle)
        seconds = time.perf_counter() - started
    input_mb = sum(path.stat().st_size for path in shard_paths(handle.directory)) / MB
    lines = built.record["measures"]["removed_lines"]
    return {"seconds": seconds, "input_mb": input_mb, "removed_lines": lines, **memory.measures()}


def cost_table(costs: dict[int, dict[str, float]]) -> list[str]:
    lines = [
        "| documents | shards MB | seconds | ms per document | times the first size | lines removed |"
        " peak parent MB | peak worker MB | peak of all MB |",
        "|---" * 9 + "|",
    ]
    first = min(costs)
    for size, cost in costs.items():
        a_document, base = cost["seconds"] / size, costs[first]["seconds"] / first
        lines.append(
            f"| {size:,} | {cost['input_mb']:.1f} | {cost['seconds']:.1f} | {1000 * a_document:.3f} |"
            f" {a_document / base:.2f} | {cost['removed_lines']:,} | {cost['parent_mb']:.0f} |"
            f" {cost['worker_mb']:.0f} | {cost['total_mb']:.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
