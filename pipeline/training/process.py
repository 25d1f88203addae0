"""One of the processes of a training: `python -m pipeline.training.process ORDER`, started by torchrun.

In: the path of a description (model.pretraining.Pretraining as JSON). Out: the trained model in its folder, and what
happened: events (training/events.py), a failure (training/launched.py), and through Dagster Pipes, where Dagster
waits for it, the lines that are logged. Ends with 0 also after a signal, once all is saved: torchrun takes any other
code for a failure and would kill the others.

The first process tells; all of them note why they fail. This file alone imports dagster_pipes.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, PipesContext, open_dagster_pipes

from model.distributed import is_main, n_processes, rank, training_device
from model.launch import stop_at_end_of_input
from model.pretraining import Pretraining, pretrain
from model.train import Interrupted
from pipeline.store.errors import Terminated
from pipeline.training.events import EventWriter
from pipeline.training.launched import write_failure

LOGGERS = ("model", "pipeline")
log = logging.getLogger("pipeline.training.process")  # not __main__, which it runs as


def main(order: Path) -> int:
    stop_at_end_of_input()
    launch = order.parent
    try:
        with logged_to_dagster():
            plan = Pretraining.from_json(order.read_text())
            log.info("training in %d processes, this one on %s", n_processes(), training_device())
            events = EventWriter(plan.out)
            pretrain(plan, events, events.progress)
            log.info("trained to step %d", plan.train.n_steps)
    except Interrupted as stop:
        write_failure(launch, rank(), Terminated(str(stop)))
    except Exception as error:
        write_failure(launch, rank(), error)
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()  # a mistake of ours, or of another process
        return 1
    return 0


@contextmanager
def logged_to_dagster() -> Iterator[None]:
    """In the first process, where Dagster started it: what is logged reaches the log of the run."""
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
    """Records of Python's logging as log lines of the Dagster run."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self.pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self.pipes.log.log(record.levelno, self.format(record))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
