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

from pipeline.store.engine import Done, Failed, LocalProcesses, n_usable_cores
from pipeline.store.worker_pool import WorkerPool


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
        case Path():  # a pipe with a name, that the test reads once
            if not item.exists():
                return 0
            item.write_text(f"{os.getpid()}\n")
            threading.Event().wait()
        case bytes():
            return len(item)
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


def test_engine_bad_items_cost_only_themselves():
    items = [x for i, bad in enumerate(BAD) for x in (i, bad)]
    engine = LocalProcesses(n_workers=2, memory_mb=512)
    results = list(engine.map(behave, items, seconds=4))
    for item, result in zip(items, results, strict=True):
        if isinstance(item, int):
            assert result == Done(item * 2)
        else:
            assert isinstance(result, Failed) and result.reason == BAD[item], (item, result)
    assert "one two" in results[items.index("unpicklable")].detail


@pytest.mark.parametrize("n_workers", [1, 4])
def test_engine_order_does_not_depend_on_the_number_of_workers(n_workers):
    assert list(LocalProcesses(n_workers=n_workers).map(behave, range(100))) == [Done(2 * i) for i in range(100)]


def workers() -> list[psutil.Process]:
    """The worker processes of this one: children of the fork server."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [worker for server in servers for worker in server.children()]


def test_engine_worker_killed_from_outside_costs_a_retry(tmp_path):
    """A worker that the system killed for its memory cost a document in `clean`, and ended every other stage
    (trials of reliability 1, place 2)."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)

    def kill() -> None:
        pid = int(fifo.read_text())
        fifo.unlink()
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = list(LocalProcesses(n_workers=2).map(behave, [*range(20), fifo, *range(20)]))
    killer.join()
    assert results[20] == Done(0)
    assert results[:20] == results[21:] == [Done(2 * i) for i in range(20)]


def test_pool_workers_killed_while_they_wait_cost_nothing():
    """They hung: a worker that waits for work held the lock of the only pipe, and took it with it."""
    pool = WorkerPool(2, None)
    for _ in range(3):
        assert [future.result() for future in [pool.schedule(behave, i, None) for i in range(8)]] == [
            Done(2 * i) for i in range(8)
        ]
        assert workers()
        for worker in workers():
            worker.kill()
    pool.close()
    assert not workers()


def test_pool_goes_on_without_its_fork_server():
    pool = WorkerPool(2, None)
    assert pool.schedule(behave, 1, None).result() == Done(2)
    (server,) = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    server.kill()
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and multiprocessing may still see that
    for item in (1, "kill", 2, "kill", 3):
        result = pool.schedule(behave, item, None).result()
        assert result == Done(2 * item) if isinstance(item, int) else result.reason == "crash"
    pool.close()


def test_engine_item_larger_than_the_memory_of_a_worker_costs_itself():
    engine = LocalProcesses(n_workers=1, memory_mb=64)
    results = list(engine.map(behave, [b"small", b"x" * (80 << 20), b"small"]))
    assert [results[0], results[2]] == [Done(5), Done(5)]
    assert isinstance(results[1], Failed) and results[1].reason == "out_of_memory"


def test_engine_workers_that_cannot_start_stop_the_work():
    """They would drop every page as a crash, and the stage would record that as its output."""
    with pytest.raises(RuntimeError, match="3 worker processes ended before they began to work"):
        list(LocalProcesses(n_workers=2, memory_mb=1 << 60).map(behave, range(50)))  # no limit can be that high


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
from pipeline.store.engine import LocalProcesses
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
    _, alive = psutil.wait_procs(children, timeout=300)
    for process in alive:
        process.kill()
    assert not alive
