"""A pool of worker processes that survives the death of any worker, because each has its own pipe.

In: a module-level function and one item. Out: a Future of `Done` or `Failed`. One thread per worker sends it
one item after the other and waits for the answer, so that workers share nothing: when one is killed, by its item or
from outside, no lock and no message of another is lost, and it is replaced. If it had begun its item, the item is a
Failed("crash"); otherwise the item is given to the next worker.
"""

import errno
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
PARENT_SECONDS = 0.1  # how often a worker checks that its parent is alive; an orphan may write for as long
GRACE_SECONDS = 10.0
END_SECONDS = 0.5  # for an idle worker to end by itself
DETAIL_CHARACTERS = 1000
TASKS_A_WORKER = 2000  # then the process is replaced, against slow leaks in C extensions
NO_ROOM = 77  # exit code of a worker that had no memory to receive its item
TRANSIENT = ("timeout", "crash", "out_of_memory")  # reasons that may be the fault of the machine
SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS}
# messages of libraries that do not raise MemoryError when they get no memory, thread or library
NO_MEMORY = (
    "cannot allocate memory",
    "memory allocation failed",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
CRASH = "crash"
FATAL = ("timeout", CRASH)  # after these the worker is gone
ATTEMPTS = 3  # number of workers that may end before they begin an item


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    value: R


@dataclass(frozen=True, slots=True)
class Failed:
    """`reason` is timeout, crash, out_of_memory or error: the names that drop counts use."""

    reason: str
    detail: str
    errno: int | None = None  # of an OSError, so that a full disk is recognised

    @property
    def is_transient(self) -> bool:
        """Whether another try may succeed: what failed may be the machine, and not the item."""
        return self.reason in TRANSIENT or self.errno in SYSTEM_ERRORS


@dataclass(frozen=True, slots=True)
class _Task:
    function: Callable[[Any], Any]
    item: Any
    seconds: float | None
    future: Future


class WorkerPool:
    """Call `close` after the last answer, or `stop` to end at once; both leave no process behind."""

    def __init__(self, n_workers: int, memory_mb: int | None):
        self.memory_mb = memory_mb
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.lock = threading.Lock()  # guards the next two
        self.workers: set[_Worker] = set()
        self.stopped = False
        self.threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(n_workers)]
        for thread in self.threads:
            thread.start()

    def schedule(self, function: Callable[[Any], R], item: Any, seconds: float | None) -> "Future[Done[R] | Failed]":
        """`seconds` count from the moment a worker begins the item."""
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
        """The body of a thread: processes tasks until there are no more, with one worker at a time."""
        worker = None
        while (task := self.tasks.get()) is not None and not self.stopped:
            try:
                message = ForkingPickler.dumps((task.function, task.item, task.seconds))
            except Exception as error:  # pickling an item may raise anything
                task.future.set_result(_failed(error))
                continue
            try:
                answer, worker = self._answer(message, task.seconds, worker)
                task.future.set_result(answer)
            except Exception as error:  # no worker starts: no item is at fault, and the stage ends
                task.future.set_exception(error)
                worker = None
        self._end(worker)

    def _answer(
        self, message: memoryview, seconds: float | None, worker: "_Worker | None"
    ) -> "tuple[Done | Failed, _Worker | None]":
        """The answer, and the worker if it can continue."""
        for _ in range(ATTEMPTS):
            try:
                worker = worker or self._start()
                worker.begin(message)
            except (EOFError, OSError):  # it or the fork server was killed, or it has no memory for the item
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
    """A worker process and the parent's end of its pipe."""

    def __init__(self, memory_mb: int | None):
        # forked workers would inherit locks of Dagster's and torch's threads in an arbitrary state
        context = get_context("forkserver")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, memory_mb, os.getpid()), daemon=True)
        self.process.start()
        other_end.close()  # so that the pipe closes when the worker ends
        self.n_answers = 0

    def begin(self, message: memoryview) -> None:
        """Raises EOFError or OSError when the worker ends before it begins the item."""
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
            return Failed(CRASH, f"worker ended with code {self.process.exitcode}")
        try:
            return pickle.loads(message)  # noqa: S301  # from our own worker
        except Exception as error:
            return _failed(error)

    def end(self) -> None:
        self.pipe.close()  # which ends an idle worker
        self.process.join(END_SECONDS)
        self.process.kill()
        self.process.join()


def _work(pipe: Connection, memory_mb: int | None, parent_pid: int) -> None:
    """The main function of a worker: reads items from the pipe and writes answers until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    _limit_memory(memory_mb)  # after the thread: starting a thread without memory never returns
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
    """Calls the function and turns exceptions into Failed: some cannot be pickled, some are no Exception."""
    if seconds is not None:  # for an item that blocks all threads of a worker whose parent was killed
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
    detail = f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
    if not isinstance(error, OSError) and any(sign in detail.lower() for sign in NO_MEMORY):
        return Failed("out_of_memory", detail)
    return Failed("error", detail, error.errno if isinstance(error, OSError) else None)


def _end_with_parent(parent_pid: int) -> None:
    """Ends a busy worker whose parent was killed: the closed pipe would only be noticed at the next read."""
    try:
        parent = psutil.Process(parent_pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PARENT_SECONDS)
    except psutil.NoSuchProcess:
        pass
    os._exit(1)


def _limit_memory(memory_mb: int | None) -> None:
    if memory_mb is None or sys.platform != "linux":  # other systems ignore or refuse the limit
        return
    limit = psutil.Process().memory_info().vms + memory_mb * 1024 * 1024
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
