"""The entry point of one training process, started by torchrun: `python -m pipeline.training.process ORDER`.

In: the path of a description (model.training.pretraining.Pretraining as JSON). Out: the trained model in its folder,
and a report: events (training/events.py), a failure (training/launched.py), and log lines through Dagster Pipes if
Dagster waits for it. Exits with 0 also after a signal, once everything is saved: torchrun treats any other code as a
failure and would kill the other processes.

Only the first process writes events; every process records why it fails. Only this file imports dagster_pipes.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

from model.training.distributed import is_main, n_processes, rank
from model.training.launch import stop_at_end_of_input
from model.training.loop import Interrupted
from model.training.machine import training_device
from model.training.pretraining import Pretraining, pretrain
from pipeline.store.errors import Terminated
from pipeline.training.events import EventWriter
from pipeline.training.launched import write_failure

LOGGERS = ("model", "pipeline")
log = logging.getLogger("pipeline.training.process")  # not __main__, its name here


def main(order: Path) -> int:
    stop_at_end_of_input()
    launch = order.parent
    try:
        with logged_to_dagster():
            plan = Pretraining.from_json(order.read_text("utf-8"))
            log.info("training in %d processes, this one on %s", n_processes(), training_device())
            events = EventWriter(plan.out)
            pretrain(plan, events, events.progress)
            log.info("trained to step %d", plan.train.n_steps)
    except Interrupted as stop:
        write_failure(launch, rank(), Terminated(str(stop)))
    except Exception as error:
        write_failure(launch, rank(), error)
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()  # a bug, or a consequence of a failure in another process
        return 1
    return 0


@contextmanager
def logged_to_dagster() -> Iterator[None]:
    """Sends log lines of the first process to the log of the Dagster run, if Dagster started it."""
    if not (is_main() and DAGSTER_PIPES_CONTEXT_ENV_VAR in os.environ):
        yield
        return
    with open_dagster_pipes() as pipes:
        handler = PipesHandler(pipes)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.INFO)
        yield


class PipesHandler(logging.Handler):
    """Forwards records of Python's logging to the log of the Dagster run."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self.pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self.pipes.log.log(record.levelno, self.format(record))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
