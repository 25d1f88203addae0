"""Heavy parallel work: one call, `Engine.map(function, items)`, with results in the order of the items.

In: a module-level function and any number of items. Out: for each item a `Done` or a `Failed`, never an
exception, because a page that hangs, crashes or eats memory costs its own worker and nothing else. The worker
count is no part of any fingerprint, and the order of the results does not depend on it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from model.cores import n_usable_cores
from pipeline.store.worker_pool import Done, Failed, WorkerPool

__all__ = ["Done", "Engine", "Failed", "LocalProcesses", "n_usable_cores", "value_of"]

T = TypeVar("T")
R = TypeVar("R")
LOOK_AHEAD = 8  # items in flight a worker: enough to keep workers busy, few enough to bound memory


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
        pool = WorkerPool(n_workers, self.memory_mb if memory_mb is None else memory_mb)
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.schedule(function, item, seconds))
                if len(waiting) >= n_workers * LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.stop()
            raise
        pool.close()


def value_of(answer: Done[R] | Failed, path: Path, doing: str) -> R:
    """What a worker made of the shard `path`, whose documents earlier stages passed, so that none can be at fault.

    Raises its OSError as one, so that a full disk is known, and for the rest RuntimeError with what it was `doing`.
    """
    if isinstance(answer, Done):
        return answer.value
    if answer.errno is not None:
        raise OSError(answer.errno, answer.detail)
    raise RuntimeError(f"{path}: {answer.reason} while {doing}: {answer.detail}")
