"""Heavy parallel work: one call, `Engine.map(function, items)`, with results in the order of the items.

In: a module-level function and any number of items. Out: for each item a `Done` or a `Failed`, never an
exception, because a page that hangs, crashes or eats memory costs its own worker and nothing else. The worker
count is no part of any fingerprint, and the order of the results does not depend on it.
"""

import faulthandler
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Generic, Protocol, TypeVar

import psutil
from pebble import ProcessExpired, ProcessPool

T = TypeVar("T")
R = TypeVar("R")
LOOK_AHEAD = 8  # items in flight a worker: enough to keep workers busy, few enough to bound memory
PARENT_SECONDS = 1.0  # between two looks of a worker whether its parent still lives
GRACE_SECONDS = 10.0
DETAIL_CHARACTERS = 1000
TASKS_A_WORKER = 2000  # then a fresh process, against slow leaks in C extensions


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    value: R


@dataclass(frozen=True, slots=True)
class Failed:
    """`reason` is one of timeout, crash, out_of_memory, error: the names that drop counts use."""

    reason: str
    detail: str


class Engine(Protocol):
    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        seconds: float | None = None,
        memory_mb: int | None = None,
    ) -> Iterator[Done[R] | Failed]:
        """Results in the order of `items`; an item that takes longer than `seconds` is a Failed("timeout"), one that
        wants more than `memory_mb` (None = the engine's own limit) a Failed("out_of_memory")."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalProcesses:
    """Worker processes on this machine, each killed and replaced when an item overruns its limits."""

    n_workers: int = 0  # 0 = as many as this process may use cores
    memory_mb: int | None = 4096  # address space a worker may add to what it starts with; None = unlimited

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        seconds: float | None = None,
        memory_mb: int | None = None,
    ) -> Iterator[Done[R] | Failed]:
        n_workers = self.n_workers or n_usable_cores()
        pool = ProcessPool(
            max_workers=n_workers,
            max_tasks=TASKS_A_WORKER,
            # forked workers would inherit locks of Dagster's and torch's threads in whatever state they are
            context=get_context("forkserver"),
            initializer=_start_worker,
            initargs=(self.memory_mb if memory_mb is None else memory_mb, os.getpid()),
        )
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.schedule(_guarded, args=(function, item, seconds), timeout=seconds))
                if len(waiting) >= n_workers * LOOK_AHEAD:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.close()
            pool.join()


def n_usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(memory_mb: int | None, parent_pid: int) -> None:
    _limit_memory(memory_mb)
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()


def _end_with_parent(parent_pid: int) -> None:
    """Pipes do not tell a worker that its parent was killed, because every worker holds both of their ends."""
    try:
        parent = psutil.Process(parent_pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PARENT_SECONDS)
    except psutil.NoSuchProcess:
        pass
    os._exit(1)


def _limit_memory(memory_mb: int | None) -> None:
    if memory_mb is None or sys.platform != "linux":  # others do not honour the limit, or refuse it
        return
    limit = psutil.Process().memory_info().vms + memory_mb * 1024 * 1024
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _guarded(function: Callable[[T], R], item: T, seconds: float | None) -> Done[R] | Failed:
    """Runs in the worker, so that no exception has to travel: some cannot be pickled, some are no Exception."""
    if seconds is not None:  # for an item that blocks every thread of a worker whose parent was killed
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    try:
        return Done(function(item))
    except MemoryError as error:
        return Failed("out_of_memory", str(error))
    except BaseException as error:  # becomes a counted drop, see the module docstring
        return Failed("error", f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS])
    finally:
        faulthandler.cancel_dump_traceback_later()


def _result(future) -> Done | Failed:
    try:
        return future.result()
    except TimeoutError as error:
        return Failed("timeout", str(error))
    except ProcessExpired as error:
        return Failed("crash", f"worker ended with code {error.exitcode}")
    except Exception as error:  # an item or a result that cannot be pickled
        return Failed("error", f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS])
