"""Lets one process at a time do a piece of work, while the others wait for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def only_one(lock: Path, waiting: str) -> Iterator[None]:
    """Holds the file `lock` within the block. A process that finds it held logs `waiting` once, and waits.

    The system releases the lock when its process ends in any way.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.warning(waiting)
        held.acquire()
    try:
        yield
    finally:
        held.release()
