"""The journal of one build: everything for MLflow is written to a file before it is sent.

In: events (metrics, checkpoints, artifacts, the end). Out: <data>/tracking/<fingerprint>/ with run.json (the
description, MLflow ids, status and delivered position of the run), pending.jsonl (undelivered events) and
refused.jsonl (events that MLflow refused for good, with the reason). An event may be delivered twice without harm, so
a kill between a delivery and its record costs nothing. Paths in events are relative to the data folder, so that the
folder may be moved. This file imports no mlflow.
"""

import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.store.errors import CorruptShard
from pipeline.store.json_files import read_object
from pipeline.store.layout import Layout, set_aside
from pipeline.store.shards import write_text

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
PRUNED = "pruned.json"
STATE_KEYS = {"start": dict, "status": str}
MENDING = "run `gristmill doctor`, which sets it aside"
log = logging.getLogger(__name__)
OPEN_SECONDS = 60  # only one process builds; the doctor or a sensor may have the lock for a moment
Event = dict[str, Any]


class Journal:
    """The journal of one fingerprint; the building process holds `lock` until it ends."""

    def __init__(self, layout: Layout, fingerprint: str):
        self.fingerprint = fingerprint
        self.folder = layout.tracking / fingerprint
        self.lock = FileLock(self.folder / ".lock", thread_local=False)
        self._state = self.folder / "run.json"
        self._pending = self.folder / "pending.jsonl"
        self._refused = self.folder / "refused.jsonl"
        self._reasons: dict[str, str] | None = None  # refused event -> reason, once it was read
        self._between_threads = threading.RLock()

    def open(self, start: Mapping[str, Any], begun_at: int | None = None) -> None:
        """Begin, or continue what another process began. `start` describes the run: see tracker.Tracker.

        Raises TimeoutError when another process holds the journal.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=OPEN_SECONDS)
        except Timeout:
            raise TimeoutError(
                f"another process has held {self.folder} for {OPEN_SECONDS} seconds, probably to deliver it to a slow"
                " MLflow server; wait until it has ended, then run this again"
            ) from None
        self._cut_torn_line()
        begun_at = self.state().get("begun_at") or begun_at or now_ms()
        self.update(start=dict(start), begun_at=begun_at, status=RUNNING, **this_process())

    def close(self, status: str, at: int | None = None, registrations: Sequence[Event] = ()) -> None:
        """End the run; for the process that holds the lock.

        The status changes last: from then on a delivery may remove the file of events, and no event is appended.
        Registrations come after the end, so that a failing one does not block other events.
        """
        self._cut_torn_line()
        self.append([{"do": "end", "status": status, "at": at or now_ms()}, *registrations])
        self.update(status=status)

    def close_abandoned(self, status: str, closed_hosts: Collection[str] = ()) -> bool:
        """Close the run if it is open and no process works on it; the lock is held over the check and the change."""
        if not self.is_open_here(closed_hosts):
            return False
        try:
            with self.lock.acquire(timeout=0):
                if abandoned := self.is_open_here(closed_hosts):
                    self.close(status)
                return abandoned
        except Timeout:
            return False

    def is_abandoned(self, closed_hosts: Collection[str] = ()) -> bool:
        """Whether the run is open and no process works on it."""
        if not self.is_open_here(closed_hosts):
            return False
        try:
            with self.lock.acquire(timeout=0):
                return self.is_open_here(closed_hosts)
        except Timeout:
            return False

    def is_open_here(self, closed_hosts: Collection[str] = ()) -> bool:
        """Whether the run was begun on this machine, or on one of `closed_hosts`, which are gone, and not closed.

        Processes of other machines are never checked.
        """
        state = self.state()
        return state.get("status") == RUNNING and state.get("host") in (socket.gethostname(), *closed_hosts)

    def other_host(self) -> str | None:
        """The machine on which an open run was begun, if it is not this one and no process here works on the run."""
        state = self.state()
        if state.get("status") != RUNNING or state.get("host") in (None, socket.gethostname()):
            return None
        try:
            with self.lock.acquire(timeout=0):  # held = another container of this machine, or a shared file system
                return state["host"]
        except Timeout:
            return None

    def state(self) -> dict[str, Any]:
        """What is known of the run; of a pruned journal (pruning.py) its MLflow ids and its status."""
        if self._state.exists():
            try:
                return read_object(self._state, STATE_KEYS, MENDING)
            except CorruptShard as error:
                _warn(str(error))  # a build and its results do not depend on MLflow
                return {}
        return read_pruned(self.folder.parent).get(self.fingerprint, {})

    def fault(self) -> str | None:
        """What is damaged in run.json, and the cure; None = nothing."""
        try:
            read_object(self._state, STATE_KEYS, MENDING)
        except CorruptShard as error:
            return str(error)
        return None

    def set_state_aside(self) -> Path:
        """Rename a damaged run.json. What MLflow has of the run stays there; the next build continues it."""
        return set_aside(self._state)

    def update(self, **changes: Any) -> None:
        with self._between_threads:
            if self._state.exists() and self.fault():
                self.set_state_aside()
            write_text(self._state, json.dumps(self.state() | changes, indent=1))

    def append(self, events: Sequence[Event]) -> None:
        text = "".join(json.dumps(event) + "\n" for event in events)
        with self._between_threads, self._pending.open("a", encoding="utf-8") as file:
            file.write(text)

    def pending(self) -> list[tuple[int, Event]]:
        """Undelivered events, each with the position to record once it is delivered."""
        if not self._pending.exists():
            return []
        events, position = [], self.state().get("delivered", 0)
        with self._pending.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written, or truncated
                position += len(line)
                if (event := _whole(line, "do", self._pending)) is not None:
                    events.append((position, event))
        return events

    def delivered(self, position: int) -> None:
        self.update(delivered=position)

    def forget_delivered(self) -> None:
        """Remove the file of events once the run is closed and all of them were delivered."""
        with self._between_threads:
            if self.state()["status"] != RUNNING and self._pending.exists() and not self.pending():
                self.update(delivered=0)
                self._pending.unlink()

    def set_aside(self, event: Event, reason: str) -> bool:
        """Keep an event that MLflow refused, once. Returns whether it is the first one with this reason."""
        with self._between_threads:
            if self._reasons is None:
                self._reasons = {json.dumps(one): known for one, known in self.refused()}
            if (text := json.dumps(event)) in self._reasons:
                return False
            is_new = reason not in self._reasons.values()
            self._reasons[text] = reason
            with self._refused.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "reason": reason}) + "\n")
            return is_new

    def refused(self) -> list[tuple[Event, str]]:
        """Events that MLflow refused, each with the reason."""
        if not self._refused.exists():
            return []
        lines = (_whole(line, "event", self._refused) for line in self._refused.read_bytes().splitlines())
        return [(line["event"], str(line.get("reason"))) for line in lines if line is not None]

    def try_refused_again(self) -> None:
        """Let the refused events wait again; for the process that holds the lock."""
        with self._between_threads:
            if refused := [event for event, _ in self.refused()]:
                self._cut_torn_line()
                self.append(refused)
                self._refused.unlink()
                self._reasons = None

    def is_delivered(self) -> bool:
        """Whether the run is closed, and MLflow has all of it."""
        return self.state().get("status") not in (None, RUNNING) and not self.pending() and not self.refused()

    def _cut_torn_line(self) -> None:
        """Remove the incomplete last line of a process that was killed while writing."""
        if self._pending.exists() and not (content := self._pending.read_bytes()).endswith(b"\n"):
            os.truncate(self._pending, content.rfind(b"\n") + 1)


def journals(layout: Layout) -> list[Journal]:
    """All journals, without those whose state is damaged (`damaged_journals`), of which a warning tells."""
    return [journal for journal in _all(layout) if journal.state()]


def damaged_journals(layout: Layout) -> list[Journal]:
    return [journal for journal in _all(layout) if journal.fault()]


def _all(layout: Layout) -> list[Journal]:
    return [Journal(layout, path.parent.name) for path in sorted(layout.tracking.glob("*/run.json"))]


def read_pruned(tracking: Path) -> dict[str, dict[str, Any]]:
    """Fingerprint -> what is left of the state of a journal that was pruned."""
    path = tracking / PRUNED
    try:
        return read_object(path, {}, "delete it; old links to MLflow are lost with it") if path.exists() else {}
    except CorruptShard as error:
        _warn(str(error))
        return {}


def _whole(line: bytes, key: str, path: Path) -> dict[str, Any] | None:
    """The object in a line, which has `key`; None for a damaged line, which costs one event."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and key in found:
        return found
    _warn(f"{path} has a damaged line, {line[:60]!r}, which is left out")
    return None


@functools.cache
def _warn(text: str) -> None:
    """Once per process, because journals are read again and again."""
    log.warning("%s", text)


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow uses."""
    return int(time.time() * 1000)


def this_process() -> dict[str, Any]:
    """Process id, host and start time, which identify a process even when its id is used again."""
    process = psutil.Process()
    return {"pid": os.getpid(), "host": socket.gethostname(), "process_started": process.create_time()}
