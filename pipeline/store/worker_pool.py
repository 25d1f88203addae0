"""Worker processes that may be killed at any moment, each with a pipe of its own.

In: a module-level function and one item. Out: a Future of `Done` or `Failed`. A thread a worker hands it one item
after the other and waits for the answer, so that workers share nothing: one that is killed, by its item or from
outside, takes no lock and no message of another with it, and is replaced. Its item is a Failed("crash") when it had
begun, and is given to the next worker when it had not.
"""

import faulthandler
import os
import pickle
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import psutil

R = TypeVar("R")
BEGUN = b"begun"
PARENT_SECONDS = 0.1  # between two looks of a worker whether its parent still lives: until then it may write
GRACE_SECONDS = 10.0
END_SECONDS = 0.5  # for a worker that has nothing to do to end by itself
DETAIL_CHARACTERS = 1000
TASKS_A_WORKER = 2000  # then a fresh process, against slow leaks in C extensions
NO_ROOM = 77  # exit code of a worker that could not even take its item
FATAL = ("timeout", "crash")  # after these there is no worker any more
ATTEMPTS = 3  # workers that may end before they begin with an item


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    value: R


@dataclass(frozen=True, slots=True)
class Failed:
    """`reason` is one of timeout, crash, out_of_memory, error: the names that drop counts use."""

    reason: str
    detail: str
    errno: int | None = None  # of an OSError, so that a full disk is known as one


@dataclass(frozen=True, slots=True)
class _Task:
    function: Callable[[Any], Any]
    item: Any
    seconds: float | None
    future: Future


class WorkerPool:
    """Call `close` when all answers are there, or `stop` to end at once; both leave no process behind."""

    def __init__(self, n_workers: int, memory_mb: int | None):
        self.memory_mb = memory_mb
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.lock = threading.Lock()  # of the next two
        self.workers: set[_Worker] = set()
        self.stopped = False
        self.threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(n_workers)]
        for thread in self.threads:
            thread.start()

    def schedule(self, function: Callable[[Any], R], item: Any, seconds: float | None) -> "Future[Done[R] | Failed]":
        """`seconds` count from when a worker begins with the item."""
        task = _Task(function, item, seconds, Future())
        self.tasks.put(task)
        return task.future

    def close(self) -> None:
        for _ in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            thread.join()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for worker in self.workers:
                worker.process.kill()
        self.close()

    def _serve(self) -> None:
        """One thread: answers tasks until there are no more, with one worker at a time."""
        worker = None
        while (task := self.tasks.get()) is not None and not self.stopped:
            try:
                message = ForkingPickler.dumps((task.function, task.item, task.seconds))
            except Exception as error:  # whatever an item's own pickling raises
                task.future.set_result(_failed(error))
                continue
            try:
                answer, worker = self._answer(message, task.seconds, worker)
                task.future.set_result(answer)
            except Exception as error:  # no worker starts: that is nobody's item, and ends the stage
                task.future.set_exception(error)
                worker = None
        self._end(worker)

    def _answer(
        self, message: memoryview, seconds: float | None, worker: "_Worker | None"
    ) -> "tuple[Done | Failed, _Worker | None]":
        """The answer, and the worker if it goes on."""
        for _ in range(ATTEMPTS):
            try:
                worker = worker or self._start()
                worker.begin(message)
            except (EOFError, OSError):  # it or the fork server was killed, or it has no room for the item
                self._end(worker)
                if worker is not None and worker.process.exitcode == NO_ROOM:
                    return Failed("out_of_memory", f"an item of {len(message) / 1e6:.1f} MB"), None
                worker = None
                continue
            answer = worker.answer(seconds)
            worker.n_answers += 1
            if worker.n_answers < TASKS_A_WORKER and not (isinstance(answer, Failed) and answer.reason in FATAL):
                return answer, worker
            self._end(worker)
            return answer, None
        raise RuntimeError(f"{ATTEMPTS} worker processes ended before they began to work; see their messages above")

    def _start(self) -> "_Worker":
        with self.lock:
            if self.stopped:
                raise RuntimeError("the pool was stopped")
            worker = _Worker(self.memory_mb)
            self.workers.add(worker)
            return worker

    def _end(self, worker: "_Worker | None") -> None:
        if worker is not None:
            with self.lock:
                self.workers.discard(worker)
            worker.end()


class _Worker:
    """A process and this side of its pipe."""

    def __init__(self, memory_mb: int | None):
        # forked workers would inherit locks of Dagster's and torch's threads in whatever state they are
        context = get_context("forkserver")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, memory_mb, os.getpid()), daemon=True)
        self.process.start()
        other_end.close()  # so that the end of the worker ends the pipe
        self.n_answers = 0

    def begin(self, message: memoryview) -> None:
        """Raises EOFError or OSError when the worker ends before it begins."""
        self.pipe.send_bytes(message)
        if self.pipe.recv_bytes() != BEGUN:
            raise EOFError

    def answer(self, seconds: float | None) -> Done | Failed:
        try:
            if not self.pipe.poll(seconds):
                self.process.kill()
                return Failed("timeout", f"took more than {seconds} s")
            message = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.process.join(GRACE_SECONDS)
            return Failed("crash", f"worker ended with code {self.process.exitcode}")
        try:
            return pickle.loads(message)  # noqa: S301  # from our own worker
        except Exception as error:
            return _failed(error)

    def end(self) -> None:
        self.pipe.close()  # which ends a worker that waits
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()


def _work(pipe: Connection, memory_mb: int | None, parent_pid: int) -> None:
    """A worker's life: items come in by the pipe, answers go out, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    _limit_memory(memory_mb)  # after the thread: starting one without memory never returns
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        except MemoryError:
            os._exit(NO_ROOM)
        try:
            function, item, seconds = pickle.loads(message)  # noqa: S301  # from our own parent
        except BaseException as error:
            pipe.send_bytes(BEGUN)
            pipe.send_bytes(pickle.dumps(_failed(error)))
            continue
        pipe.send_bytes(BEGUN)
        answer = _guarded(function, item, seconds)
        del message, item
        pipe.send_bytes(_pickled(answer))
        del answer


def _guarded(function: Callable[[Any], R], item: Any, seconds: float | None) -> Done[R] | Failed:
    """So that no exception has to travel: some cannot be pickled, some are no Exception."""
    if seconds is not None:  # for an item that blocks every thread of a worker whose parent was killed
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    try:
        return Done(function(item))
    except BaseException as error:  # becomes a counted drop, see the module docstring
        return _failed(error)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _pickled(answer: Done | Failed) -> bytes:
    try:
        return pickle.dumps(answer)
    except BaseException as error:
        return pickle.dumps(_failed(error))


def _failed(error: BaseException) -> Failed:
    if isinstance(error, MemoryError):
        return Failed("out_of_memory", str(error))
    errno = error.errno if isinstance(error, OSError) else None
    return Failed("error", f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS], errno)


def _end_with_parent(parent_pid: int) -> None:
    """For a worker that is busy when its parent is killed: its pipe tells it only when it reads the next time."""
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
