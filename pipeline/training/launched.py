"""Starts a training run in child processes, and returns to the caller when it has finished.

In: a serialisable description, and `work.launch`, which starts one `pipeline.training.process` per device with it.
Out: the finished training in the folder. Meanwhile the observer and the progress receive the same calls as from a
training in this process, and an error in a process is raised here with its own message.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.store.errors import Terminated
from pipeline.store.shards import write_text
from pipeline.store.store import Work
from pipeline.training.events import deliver_rest, delivered_live, remove_events
from pipeline.training.pace import paced

LAUNCH = ".launch"  # one folder per launch, with its order and its failures; not part of an output
ORDER, FAILURE = "order.json", "failure-{rank}.json"
KINDS = ("ValueError", "OSError", "Terminated", "RuntimeError")  # most informative first: the others follow from it


def train_in_processes(description: str, work: Work) -> None:
    """Raises Terminated after a signal, ValueError and OSError as the training itself would."""
    assert work.launch is not None
    folder = Path(tempfile.mkdtemp(prefix=f"{LAUNCH}-", dir=work.directory))  # not that of processes still ending
    write_text(folder / ORDER, description)
    with delivered_live(
        work.directory, work.observer, paced(lambda done, total: work.progress(done, total, "steps"))
    ):
        ended = work.launch(folder / ORDER)
    if failures := failures_in(folder):
        raise failures[0]
    if ended.code and ended.was_stopped:
        raise Terminated("stopped by a signal before there was anything to save; run it again to start")
    if ended.code:
        raise RuntimeError(
            f"the processes of the training ended with code {ended.code}, without a message: killed, or out of"
            " memory? Run it again to resume from the last checkpoint"
        )
    remove_launches(work.directory)
    remove_events(work.directory)


def remove_launches(directory: Path) -> None:
    for folder in directory.glob(f"{LAUNCH}-*"):
        shutil.rmtree(folder)


def deliver_leftovers(work: Work) -> None:
    """Delivers the events that processes of an earlier, killed build had written."""
    deliver_rest(work.directory, work.observer)
    remove_events(work.directory)
    remove_launches(work.directory)


def write_failure(launch: Path, rank: int, error: BaseException) -> None:
    """What the waiting process raises for `error`: the first of KINDS that fits. `launch` is the order's folder."""
    kind = next((kind.__name__ for kind in (ValueError, OSError, Terminated) if isinstance(error, kind)), KINDS[-1])
    message = str(error) if kind != KINDS[-1] else f"{type(error).__name__}: {error}"
    about = {"kind": kind, "rank": rank, "message": message, "errno": getattr(error, "errno", None)}
    write_text(launch / FAILURE.format(rank=rank), json.dumps(about))


def failures_in(launch: Path) -> list[Exception]:
    """Why processes ended, the cause before its consequences."""
    failures = [json.loads(path.read_text("utf-8")) for path in launch.glob(FAILURE.format(rank="*"))]
    failures.sort(key=lambda failure: (KINDS.index(failure["kind"]), failure["rank"]))
    return [_exception(failure) for failure in failures]


def _exception(failure: dict[str, Any]) -> Exception:
    message = failure["message"]
    if failure["kind"] == "OSError":
        return OSError(failure["errno"], message) if failure["errno"] is not None else OSError(message)
    return {"ValueError": ValueError, "Terminated": Terminated, "RuntimeError": RuntimeError}[failure["kind"]](
        message
    )
