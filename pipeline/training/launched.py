"""A training in other processes, as one call of the process that builds.

In: a description that can be written down, and `work.launch`, which starts `pipeline.training.process` with it as
often as devices are used. Out: the finished training in the folder; meanwhile the observer and the progress hear
everything as if it happened here, and what goes wrong in a process is raised here in its own words.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.store.errors import Terminated
from pipeline.store.shards import write_text
from pipeline.store.store import Work
from pipeline.training.events import forget_events, tell_rest, told_live

LAUNCH = ".launch"  # folders of one launch each: what is to be done, and what went wrong; no part of an output
ORDER, FAILURE = "order.json", "failure-{rank}.json"
KINDS = ("ValueError", "OSError", "Terminated", "RuntimeError")  # the first tells most: others follow from it


def train_in_processes(description: str, work: Work) -> None:
    """Raises Terminated after a signal, ValueError and OSError as the training itself would."""
    assert work.launch is not None
    folder = Path(tempfile.mkdtemp(prefix=f"{LAUNCH}-", dir=work.directory))  # not that of processes still ending
    write_text(folder / ORDER, description)
    with told_live(work.directory, work.observer, lambda done, total: work.progress(done, total, "steps")):
        ended = work.launch(folder / ORDER)
    if failures := failures_in(folder):
        raise failures[0]
    if ended.code and ended.was_stopped:
        raise Terminated("stopped by a signal before there was anything to save; run it again to start")
    if ended.code:
        raise RuntimeError(
            f"the processes of the training ended with code {ended.code}, without a word: killed, or out of memory?"
            " Run it again to go on from the last checkpoint"
        )
    forget_launches(work.directory)
    forget_events(work.directory)


def forget_launches(directory: Path) -> None:
    for folder in directory.glob(f"{LAUNCH}-*"):
        shutil.rmtree(folder)


def tell_what_was_left(work: Work) -> None:
    """What processes of an earlier build had written down when it was killed."""
    tell_rest(work.directory, work.observer)
    forget_events(work.directory)
    forget_launches(work.directory)


def write_failure(launch: Path, rank: int, error: BaseException) -> None:
    """What the waiting process raises; of `error` the first of KINDS that it is. `launch`: the order's folder."""
    kind = next((kind.__name__ for kind in (ValueError, OSError, Terminated) if isinstance(error, kind)), KINDS[-1])
    message = str(error) if kind != KINDS[-1] else f"{type(error).__name__}: {error}"
    about = {"kind": kind, "rank": rank, "message": message, "errno": getattr(error, "errno", None)}
    write_text(launch / FAILURE.format(rank=rank), json.dumps(about))


def failures_in(launch: Path) -> list[Exception]:
    """Why processes ended, the reason before its consequences."""
    failures = [json.loads(path.read_text()) for path in launch.glob(FAILURE.format(rank="*"))]
    failures.sort(key=lambda failure: (KINDS.index(failure["kind"]), failure["rank"]))
    return [_exception(failure) for failure in failures]


def _exception(failure: dict[str, Any]) -> Exception:
    message = failure["message"]
    if failure["kind"] == "OSError":
        return OSError(failure["errno"], message) if failure["errno"] is not None else OSError(message)
    return {"ValueError": ValueError, "Terminated": Terminated, "RuntimeError": RuntimeError}[failure["kind"]](
        message
    )
