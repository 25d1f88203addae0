"""How long does it take to make examples of a large labelled file, and how much memory?

In: --rows, --format csv, tsv, jsonl or parquet. Out: seconds, also of the processor alone, and peak memory of the
stage `examples`, and its measures. Steps: texts are drawn from words whose frequencies follow Zipf's law, as those of
a language do; one in thirty repeats another with a word added. They are written to a temporary file by another
process, so that its memory does not count.

    python -m bench.examples [--rows 1000000] [--format csv] [--profile]
"""

import argparse
import cProfile
import csv
import json
import multiprocessing
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.examples.stage import LabelledFile
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND, ClassificationExamplesConfig

N_WORDS = 50_000
LABELS = ("anger", "fear", "joy", "neutral", "sadness")
COPIES = 30  # one text in so many repeats another with a word added
AT_ONCE = 10_000
SHOWN = 25  # functions of a profile


def texts(n_rows: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    letters = np.array(list("aaabcdeeeefghiiijklmnooopqrstttuuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 11, N_WORDS)])
    frequencies = 1 / np.arange(1, N_WORDS + 1)
    frequencies /= frequencies.sum()
    before = ["a first text"]
    for start in range(0, n_rows, AT_ONCE):
        sizes = rng.integers(6, 30, min(AT_ONCE, n_rows - start))
        drawn = np.split(words[rng.choice(N_WORDS, sizes.sum(), p=frequencies)], np.cumsum(sizes)[:-1])
        for i, own in enumerate(drawn):
            text = " ".join(own)
            if rng.integers(COPIES) == 0:
                text = f"{before[rng.integers(len(before))]} {own[0]}"
            yield text, LABELS[(start + i) % len(LABELS)]
        before = [" ".join(own) for own in drawn]


def write(path: Path, n_rows: int) -> None:
    if path.suffix == ".parquet":
        schema = pa.schema([("text", pa.string()), ("label", pa.string())])
        rows = list(texts(n_rows))
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts(n_rows))
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("text", "label"), *texts(n_rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("csv", "tsv", "jsonl", "parquet"), default="csv")
    parser.add_argument("--profile", action="store_true", help="show which functions take the time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{args.format}"
        writer = multiprocessing.Process(target=write, args=(path, args.rows))
        writer.start()
        writer.join()
        cfg = ClassificationExamplesConfig(text="text", label="label")
        before, start, processor = _peak(), time.perf_counter(), time.process_time()
        profile = cProfile.Profile()
        if args.profile:
            profile.enable()
        built = KIND.build_examples(Store(root=Path(folder)), LabelledFile(path), cfg, Path(folder))
        profile.disable()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        print(
            f"{args.rows:,} rows of {args.format} ({path.stat().st_size / 1e6:,.0f} MB): {seconds:,.1f} s,"
            f" {processor:,.1f} s of the processor, peak memory {_peak() / 1e6:,.0f} MB, {before / 1e6:,.0f} MB of it"
            " before the first row"
        )
        print(built.record["measures"], built.counts)
        if args.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(SHOWN)


def _peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
