"""Start a training in several processes by torchrun, wait for it, and stop it when its parent is stopped or dies.

In: a module and its arguments. Out: how it ended. Steps: check that every process gets a GPU where there are GPUs;
run this file as a module, which is torchrun without the traceback that it would print over the processes' own errors;
torchrun starts `python -m MODULE ARGUMENTS` once per process.

The processes inherit one pipe as standard input. Nothing is ever written to it: closing it stops them. The parent
closes it on SIGTERM or SIGINT, and the kernel closes it if the parent dies, so that a training never outlives its
parent unnoticed. It may take as long as a checkpoint needs, whereas torchrun kills 30 seconds after its own SIGTERM.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from model.training.machine import check_n_processes, n_usable_cores

POLL_SECONDS = 0.1  # between two checks for a signal


@dataclass(frozen=True, slots=True)
class LaunchResult:
    code: int  # 0 = all of them succeeded
    was_stopped: bool  # this process received SIGTERM or SIGINT while it waited


def launch(
    module: str,
    arguments: Sequence[str],
    n_processes: int,
    environment: Mapping[str, str] | None = None,
    n_devices: int | None = None,
) -> LaunchResult:
    """Run `module` in `n_processes` processes of this machine and wait for them; see `stop_at_end_of_input`.

    SIGTERM and SIGINT stop the processes as well, and their ends are waited for. Raises ValueError before anything
    starts where there are GPUs, but fewer than processes (`n_devices`, None = counted).
    """
    check_n_processes(n_processes, n_devices)
    torchrun = [sys.executable, "-m", "model.training.launch", "--standalone", f"--nproc-per-node={n_processes}"]
    threads = {"OMP_NUM_THREADS": str(max(1, n_usable_cores() // n_processes))}  # torchrun would say 1
    with stop_signals() as is_stopped:
        process = subprocess.Popen(
            [*torchrun, "-m", module, *arguments],
            env=threads | os.environ | dict(environment or {}),
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
        assert process.stdin is not None
        try:
            while process.poll() is None:
                if is_stopped() and not process.stdin.closed:
                    process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            process.stdin.close()
            process.wait()
        return LaunchResult(process.returncode, is_stopped())


def stop_at_end_of_input() -> None:
    """Send this process SIGTERM when its standard input ends: it then saves and ends, as after any SIGTERM."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop-at-end-of-input", daemon=True).start()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT are recorded, not obeyed; the function returns whether one came.

    Outside the main thread, where Python sets no handlers, it always returns False.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: set outside Python


def torchrun() -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(None))
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(torchrun())
