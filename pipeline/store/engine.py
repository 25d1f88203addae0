"""Heavy parallel work: one call, `Engine.map(function, items)`, with results in the order of the items.

In: a module-level function and any number of items. Out: for each item a `Done` or a `Failed`, never an
exception, because a page that hangs, crashes or uses too much memory only costs its own worker. A worker that is
killed, for instance by the system when memory is short, costs a retry: its item is tried twice more, while
no other worker works. The number of workers is not part of any fingerprint and does not affect the order of the
results.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

from model.training.machine import n_usable_cores
from pipeline.store.worker_pool import CRASH, Done, Failed, WorkerPool

__all__ = ["Done", "Engine", "Failed", "LocalProcesses", "n_usable_cores", "value_of"]

T = TypeVar("T")
R = TypeVar("R")
Seconds = float | Callable[[T], float] | None
log = logging.getLogger(__name__)
RETRIES = 2  # of an item whose worker was killed
LOOK_AHEAD = 8  # items in flight per worker: enough to keep workers busy, few enough to bound memory


class Engine(Protocol):
    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        seconds: Seconds[T] = None,
        memory_mb: int | None = None,
    ) -> Iterator[Done[R] | Failed]:
        """Results in the order of `items`. An item that takes longer than `seconds`, which may depend on the item,
        gives Failed("timeout"), one that needs more than `memory_mb` (None = the engine's own limit) gives
        Failed("out_of_memory")."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalProcesses:
    """Worker processes on this machine; each is killed and replaced when an item exceeds its limits."""

    n_workers: int = 0  # 0 = one per core that this process may use
    memory_mb: int | None = 4096  # address space that a worker may add to its initial size; None = unlimited

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        seconds: Seconds[T] = None,
        memory_mb: int | None = None,
    ) -> Iterator[Done[R] | Failed]:
        n_workers = self.n_workers or n_usable_cores()
        pool = WorkerPool(n_workers, self.memory_mb if memory_mb is None else memory_mb)
        waiting: deque[tuple[T, Future[Done[R] | Failed]]] = deque()

        def schedule(item: T) -> Future[Done[R] | Failed]:
            return pool.schedule(function, item, seconds(item) if callable(seconds) else seconds)

        def next_answer() -> Done[R] | Failed:
            item, future = waiting.popleft()
            answer = future.result()
            n_retries = 0
            while _is_crash(answer) and n_retries < RETRIES:
                log.warning("%s: %s; it is tried again alone", _shown(item), answer.detail)
                wait([other for _, other in waiting])
                answer = schedule(item).result()
                n_retries += 1
            return answer

        try:
            for item in items:
                waiting.append((item, schedule(item)))
                if len(waiting) >= n_workers * LOOK_AHEAD:
                    yield next_answer()
            while waiting:
                yield next_answer()
        except BaseException:
            pool.stop()
            raise
        pool.close()


def _is_crash(answer: Any) -> TypeGuard[Failed]:
    return isinstance(answer, Failed) and answer.reason == CRASH


def _shown(item: Any) -> str:
    """What an item is, for a message: its address, its file, or its type."""
    found = (getattr(item, name, None) for name in ("url", "path", "name"))
    return next((str(one) for one in found if one), f"an item of type {type(item).__name__}")


def value_of(answer: Done[R] | Failed, path: Path, doing: str) -> R:
    """The result of a worker for the shard `path`. Its documents passed earlier stages, so any failure is an error.

    An OSError is raised as such, so that a full disk is recognised; any other failure raises a RuntimeError that
    names what the worker was `doing`.
    """
    if isinstance(answer, Done):
        return answer.value
    if answer.errno is not None:
        raise OSError(answer.errno, answer.detail)
    raise RuntimeError(f"{path}: {answer.reason} while {doing}: {answer.detail}")
