"""`gristmill ui` as a person meets it: two servers that start and stop together, and a graph that one click builds.

The browser test drives Debian's chromium; it is skipped where there is none, but never in CI. GRISTMILL_SCREENSHOTS
names a folder for what it saw.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.cli import main
from pipeline.layout import Layout

GRISTMILL = Path(sys.executable).parent / "gristmill"
CHROMIUM = Path("/usr/bin/chromium")
QUIET_BROWSER = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
START_SECONDS = 120
RUN_SECONDS = 150
PAGE_MS = 30_000


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@contextmanager
def servers(layout: Layout) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The supervisor, once both servers answer, and their addresses; nothing of it is left afterwards."""
    dagster, mlflow = free_ports()
    environment = {**os.environ, "GRISTMILL_DATA": str(layout.data)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with subprocess.Popen(
        [GRISTMILL, "ui", "--dagster-port", str(dagster), "--mlflow-port", str(mlflow)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as supervisor:
        try:
            lines = []
            while not any("stops both" in line for line in lines):
                lines.append(supervisor.stdout.readline())
                assert lines[-1], f"the supervisor ended: {lines}"
            yield supervisor, f"http://127.0.0.1:{dagster}", f"http://127.0.0.1:{mlflow}"
        finally:
            supervisor.terminate()
            supervisor.wait(timeout=60)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    """Names of those that still run."""
    return [p.name() for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_ui_port_in_use_names_port_and_process(toy_layout, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert main(["ui", "--dagster-port", str(port), "--mlflow-port", str(free_ports()[0])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} for dagster is in use by {psutil.Process().name()} (process {os.getpid()})" in line
    assert "--dagster-port" in line


def test_ui_one_server_dies_stops_the_other(toy_layout):
    with servers(toy_layout) as (supervisor, _, _):
        below = family(supervisor)
        assert len(below) >= 6
        (mlflow,) = [p for p in below if p.ppid() == supervisor.pid and "mlflow" in " ".join(p.cmdline())]
        mlflow.send_signal(signal.SIGKILL)
        assert supervisor.wait(timeout=60) == 1
        assert "MLflow ended with code -9" in supervisor.stdout.read()
        assert alive(below) == []
