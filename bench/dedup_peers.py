"""The tools that `dedup` is compared with, each as a function from texts to the names of those that it removes.

In: texts by name, written as Parquet into a temporary folder. Out: `peers`: those that are installed; a line is
printed for each that is not. datatrove 0.10.1 runs its four steps with one process per core, 14 x 8 on word 5-grams,
as FineWeb does; text-dedup runs as a program of an interpreter of its own, because its pins do not agree with ours.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.engine import n_usable_cores

# text_dedup.minhash of 0.4 with its defaults, but a Jaccard index of 0.7; prints the names it keeps
TEXT_DEDUP = """
import json, subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
command = [sys.executable, "-m", "text_dedup.minhash", "--path", "parquet", "--data_files", str(folder / "0.parquet"),
    "--split", "train", "--column", "text", "--batch_size", "10000", "--threshold", "0.7", "--ngram", "5",
    "--min_length", "1", "--cache_dir", str(folder / "cache"), "--output", str(folder / "out")]
subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
from datasets import load_from_disk
print(json.dumps(list(load_from_disk(str(folder / "out"))["id"])))
"""


@dataclass(slots=True)
class Peer:
    name: str
    removed: Callable[[Mapping[str, str]], Mapping[str, str | None]]
    seconds: float | None = None  # where a part of the call is no work of the tool


def peers(text_dedup: Path | None) -> list[Peer]:
    found = []
    if find_spec("datatrove"):
        found.append(Peer("datatrove", datatrove_removed))
    else:
        print("datatrove is not installed: skipped (extra `bench`)", file=sys.stderr)
    if text_dedup:
        found.append(Peer("text-dedup", lambda texts: text_dedup_removed(text_dedup, texts)))
    else:
        print("--text-dedup is not given: text-dedup skipped", file=sys.stderr)
    return found


def write_parquet(texts: Mapping[str, str], folder: Path, n_files: int) -> int:
    """Files of consecutive texts. Returns how many."""
    names = list(texts)
    size = -(-len(names) // n_files)
    starts = range(0, len(names), size)
    for i, start in enumerate(starts):
        own = names[start : start + size]
        table = {"id": own, "text": [texts[name] for name in own]}
        pq.write_table(pa.table(table), folder / f"{i}.parquet")
    return len(starts)


def datatrove_removed(texts: Mapping[str, str]) -> dict[str, str | None]:
    os.environ.setdefault("DATATROVE_COLORIZE_LOGS", "0")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashDedupFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from loguru import logger

    logger.remove()
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        n_tasks = write_parquet(texts, folder / "in", n_usable_cores())
        reader = ParquetReader(str(folder / "in"))
        kept = ParquetWriter(str(folder / "kept"))
        steps: list[tuple[list[object], int]] = [
            ([reader, MinhashDedupSignature(str(folder / "signatures"))], n_tasks),
            ([MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"))], 14),
            ([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"))], 1),
            ([reader, MinhashDedupFilter(str(folder / "remove")), kept], n_tasks),
        ]
        for i, (pipeline, tasks) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline=pipeline, tasks=tasks, workers=n_usable_cores(), logging_dir=str(folder / f"log{i}")
            ).run()
        left = {
            one
            for path in (folder / "kept").glob("*.parquet")
            for one in pq.read_table(path, columns=["id"])["id"].to_pylist()
        }
    return {name: None for name in texts if name not in left}


def text_dedup_removed(python: Path, texts: Mapping[str, str]) -> dict[str, str | None]:
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as name:
        write_parquet(texts, Path(name), 1)
        command = [str(python), "-c", TEXT_DEDUP, name]
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if answer.returncode:
        raise SystemExit(f"text-dedup failed: {answer.stderr[-2000:]}")
    left = set(json.loads(answer.stdout.splitlines()[-1]))
    return {name: None for name in texts if name not in left}


def datatrove_signatures() -> Callable[[str], object]:
    """Its 14 x 8 values of the word 5-grams of a text, without writing them."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        step = MinhashDedupSignature(folder)

    def signature(text: str) -> object:
        shingles = step.get_shingles(text)
        return step.get_signature(shingles) if shingles.size else None

    signature("Words are split by what is loaded once.")
    return signature
