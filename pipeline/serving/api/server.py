"""Runs the application: binds the address, loads the models, answers until a signal, and then finishes what runs.

In: sources of models, limits, an address, perhaps a token. Out: an exit code, once a signal has ended the server. The
address is bound first, so that a port in use is reported before models are loaded; while they load, requests for them
are answered with 503 and /readyz says so. SIGTERM and Ctrl-C end it: nothing new is accepted, what is being answered
is finished within `drain_seconds`; a second signal gives that up.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from pipeline.serving.api.app import create_app
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import load
from pipeline.serving.api.observed import WriteLine
from pipeline.serving.api.protocol import limited_protocol
from pipeline.serving.api.served import ServedModels, Source

BACKLOG = 512
SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Settings:
    """How a server is run."""

    sources: Mapping[str, Source]
    limits: Limits = field(default_factory=Limits)
    hosts: Collection[str] = ()  # names that requests may be for, besides those of this machine
    token: str | None = None
    write_line: WriteLine | None = None  # for the lines of the access log
    logs_texts: bool = False
    poll_seconds: float | None = 10.0  # between two looks for new versions; None = never
    drain_seconds: float = 30.0
    on_ready: Callable[[ServedModels], object] = lambda served: None


def is_public(host: str) -> bool:
    """Whether other machines may reach the address. A name that is not known here counts as public."""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError when the port is in use or the host is not of this machine."""
    host = host.strip("[]")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


class Server(uvicorn.Server):
    """uvicorn's, with signals that drain: the first one finishes what runs, the second one closes the connections."""

    served: ServedModels
    loop: asyncio.AbstractEventLoop

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        self.loop = loop = asyncio.get_running_loop()
        for number in SIGNALS:
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(number, self.drain)
        try:
            yield
        finally:
            for number in SIGNALS:
                with contextlib.suppress(RuntimeError, ValueError):
                    loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Called for each signal."""
        if self.should_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        self.served.is_draining = self.should_exit = True


def run(settings: Settings, listening: socket.socket) -> int:
    """Serves until a signal. Raises what the loading of a model raises."""
    server, failures = server_of(settings)
    server.run(sockets=[listening])
    if failures:
        raise failures[0]
    return 0


def server_of(settings: Settings) -> tuple[Server, list[BaseException]]:
    """A server that is not running yet, and a list for what ends it before its time."""
    served = ServedModels(settings.sources, functools.partial(load, limits=settings.limits))
    failures: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        del app
        task = asyncio.ensure_future(_load_and_watch(settings, served, server, failures))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await served.close()

    app = create_app(
        served,
        settings.limits,
        hosts=settings.hosts,
        token=settings.token,
        write_line=settings.write_line,
        logs_texts=settings.logs_texts,
        lifespan=lifespan,
    )
    config = uvicorn.Config(
        app,
        http=limited_protocol(settings.limits),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.limits.idle_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type]
        lifespan="on",
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of every client that sends no HTTP
    server = Server(config)
    server.served = served
    return server, failures


async def _load_and_watch(
    settings: Settings, served: ServedModels, server: Server, failures: list[BaseException]
) -> None:
    try:
        await served.load_all()
    except Exception as error:
        failures.append(error)
        server.drain()
        return
    settings.on_ready(served)
    if settings.poll_seconds is not None:
        await served.watch(settings.poll_seconds)
