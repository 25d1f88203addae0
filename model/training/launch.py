"""Start a training in several processes by torchrun, and end it with the process that waits for it.

In: a module and its arguments. Out: how it ended. Steps: this file, run as a module, is torchrun without the
traceback that it prints over the processes' own words; it starts `python -m MODULE ARGUMENTS` as often as wanted.

All of them inherit one pipe as their input, in which nothing is ever written. Its end is what stops them: the one who
waits closes it when a signal asks to stop, and the system does when he is killed. So a training never outlives him
unseen, and may take the time that a checkpoint needs: torchrun's own way kills after 30 seconds.
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

from model.training.machine import n_usable_cores

LOOK_SECONDS = 0.1  # between two looks at what runs


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """How the processes of a training ended."""

    code: int  # 0 = all of them well
    was_stopped: bool  # this process was asked to stop while it waited


def launch(
    module: str, arguments: Sequence[str], n_processes: int, environment: Mapping[str, str] | None = None
) -> LaunchResult:
    """Run `module` in `n_processes` processes of this machine and wait for them; see `stop_at_end_of_input`.

    A signal that asks to stop (SIGTERM, SIGINT) is handed on, and what the processes then do is waited for.
    """
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
                    process.wait(LOOK_SECONDS)
        finally:
            process.stdin.close()
            process.wait()
        return LaunchResult(process.returncode, is_stopped())


def stop_at_end_of_input() -> None:
    """From now on this process gets SIGTERM when its input ends: it saves and ends, as for any SIGTERM."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop-at-end-of-input", daemon=True).start()


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


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT are recorded, not obeyed; the value is whether one came.

    Outside the main thread, where handlers cannot be set, it always says no.
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
