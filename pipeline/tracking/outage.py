"""Records that MLflow does not answer, so that not every build waits for it again.

In: attempts that failed after a wait. Out: whether another attempt is worth its time now. A server that accepts
connections and never answers costs a whole timeout per attempt; the pause after each doubles, from half a minute to
ten. It is recorded in <data>/tracking/away.json, because the steps of one Dagster run are separate processes.
"""

import hashlib
import json
import threading
import time
from typing import Any

from pipeline.store.layout import Layout
from pipeline.store.shards import write_text
from pipeline.tracking.server import tracking_uri

FILE = "away.json"
SLOW_SECONDS = 0.5  # an attempt that fails faster, such as a refused connection, delays nobody
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # seconds
_one_at_a_time = threading.Lock()  # two builds of one process may end together


def is_awaited(layout: Layout) -> bool:
    """Whether the server did not answer lately, so that builds make no attempt now."""
    return _read(layout).get("until", 0.0) > time.time()


def note_failure(layout: Layout, seconds: float) -> None:
    """Record an attempt that failed after `seconds`."""
    if seconds < SLOW_SECONDS:
        return
    pause = min(2 * _read(layout).get("pause", FIRST_PAUSE / 2), LONGEST_PAUSE)
    noted = {"server": _server(layout), "pause": pause, "until": time.time() + pause}
    with _one_at_a_time:
        write_text(layout.tracking / FILE, json.dumps(noted))


def note_answer(layout: Layout) -> None:
    (layout.tracking / FILE).unlink(missing_ok=True)


def _read(layout: Layout) -> dict[str, Any]:
    """What is recorded for the current server; nothing for another one, or in a damaged file."""
    try:
        noted = json.loads((layout.tracking / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) and noted.get("server") == _server(layout) else {}


def _server(layout: Layout) -> str:
    """A hash, because an address may contain a password."""
    return hashlib.sha256(tracking_uri(layout).encode()).hexdigest()[:16]
