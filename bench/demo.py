"""How long the demo takes from nothing, stage by stage, and how much of it is orchestration.

In: sources and tasks of data/. Out: a markdown table, printed and written to bench/demo.md, with the machine named.
Orchestration is everything that is not inside a stage function: the start of Python, Dagster, MLflow, checks.

    .venv/bin/python -m bench.demo [--cache data/cache] [--out bench/demo.md] [--keep DIR]
"""

import argparse
import contextlib
import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipeline.store.engine import n_usable_cores
from pipeline.store.layout import Layout, all_entries, asset_records

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder of fetched packages to share; default: fetch them")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "demo.md")
    parser.add_argument("--keep", type=Path, help="new folder for all that is made, to look at it afterwards")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        layout = Layout((args.keep or Path(folder)).resolve())
        layout.data.mkdir(parents=True, exist_ok=bool(args.keep is None))
        for settings in (ROOT / "data").glob("*.toml"):
            shutil.copy(settings, layout.data)
        if args.cache:
            shutil.copytree(args.cache, layout.cache)
        lines = table(layout, demo_seconds(layout), demo_seconds(layout))
    text = "\n".join([f"{machine()}.", "", *lines, ""])
    args.out.write_text(text, "utf-8")
    print(text)


def demo_seconds(layout: Layout) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one `gristmill demo`: the latter hold on a machine that others use too."""
    if sys.platform == "linux":  # worker processes outlive the one that started them; only whom we wait for counts
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "GRISTMILL_DATA": str(layout.data)}
    subprocess.run([sys.executable, "-m", "pipeline", "demo"], env=environment, cwd=ROOT, check=True)
    seconds = time.perf_counter() - started
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(layout: Layout, first: tuple[float, float], second: tuple[float, float]) -> list[str]:
    rows = [
        (entry["asset"], record["stage"], record["rows"], record["seconds"])
        for entry in sorted(all_entries(layout), key=lambda entry: entry["asset"])
        for record in reversed(asset_records(layout, entry["asset"]))
    ]
    inside = sum(seconds for *_, seconds in rows)
    outside = first[0] - inside
    return [
        "| asset | stage | rows | seconds | CPU seconds |",
        "|---|---|---:|---:|---:|",
        *(f"| {asset} | {stage} | {n_rows:,} | {seconds:.1f} | |" for asset, stage, n_rows, seconds in rows),
        f"| inside the stages | | | {inside:.1f} | |",
        f"| orchestration ({outside / first[0]:.0%}) | | | {outside:.1f} | |",
        f"| **`gristmill demo`, from nothing** | | | **{first[0]:.1f}** | **{first[1]:.1f}** |",
        f"| **again, nothing to rebuild** | | | **{second[0]:.1f}** | **{second[1]:.1f}** |",
    ]


def machine() -> str:
    """Processor, cores, memory, versions, commit and day."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    processor = models[0] if models else platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8")
    import torch

    return (
        f"{processor}, {n_usable_cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB,"
        f" Python {platform.python_version()}, torch {torch.__version__}, commit {commit.stdout.strip()},"
        f" {datetime.now(UTC):%Y-%m-%d}"
    )


if __name__ == "__main__":
    main()
