"""What a build tells MLflow, written down first: nothing is lost when the server is away or the process dies.

In: events (metrics, checkpoints, artifacts, the end). Out: <data>/tracking/<fingerprint>/ with run.json (what the run
is, its MLflow ids, its status, how much was delivered) and pending.jsonl (events that wait). Every event may be
delivered twice without harm, so a kill between delivery and its note costs nothing. Imports no mlflow.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.store.layout import Layout
from pipeline.store.shards import write_text

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
Event = dict[str, Any]


class Journal:
    """The journal of one fingerprint; `lock` is held by the process that builds it, until it ends in any way."""

    def __init__(self, layout: Layout, fingerprint: str):
        self.fingerprint = fingerprint
        self.folder = layout.tracking / fingerprint
        self.lock = FileLock(self.folder / ".lock", thread_local=False)
        self._state = self.folder / "run.json"
        self._pending = self.folder / "pending.jsonl"
        self._between_threads = threading.Lock()

    def open(self, start: Mapping[str, Any]) -> None:
        """Begin, or go on with what another process began. `start` describes the run: see tracking.Tracker."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.acquire(timeout=60)  # store.build lets one process build; doctor may look for a moment
        self._cut_torn_line()
        begun_at = self.state().get("begun_at") or now_ms()
        self.update(start=dict(start), begun_at=begun_at, status=RUNNING, **this_process())

    def close(self, status: str) -> None:
        """End the run; for the process that has it open, and for whoever found it abandoned."""
        self._cut_torn_line()
        self.append([{"do": "end", "status": status, "at": now_ms()}])
        self.update(status=status)

    def is_abandoned(self) -> bool:
        """Whether the run is open and nobody works on it. A process on another machine is never judged."""
        state = self.state()
        if state.get("status") != RUNNING or state.get("host") != socket.gethostname():
            return False
        try:
            with self.lock.acquire(timeout=0):
                return True
        except Timeout:
            return False

    def state(self) -> dict[str, Any]:
        return json.loads(self._state.read_text()) if self._state.exists() else {}

    def update(self, **changes: Any) -> None:
        with self._between_threads:
            write_text(self._state, json.dumps(self.state() | changes, indent=1))

    def append(self, events: Sequence[Event]) -> None:
        text = "".join(json.dumps(event) + "\n" for event in events)
        with self._between_threads, self._pending.open("a") as file:
            file.write(text)

    def pending(self) -> list[tuple[int, Event]]:
        """Undelivered events, each with the position to note once it was delivered."""
        if not self._pending.exists():
            return []
        events, position = [], self.state().get("delivered", 0)
        with self._pending.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written, or torn
                position += len(line)
                events.append((position, json.loads(line)))
        return events

    def delivered(self, position: int) -> None:
        self.update(delivered=position)

    def forget_delivered(self) -> None:
        """Empty the journal once all of it has been delivered and nobody appends any more."""
        if self._pending.exists() and not self.pending():
            self.update(delivered=0)
            self._pending.unlink()

    def _cut_torn_line(self) -> None:
        """A process that was killed while it wrote leaves the beginning of a line."""
        if self._pending.exists() and not (content := self._pending.read_bytes()).endswith(b"\n"):
            os.truncate(self._pending, content.rfind(b"\n") + 1)


def journals(layout: Layout) -> list[Journal]:
    return [Journal(layout, path.parent.name) for path in sorted(layout.tracking.glob("*/run.json"))]


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def this_process() -> dict[str, Any]:
    """What tells this process from every other, even when its number is used again."""
    process = psutil.Process()
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": process.create_time()}
