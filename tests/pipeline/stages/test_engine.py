"""Worker processes: one bad item costs its own worker, and order does not depend on how many there are."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pipeline.stages.engine import Done, Failed, LocalProcesses, n_usable_cores


class Unpicklable(Exception):
    """Cannot be rebuilt from its arguments, as some exceptions of libraries."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class Panic(BaseException):
    """No Exception, as panics of Rust extensions."""


def behave(item):
    match item:
        case "hang":
            threading.Event().wait()
        case "hang_in_c":
            ctypes.PyDLL(None).pause()  # keeps the interpreter lock, as a regular expression does
        case "abort":
            os.abort()
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat":
            return len(b"x" * (4 << 30))
        case "unpicklable":
            raise Unpicklable("one", "two")
        case "panic":
            raise Panic("oh")
        case "timeout":
            raise TimeoutError("a socket's, not ours")
    return item * 2


BAD = {
    "hang": "timeout",
    "hang_in_c": "timeout",
    "abort": "crash",
    "kill": "crash",
    "eat": "out_of_memory",
    "exit": "error",
    "unpicklable": "error",
    "panic": "error",
    "timeout": "error",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers import this module by the name that pytest gave it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))


def test_engine_bad_items_cost_only_themselves():
    items = [x for i, bad in enumerate(BAD) for x in (i, bad)]
    engine = LocalProcesses(n_workers=2, memory_mb=512)
    results = list(engine.map(behave, items, seconds=1.5))
    for item, result in zip(items, results, strict=True):
        if isinstance(item, int):
            assert result == Done(item * 2)
        else:
            assert isinstance(result, Failed) and result.reason == BAD[item], (item, result)
    assert "one two" in results[items.index("unpicklable")].detail


@pytest.mark.parametrize("n_workers", [1, 4])
def test_engine_order_does_not_depend_on_the_number_of_workers(n_workers):
    assert list(LocalProcesses(n_workers=n_workers).map(behave, range(100))) == [Done(2 * i) for i in range(100)]


def test_engine_takes_items_as_it_needs_them():
    taken = []

    def items():
        for i in range(10_000):
            taken.append(i)
            yield i

    results = LocalProcesses(n_workers=1).map(behave, items())
    assert next(results) == Done(0) and len(taken) < 100
    results.close()
    assert not [child for child in psutil.Process().children(recursive=True) if "spawn_main" in child.name()]


def test_engine_fault_in_the_items_reaches_the_caller():
    def items():
        yield 1
        raise ValueError("bad shard")

    with pytest.raises(ValueError, match="bad shard"):
        list(LocalProcesses(n_workers=1).map(behave, items()))


def test_engine_without_items_gives_nothing():
    assert list(LocalProcesses(n_workers=1).map(behave, [])) == []


def test_engine_zero_workers_means_the_usable_cores():
    assert 1 <= n_usable_cores() <= os.cpu_count()
    assert list(LocalProcesses().map(behave, [1])) == [Done(2)]


PARENT = """
import sys
sys.path.insert(0, {folder!r})
import test_engine
from pipeline.stages.engine import LocalProcesses
if __name__ == "__main__":
    results = LocalProcesses(n_workers=2).map(test_engine.behave, [1, 2, *["hang"] * 4])
    next(results)
    print("ready", flush=True)
    list(results)
"""


def test_engine_killed_parent_leaves_no_worker_behind(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(children) >= 3  # the fork server and two workers
    _, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert not alive
