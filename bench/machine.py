"""What the benchmarks say of the machine they ran on, and how much memory a run took.

In: nothing, or the process that looks. Out: a line of text; the resident memory of the process and its children.
"""

import platform
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipeline.store.engine import n_usable_cores

ROOT = Path(__file__).resolve().parent.parent
MB = 1e6
SAMPLE_SECONDS = 0.05  # between two looks at the memory


class Memory:
    """Looks at this process and its children from a thread: resident memory when it began, and the peaks."""

    def __init__(self):
        self.process = psutil.Process()
        self.start = self.process.memory_info().rss
        self.parent, self.worker, self.total = self.start, 0, self.start
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            parent, workers = self.process.memory_info().rss, []
            for child in self.process.children(recursive=True):
                try:
                    workers.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.parent = max(self.parent, parent)
            self.worker = max(self.worker, *workers, 0)
            self.total = max(self.total, parent + sum(workers))

    def measures(self) -> dict[str, float]:
        names = {"start": self.start, "parent": self.parent, "worker": self.worker, "total": self.total}
        return {f"{name}_mb": round(value / MB, 1) for name, value in names.items()}


def machine(n_workers: int) -> str:
    """Processor, cores, workers, memory, commit and day."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8")
    return (
        f"{models[0] if models else platform.machine()}, {n_usable_cores()} cores, {n_workers or n_usable_cores()}"
        f" workers, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()},"
        f" commit {commit.stdout.strip()}, {datetime.now(UTC):%Y-%m-%d}."
    )
