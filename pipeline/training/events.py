"""Transfers the events of training processes to their parent process through a file.

In: the calls of an Observer and of progress. Out: the same calls in another process, in their order, while the
training runs. The file is in the folder of the training and has one line per event, so that events written before
either side was killed are still delivered, at the latest by the next build. The reader records its position, so an
event is delivered twice only if the reader was killed between delivery and recording; receivers must accept that.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.store.store import Observer

EVENTS, DELIVERED = ".events.jsonl", ".events.delivered"  # hidden: not part of a finished output
POLL_SECONDS = 0.2
PROGRESS_SECONDS = 0.5  # between two that are written

Progress = Callable[[int, int], None]


class EventWriter:
    """An observer and its progress that write events to the file; for one process at a time."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / EVENTS
        self.next_progress = 0.0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._write({"do": "metrics", "step": step, "values": dict(values)})

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        self._write({"do": "checkpoint", "path": str(path), "step": step, "values": dict(values)})

    def progress(self, done: int, total: int) -> None:
        if done == total or time.monotonic() >= self.next_progress:
            self.next_progress = time.monotonic() + PROGRESS_SECONDS
            self._write({"do": "progress", "done": done, "total": total})

    def _write(self, event: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")


@contextmanager
def delivered_live(directory: Path, observer: Observer, progress: Progress) -> Iterator[None]:
    """Within the block a thread delivers the events of the file; all are delivered when the block ends.

    An error of the observer ends the delivery, and is raised when the block ends.
    """
    ends, errors = threading.Event(), []

    def deliver() -> None:
        try:
            while not ends.wait(POLL_SECONDS):
                deliver_rest(directory, observer, progress)
        except Exception as error:  # raised below, in the thread that builds
            errors.append(error)

    (directory / EVENTS).touch()
    thread = threading.Thread(target=deliver, name="training-events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
    if errors:
        raise errors[0]
    deliver_rest(directory, observer, progress)


def deliver_rest(directory: Path, observer: Observer, progress: Progress = lambda done, total: None) -> None:
    """Deliver the events that were not delivered yet, including those that an earlier build left."""
    path, delivered = directory / EVENTS, directory / DELIVERED
    if not path.exists():
        return
    before = position = int(delivered.read_text("utf-8") or 0) if delivered.exists() else 0
    with path.open("rb") as file:
        file.seek(position)
        for line in _whole_lines(file):
            event = json.loads(line)
            if event["do"] == "progress":
                progress(event["done"], event["total"])
            elif event["do"] == "checkpoint":
                _deliver_checkpoint(observer, event)
            else:
                observer.metrics(event["step"], event["values"])
            position += len(line)
    if position > before:
        delivered.write_text(str(position), "utf-8")  # if a kill truncates it, events are delivered twice


def remove_events(directory: Path) -> None:
    """Remove the files, once all is delivered and no process writes any more."""
    for name in (EVENTS, DELIVERED):
        (directory / name).unlink(missing_ok=True)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Without a last line that is still being written, or was truncated by a kill."""
    for line in file:
        if line.endswith(b"\n"):
            yield line


def _deliver_checkpoint(observer: Observer, event: Mapping[str, Any]) -> None:
    """Skips a checkpoint that was pruned before it could be reported."""
    path = Path(event["path"])
    try:
        observer.checkpoint(path, event["step"], event["values"])
    except FileNotFoundError:
        if path.exists():
            raise
