"""Child interpreters for tests, forked from a process in which the heavy libraries are loaded already.

`python("-c", code, argument)` returns what subprocess.run([sys.executable, "-c", code, argument]) returns, without
the seconds that torch, Dagster and DuckDB take to import. Each child is a process of its own, which may be killed. A
test of what an import loads, or of the memory that a process takes, needs a fresh interpreter instead.

Steps: this file, run as a program, loads the libraries and waits. `python` sends it a socket and two files for the
output; it forks a keeper, which forks the child and reports how the child ended.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = (
    "duckdb", "pyarrow.parquet", "pytest", "torch", "torch.distributed.fsdp", "torch.distributed.tensor", "dagster",
    "model.training.run", "pipeline.definitions",
)  # fmt: skip
SECONDS = 240.0  # until a child that hangs is killed; no test expects one to take long


def python(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    check: bool = False,
    timeout: float = SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` (-c CODE ..., -m MODULE ... or SCRIPT ...) in a forked child and wait for its end."""
    request = {"arguments": arguments, "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with theirs:
            socket.send_fds(_server(), [b"!"], [theirs.fileno(), out.fileno(), err.fileno()])
        ours.sendall(json.dumps(request).encode() + b"\n")
        with ours.makefile() as answers:
            pid = int(answers.readline())
            ours.settimeout(timeout)
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout) from None
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    answer = subprocess.CompletedProcess(arguments, code, *texts)
    if check:
        answer.check_returncode()
    return answer


@functools.cache
def _server() -> socket.socket:
    """The connection to the process that forks; it is started by the first test that asks for a child."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def end() -> None:
        ours.close()  # which ends it
        process.wait()

    atexit.register(end)
    return ours


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a child per request until the tests end. Returns the request, in each child."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 1, 3)
        while _reap():
            pass
        if not message:
            sys.exit()
        if os.fork() == 0:
            connection.close()
            return _keep(*files)
        for file in files:
            os.close(file)


def _reap() -> bool:
    """Wait for one keeper that has ended."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _keep(number: int, out: int, err: int) -> dict[str, Any]:
    with socket.socket(fileno=number) as connection, connection.makefile() as lines:
        request = json.loads(lines.readline())
        pid = os.fork()
        if pid:
            connection.sendall(f"{pid}\n".encode())
            _, status = os.waitpid(pid, 0)
            with contextlib.suppress(BrokenPipeError):  # of a test that waits no longer
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    return request


def _become(request: dict[str, Any]) -> None:
    """What `python ARGUMENTS` does after its start; an error or sys.exit ends this process as it ends that one."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    sys.path[:1] = ["" if first in ("-c", "-m") else str(Path(first).parent), str(ROOT)]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
