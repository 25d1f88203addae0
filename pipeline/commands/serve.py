"""`gristmill serve`: answers over HTTP with models of the graph, of a folder or of MLflow, until Ctrl-C or SIGTERM.

In: models, an address, limits, and perhaps a token. Out: the server of pipeline/serving/api, whose address is printed
when every model is loaded. What can be known before that is checked before: that there are such models, that the port
is free, and that an address which other machines reach has a token.
"""

import errno
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipeline.commands.serve_sources import sources_of
from pipeline.serving.api.guard import checked_token
from pipeline.serving.api.limits import Limits
from pipeline.serving.same_origin import split_host
from pipeline.store.layout import layout_from_environment
from pipeline.store.settings import read_assignments

if TYPE_CHECKING:
    from pipeline.serving.api.served import ServedModels, Source

TOKEN = "GRISTMILL_TOKEN"
NO_LOG = "none"


def run_serve(args: Namespace) -> int:
    from pipeline.serving.api.server import Settings, is_public, run

    limits = read_assignments(Limits, args.set)
    for host in args.allow_host:
        split_host(host)
    token = token_of(args)
    if is_public(args.host) and token is None:
        raise ValueError(
            f"--host {args.host} can be reached from other machines, and there is no token; write one into a file and"
            f" add --token-file FILE, or set {TOKEN}"
        )
    sources = checked_sources(args)
    listening = listening_socket(args.host, args.port)
    log = access_log(args.access_log)
    settings = Settings(
        sources=sources,
        limits=limits,
        hosts=[*args.allow_host, *([] if is_any(args.host) else [shown_host(args.host)])]
        if not token
        else args.allow_host,
        token=token,
        write_line=None if log is None else lambda line: print(line, file=log, flush=True),
        logs_texts=args.log_texts,
        poll_seconds=args.poll or None,
        drain_seconds=args.drain,
        on_ready=lambda served: print_ready(served, args.host, listening.getsockname()[1]),
    )
    print(f"Loading {', '.join(sources)}", flush=True)
    try:
        return run(settings, listening)
    finally:
        if log not in (None, sys.stderr):
            log.close()


def token_of(args: Namespace) -> str | None:
    """The token in the file or the variable, which is then taken out of the environment."""
    given = os.environ.pop(TOKEN, None)
    if args.token_file is not None:
        try:
            return checked_token(Path(args.token_file).read_text("utf-8"), args.token_file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{args.token_file} is not a text in UTF-8, expected a file with a token") from error
    return None if given is None else checked_token(given, TOKEN)


def checked_sources(args: Namespace) -> "Mapping[str, Source]":
    """A source for each model. Raises ValueError for a model that is not there."""
    sources = sources_of(layout_from_environment(), args.models)
    for source in sources.values():
        source.key()
    return sources


def listening_socket(host: str, port: int) -> socket.socket:
    from pipeline.commands.ui import listener_of
    from pipeline.serving.api.server import bound

    try:
        return bound(host, port)
    except socket.gaierror as error:
        raise ValueError(f"--host {host} is no address of this machine ({error.strerror})") from error
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            who = listener_of(port)
            raise OSError(
                f"port {port} is in use{f' by {who}' if who else ''}; stop that process, or choose another port:"
                f" gristmill serve ... --port {port + 1}"
            ) from error
        if number == errno.EADDRNOTAVAIL:
            raise ValueError(f"--host {host} is no address of this machine") from error
        raise OSError(f"port {port} can't be used: {getattr(error, 'strerror', None) or error}") from error


def access_log(name: str | None) -> TextIO | None:
    """Where the lines of the access log go; None if nowhere."""
    if name == NO_LOG:
        return None
    return sys.stderr if name is None else Path(name).open("a", encoding="utf-8")


def is_any(host: str) -> bool:
    """Whether the address stands for all of this machine's."""
    return host in ("0.0.0.0", "::", "[::]", "")


def shown_host(host: str) -> str:
    host = host.strip("[]")
    return f"[{host}]" if ":" in host else host


def print_ready(served: "ServedModels", host: str, port: int) -> None:
    for name, serving in served.serving.items():
        about = f"{serving.model.kind}, {serving.found.version}" if serving.found.version else serving.model.kind
        print(f"{name} ({about}): {', '.join(serving.model.routes)}")
    address = f"http://{'127.0.0.1' if is_any(host) else shown_host(host)}:{port}"
    print(f"Serving at {address}  (OpenAI's clients: base_url {address}/v1). Ctrl-C stops it.", flush=True)
