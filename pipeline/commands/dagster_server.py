"""The Dagster server of `gristmill ui`, which answers no requests that pages of other sites send.

In: a port, a data folder and further host names. Out: Dagster's UI on 127.0.0.1,
its daemon and its code server, until a signal ends them. They are the parts of `dagster dev`, whose UI checks neither
Host nor Origin, so that any page in a browser could start and delete runs; and GET requests for GraphQL, which its UI
never sends, carried out what they asked for.
"""

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from dagster import DagsterInstance
from dagster._cli.proxy_server_manager import ProxyServerManager  # what follows has no public names
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._serdes import serialize_value
from dagster._utils.interrupts import setup_interrupt_handlers
from dagster._utils.log import configure_loggers
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__

from pipeline.defs.instance import open_instance, workspace_file
from pipeline.serving.same_origin import SameOrigin
from pipeline.store.layout import Layout

ADDRESS = "127.0.0.1"
POST_ONLY = ("/graphql",)
POLL_MS = 2000  # between two requests of a page for what is new, as in `dagster dev`
CLOSE_SECONDS = 5  # for answers that are under way when a signal ends the server
STOP_SECONDS = 15  # for the daemon, which gets the same signal
log = logging.getLogger("dagster")


def main() -> int:
    parser = ArgumentParser(prog="python -m pipeline.commands.dagster_server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--allow-host", action="append", default=[])
    args = parser.parse_args()
    configure_loggers(log_level="INFO")
    setup_interrupt_handlers()  # SIGTERM ends it as Ctrl-C does
    layout = Layout(args.data)
    with open_instance(layout) as instance, _code_server(instance, str(workspace_file(layout))) as workspace:
        return _serve(instance, workspace, args)


def _serve(instance: DagsterInstance, workspace: str, args: Namespace) -> int:
    """Run the UI and the daemon until one of them ends. Returns 1 if it was the daemon."""
    target: Any = WorkspaceFileTarget([workspace])
    with _daemon(instance, workspace) as daemon, WorkspaceProcessContext(instance, target, __version__) as context:
        app: Any = create_app_from_workspace_process_context(context, live_data_poll_rate=POLL_MS)
        config = uvicorn.Config(
            SameOrigin(app=app, hosts=args.allow_host, post_only=POST_ONLY),
            host=ADDRESS,
            port=args.port,
            log_level="warning",
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        server = uvicorn.Server(config)

        def end_with_daemon() -> None:
            daemon.wait()
            server.should_exit = True

        threading.Thread(target=end_with_daemon, daemon=True).start()
        try:
            server.run()
        except KeyboardInterrupt:  # uvicorn raises it once more after it has ended
            return 0
        log.error("dagster-daemon ended with code %s", daemon.poll())
        return 1


@contextlib.contextmanager
def _code_server(instance: DagsterInstance, workspace: str) -> Iterator[str]:
    """One code server for the UI and the daemon. Yields a workspace file that names it."""
    target: Any = WorkspaceFileTarget([workspace])
    with ProxyServerManager(instance, target, "WARNING") as servers, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workspace.yaml"
        path.write_text(json.dumps({"load_from": servers.get_code_server_specs()}), "utf-8")  # which is YAML, too
        yield str(path)


@contextlib.contextmanager
def _daemon(instance: DagsterInstance, workspace: str) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--instance-ref", serialize_value(instance.get_ref()), "--workspace", workspace]
    command = [sys.executable, "-m", "dagster._daemon", "run", "--log-level", "info", *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as daemon:
        try:
            yield daemon
        finally:
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()


if __name__ == "__main__":
    sys.exit(main())
