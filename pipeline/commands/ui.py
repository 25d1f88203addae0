"""`gristmill ui`: starts and stops the Dagster and MLflow servers together.

In: two ports. Out: both servers on 127.0.0.1, with their addresses printed when both answer. Ctrl-C, SIGTERM, SIGHUP,
or the end of one of them stops both, with every process below them.

Each server leads its own process group, so that Ctrl-C in the terminal reaches only this process. The
supervisor sets handlers for its signals before it starts them: a handler is reset to the default in a child, whereas
a signal that a shell ignores for its background jobs stays ignored, and Dagster would then ignore SIGTERM.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.commands.mlflow_links import links_resolved
from pipeline.defs.instance import prepare_dagster_home
from pipeline.serving.same_origin import split_host
from pipeline.store.faults import ASK_THE_DOCTOR, damaged_databases
from pipeline.store.layout import Layout, usable_layout
from pipeline.tracking.relocation import relocate
from pipeline.tracking.server import LINK_PORT

HOST = "127.0.0.1"
START_SECONDS = 180.0  # a cold start on a busy machine; the first start also creates MLflow's database
STOP_SECONDS = 20.0  # a training saves a checkpoint on SIGTERM
LOG_LINES = 12  # last lines of the log of a server that died
CODE = Path(__file__).resolve().parents[2]  # the folder from which the servers are started
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(kw_only=True, slots=True)
class Server:
    """A child process that answers HTTP when it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    ready_path: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=CODE,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", self.ready_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def obituary(self) -> str:
        code = self.process.returncode if self.process else None
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"{self.name} ended with code {code}; its log {self.log} ends with:", *lines])


def run(args: Namespace) -> int:
    return serve(usable_layout(), args.dagster_port, args.mlflow_port, args.allow_host)


def serve(layout: Layout, dagster_port: int, mlflow_port: int, hosts: Sequence[str] = ()) -> int:
    """Run both servers until a signal comes or one of them ends. Returns the exit code.

    `hosts` are names under which a proxy serves them, besides those of this machine.
    """
    for host in hosts:
        split_host(host)
    if dagster_port == mlflow_port:
        raise ValueError(f"both servers were given port {mlflow_port}; choose two different ones")
    for name, port in (("dagster", dagster_port), ("mlflow", mlflow_port)):
        require_free_port(name, port)
    if damaged := damaged_databases(layout):
        raise ValueError(f"{damaged}; {ASK_THE_DOCTOR}")
    servers = [mlflow_server(layout, mlflow_port, hosts), dagster_server(layout, dagster_port, hosts)]
    stopping = threading.Event()
    former = {number: signal.signal(number, lambda *_: stopping.set()) for number in SIGNALS}
    try:
        with links_resolved(layout, f"http://{HOST}:{mlflow_port}") as port:
            if port is None:
                print(f"Links from Dagster to MLflow do not work: port {LINK_PORT} is in use", file=sys.stderr)
            return _supervise(servers, stopping)
    finally:  # a second Ctrl-C sets the event again and leaves no orphans
        stop_all(server.process for server in servers if server.process)
        for number, handler in former.items():
            signal.signal(number, handler)


def require_free_port(name: str, port: int) -> None:
    """Raises OSError, with the name of the process, when something listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            who = listener_of(port)
            raise OSError(
                f"port {port} for {name} is in use{f' by {who}' if who else ''};"
                f" stop that process, or choose another port: gristmill ui --{name}-port {port + 1}"
            ) from error


def listener_of(port: int) -> str | None:
    """For instance "python3 (process 4711)", or None if the system does not show it."""
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
            if here and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return None  # processes of other users are not visible
    return None


def mlflow_server(layout: Layout, port: int, hosts: Sequence[str] = ()) -> Server:
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    relocate(layout)  # otherwise the server shows artifacts of the folder that this one was copied from
    return Server(
        name="MLflow",
        command=_command("pipeline.tracking.mlflow_server", port, hosts, "--data", str(layout.data)),
        environment=dict(os.environ),
        port=port,
        ready_path="/health",
        log=layout.mlflow / "server.log",
    )


def dagster_server(layout: Layout, port: int, hosts: Sequence[str] = ()) -> Server:
    prepare_dagster_home(layout)
    return Server(
        name="Dagster",
        command=_command("pipeline.commands.dagster_server", port, hosts, "--data", str(layout.data)),
        environment={
            **os.environ,
            "DAGSTER_HOME": str(layout.dagster_home),
            "GRISTMILL_DATA": str(layout.data),
        },
        port=port,
        ready_path="/server_info",
        log=layout.dagster_home / "server.log",
    )


def _command(module: str, port: int, hosts: Sequence[str], *options: str) -> list[str]:
    permitted = [part for host in hosts for part in ("--allow-host", host)]
    return [sys.executable, "-m", module, "--port", str(port), *options, *permitted]


def stop_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to the process groups, then SIGKILL to all processes that remain in or below them."""
    processes = list(processes)
    members = [member for process in processes for member in _family(process.pid)]
    for process in processes:
        _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(_is_alive(member) for member in members) and time.monotonic() < deadline:
        for process in processes:
            process.poll()
        time.sleep(0.1)
    for process in processes:
        _signal_group(process.pid, signal.SIGKILL)
    for member in members:  # children that left their group
        if _is_alive(member):
            member.kill()
    for process in processes:
        process.wait()


def _supervise(servers: list[Server], stopping: threading.Event) -> int:
    print("Starting MLflow and Dagster (about 15 seconds)", flush=True)
    for server in servers:
        server.start()
    deadline = time.monotonic() + START_SECONDS
    waiting = list(servers)
    while waiting and not stopping.wait(0.2):
        if _bury(servers):
            return 1
        if time.monotonic() > deadline:
            names = " and ".join(f"{server.name} (log {server.log})" for server in waiting)
            print(f"{names} did not answer within {START_SECONDS:.0f} seconds", file=sys.stderr)
            return 1
        waiting = [server for server in waiting if not server.is_ready()]
    if not waiting:
        mlflow, dagster = servers
        print(f"Dagster  http://{HOST}:{dagster.port}")
        print(f"MLflow   http://{HOST}:{mlflow.port}/#/experiments?workflowType=machine_learning")
        print("Ctrl-C stops both.", flush=True)
    while not stopping.wait(0.5):
        if _bury(servers):
            return 1
    print("Stopping", flush=True)
    return 0


def _bury(servers: list[Server]) -> bool:
    """Whether a server has ended; prints which one and why."""
    dead = [server for server in servers if server.is_dead()]
    for server in dead:
        print(server.obituary(), file=sys.stderr)
    return bool(dead)


def _family(leader: int) -> list[psutil.Process]:
    """The processes of the group of `leader`, and those below it."""
    members: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader:
                members[process.pid] = process
            if process.pid == leader:
                members.update({child.pid: child for child in process.children(recursive=True)})
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue  # it ended in the meantime
    return list(members.values())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return  # the whole group has ended
