"""`gristmill ui` as a person meets it: two servers that start and stop together, and a graph that one click builds;
and as a page of another site meets it, which must not start or delete anything.

The browser test drives Debian's chromium; it is skipped where there is none, but never in CI. GRISTMILL_SCREENSHOTS
names a folder for what it saw.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pipeline.cli import main
from pipeline.store.layout import Layout, load_current
from pipeline.tracking.server import run_url
from tests.browser import CHROMIUM, QUIET_BROWSER

GRISTMILL = Path(sys.executable).parent / "gristmill"
RUN_SECONDS = 1200
PAGE_MS = 300_000


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@contextmanager
def servers(layout: Layout, *command: str | Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The supervisor (`command`), once both servers answer, and their addresses; nothing of it is left afterwards."""
    dagster, mlflow = free_ports()
    environment = {**os.environ, "GRISTMILL_DATA": str(layout.data), "GRISTMILL_EXECUTOR": "in_process"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with subprocess.Popen(
        [*(command or (GRISTMILL, "ui")), "--dagster-port", str(dagster), "--mlflow-port", str(mlflow)],
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
            supervisor.wait(timeout=600)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    """Names of those that still run."""
    return [p.name() for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def real(tmp_path_factory, write_project) -> Iterator[tuple[Layout, subprocess.Popen[str], str, str]]:
    """Both real servers on a toy project, started once; the browser test, the last one, ends them."""
    layout = write_project(tmp_path_factory.mktemp("ui") / "data")
    with servers(layout) as (supervisor, dagster, mlflow):
        yield layout, supervisor, dagster, mlflow


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


SMALL_SERVERS = """
import os, sys
from pipeline.cli import main
from pipeline.commands import ui

def small(name):
    command = [sys.executable, "-m", "http.server", "--bind", ui.HOST]
    return lambda layout, port, *_: ui.Server(
        name=name, command=[*command, str(port)], environment=dict(os.environ), port=port, ready_path="/",
        log=layout.data / f"{name}.log",
    )

ui.mlflow_server, ui.dagster_server = small("MLflow"), small("Dagster")
sys.exit(main(["ui", *sys.argv[1:]]))
"""


with_small_and_real_servers = pytest.mark.parametrize(
    "command", [(sys.executable, "-c", SMALL_SERVERS), pytest.param((), marks=pytest.mark.slow)]
)


@with_small_and_real_servers
def test_ui_stopped_by_a_signal_ends_both_servers(toy_layout, command):
    with servers(toy_layout, *command) as (supervisor, _, _):
        below = family(supervisor)
        assert len(below) >= 2
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(timeout=600) == 0
        assert alive(below) == []


@with_small_and_real_servers
def test_ui_one_server_dies_stops_the_other(toy_layout, command):
    with servers(toy_layout, *command) as (supervisor, _, mlflow):
        kill_and_look(supervisor, mlflow)


def kill_and_look(supervisor: subprocess.Popen[str], mlflow: str) -> None:
    """Kill the MLflow server: the supervisor says so, and nothing of it is left."""
    below, port = family(supervisor), mlflow.rpartition(":")[2]
    (server,) = [p for p in below if p.ppid() == supervisor.pid and port in p.cmdline()]
    server.send_signal(signal.SIGKILL)
    assert supervisor.wait(timeout=600) == 1
    assert "MLflow ended with code -9" in supervisor.stdout.read()
    assert alive(below) == []


PAUSE = "mutation { setAutoMaterializePaused(paused: %s) }"  # an action whose effect can be read again
IS_PAUSED = "{ instance { autoMaterializePaused } }"
FOREIGN = (
    {"Origin": "http://evil.example"},
    {"Origin": "http://127.0.0.1:8080"},
    {"Origin": "null"},
    {"Host": "evil.example"},
    {"Host": "10.evil.example", "Origin": "http://10.evil.example"},  # MLflow's own check takes it for 10.x.x.x
    {"Sec-Fetch-Site": "cross-site"},
)


def status_of(address: str, method: str, path: str, headers: dict[str, str], body: str | None = None) -> int:
    """Status of the answer to a request with exactly these headers."""
    url = urlsplit(address)
    with closing(http.client.HTTPConnection(url.hostname, url.port, timeout=60)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        length = {} if body is None else {"Content-Length": str(len(body))}
        for name, value in {"Host": url.netloc, **length, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(None if body is None else body.encode())
        return connection.getresponse().status


def test_ui_pages_of_other_sites_cannot_act_in_dagster(real):
    """A GET with a foreign Origin deleted a run, and WebSockets took every Origin (own trials)."""
    _, _, dagster, _ = real
    before = graphql(dagster, IS_PAUSED)["instance"]["autoMaterializePaused"]
    query = PAUSE % ("false" if before else "true")
    forged = json.dumps({"query": query})
    for headers in FOREIGN:
        assert status_of(dagster, "POST", "/graphql", {"Content-Type": "application/json", **headers}, forged) == 403
        assert status_of(dagster, "GET", f"/graphql?query={quote(query)}", headers) == 403
        assert status_of(dagster, "GET", "/", headers) == 403
    form = {"Content-Type": "text/plain"}
    assert status_of(dagster, "POST", f"/graphql?query={quote(query)}", form, "x") == 415
    assert status_of(dagster, "GET", f"/graphql?query={quote(query)}", {"Accept": "image/png"}) == 405
    assert graphql(dagster, IS_PAUSED)["instance"]["autoMaterializePaused"] == before
    assert graphql(dagster, query)["setAutoMaterializePaused"] != before  # the same request from here


def test_ui_websocket_is_open_to_its_own_pages_only(real):
    _, _, dagster, _ = real
    address = f"{dagster.replace('http', 'ws')}/graphql"
    for headers in FOREIGN[:3]:
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=headers["Origin"], subprotocols=["graphql-ws"])
    with connect(address, origin=dagster, subprotocols=["graphql-ws"]) as socket_:
        socket_.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket_.recv(timeout=60))["type"] == "connection_ack"


def test_ui_pages_of_other_sites_cannot_act_in_mlflow(real):
    """MLflow's own check lets pages of every other port of this machine create and delete what they like."""
    _, _, _, mlflow = real
    path, body = "/ajax-api/2.0/mlflow/experiments/create", json.dumps({"name": "planted"})
    for headers in FOREIGN:
        assert status_of(mlflow, "POST", path, {"Content-Type": "application/json", **headers}, body) == 403
        assert status_of(mlflow, "GET", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0", headers) == 403
    own = {"Content-Type": "application/json", "Origin": mlflow, "Sec-Fetch-Site": "same-origin"}
    assert status_of(mlflow, "POST", path, own, body) == 200  # it did not exist before


RUNS = "{ runsOrError { ... on Runs { results { runId status pipelineName } } } }"


def graphql(address: str, query: str) -> dict:
    request = urllib.request.Request(
        f"{address}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["data"]


def wait_for_only_run(dagster: str) -> str:
    """Id of the one run, once it has succeeded."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        runs = graphql(dagster, RUNS)["runsOrError"]["results"]
        assert len(runs) <= 1
        if runs and runs[0]["status"] == "SUCCESS":
            return runs[0]["runId"]
        assert not runs or runs[0]["status"] not in ("FAILURE", "CANCELED")
        time.sleep(0.5)
    raise AssertionError(f"the run did not end within {RUN_SECONDS} s")


@pytest.fixture
def page():
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {CHROMIUM}; .ci/run installs it")
        pytest.skip(f"no {CHROMIUM}; apt-get install chromium runs this test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET_BROWSER)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PAGE_MS)
        yield page
        browser.close()


def shot(page, name: str) -> None:
    if folder := os.environ.get("GRISTMILL_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")


def results_of(layout: Layout) -> list[dict]:
    answer = subprocess.run(
        [GRISTMILL, "results", "--json"],
        env={**os.environ, "GRISTMILL_DATA": str(layout.data)},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(answer.stdout)


def as_in_a_browser(value: float) -> str:
    """The page has four significant digits, and JavaScript writes 1.0 as 1."""
    return str(float(f"{value:.4g}")).removesuffix(".0")


@pytest.mark.timeout(1800)
def test_ui_one_click_builds_everything_and_both_pages_show_it(real, page):
    """One click, one run; then Dagster shows what `gristmill results` says, and MLflow the curve.

    Then MLflow is killed, and everything ends.
    """
    toy_layout, supervisor, dagster, mlflow = real
    page.goto(f"{dagster}/asset-groups/")
    page.locator("button", has_text="Materialize all").click()
    wait_for_only_run(dagster)
    results = results_of(toy_layout)
    assert {result["asset"] for result in results} == {"foundation_evaluation", "moods_evaluation"}
    for asset in ("foundation_evaluation", "moods_evaluation"):
        page.goto(f"{dagster}/assets/{asset}")
        for result in (result for result in results if result["asset"] == asset):
            row = page.locator("tr", has=page.get_by_text(result["metric"], exact=True))
            row.get_by_text(as_in_a_browser(result["value"]), exact=True).wait_for()
        shot(page, asset)
    page.locator("button", has_text="Plots").click()
    page.locator("canvas").first.wait_for()
    shot(page, "plots")
    page.goto(f"{dagster}/assets/corpus?view=checks")
    for check in ("conservation", "no_leak", "not_empty"):
        page.get_by_text(check, exact=True).first.wait_for()
    page.get_by_text("Succeeded", exact=True).nth(2).wait_for()
    shot(page, "checks")
    run = run_url(toy_layout, load_current(toy_layout, "foundation_model").fingerprint, mlflow)
    page.goto(run.replace("?", "/model-metrics?"))
    page.get_by_text("gradient_norm", exact=True).wait_for()
    page.locator("svg.main-svg path.point").nth(30).wait_for()  # more than charts of a single point have
    shot(page, "mlflow")
    assert len(family(supervisor)) >= 6
    kill_and_look(supervisor, mlflow)
