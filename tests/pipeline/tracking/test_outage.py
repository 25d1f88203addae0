"""A server that accepts connections and never answers costs one attempt, not one per build."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.tracking import outage
from pipeline.tracking.delivery import send_pending
from pipeline.tracking.journal import FINISHED, Journal
from pipeline.tracking.tracker import Tracker


@contextmanager
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """Yields the address of a server that accepts everybody and says nothing, and the connections so far."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
        server.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(outage, "SLOW_SECONDS", 0.1)


def test_silent_server_is_asked_once_by_many_builds(layout, monkeypatch, impatient):
    """Every build of a graph waited for two timeouts: 163 seconds in place of 51 to 79, with 12 connections."""
    with silent_server() as (address, accepted):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for number in range(6):
            tracker = Tracker(layout=layout, asset="moods_model", group="fine_tuning")
            tracker.started(f"{number:032}", {}, [])
            tracker.metrics(1, {"loss": 1.0})
            tracker.close(FINISHED)
        assert len(accepted) == 1
        assert len(send_pending(layout)) == 6  # as the doctor does, who asks once more
        assert len(accepted) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_pending(layout) == {}  # another server is not affected
    assert not Journal(layout, f"{0:032}").pending()


def test_pause_after_an_outage_doubles_and_ends_with_an_answer(layout):
    pauses = []
    for _ in range(7):
        outage.note_failure(layout, seconds=8.0)
        pauses.append(outage._read(layout)["pause"])
    assert pauses == [30, 60, 120, 240, 480, 600, 600]
    assert outage.is_awaited(layout)
    outage.note_answer(layout)
    assert not outage.is_awaited(layout)
    outage.note_failure(layout, seconds=0.01)  # a refused connection delays nobody
    assert not outage.is_awaited(layout)
