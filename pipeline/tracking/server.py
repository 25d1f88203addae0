"""The address of the MLflow server, a client for it, and links to its runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.store.layout import Layout
from pipeline.tracking.database import create_database
from pipeline.tracking.journal import FINISHED, Journal
from pipeline.tracking.relocation import relocate

URI_VARIABLE = "MLFLOW_TRACKING_URI"
log = logging.getLogger(__name__)
LINK_HOST, LINK_PORT = "127.0.0.1", 4747  # where `gristmill ui` resolves links, whatever the port of MLflow


def tracking_uri(layout: Layout) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file below the data folder."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{layout.mlflow / 'mlflow.db'}"


def is_local(layout: Layout) -> bool:
    """Whether MLflow's database is the file in the data folder, not a server."""
    return tracking_uri(layout).startswith("sqlite:")


def has_database(layout: Layout) -> bool:
    """False where tracking is a SQLite file that was not made yet."""
    return not is_local(layout) or (layout.mlflow / "mlflow.db").exists()


def new_client(layout: Layout) -> Any:
    """A client with short timeouts, because a server that is down must not delay a build."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # otherwise it logs a line for each of 50 migrations
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    if is_local(layout) and (n_changed := relocate(layout)):
        log.warning(
            "the data folder was moved or copied to %s; %d addresses in MLflow were corrected", layout.data, n_changed
        )
    uri = tracking_uri(layout)
    if uri == f"sqlite:///{layout.mlflow / 'mlflow.db'}":
        create_database(layout)
    return mlflow.MlflowClient(uri, uri)


@contextmanager
def chosen_server(layout: Layout) -> Iterator[Any]:
    """The module mlflow, for calls that take no client but use the tracking URI of the process."""
    import mlflow

    before = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(tracking_uri(layout))
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None removes the variable again


def run_id_of(layout: Layout, fingerprint: str) -> str | None:
    """MLflow run of a build; None if none was created or the server has not answered yet."""
    return Journal(layout, fingerprint).state().get("run_id")


def is_finished(layout: Layout, fingerprint: str) -> bool:
    """Whether the journal of a build is closed as finished; waiting events are delivered later."""
    return Journal(layout, fingerprint).state().get("status") == FINISHED


def run_url(layout: Layout, fingerprint: str, server: str) -> str | None:
    """Page of the run, in the model training view of the MLflow server at `server`."""
    state = Journal(layout, fingerprint).state()
    if not state.get("run_id"):
        return None
    return (
        f"{server.rstrip('/')}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
        "?workflowType=machine_learning"
    )


def run_link(layout: Layout, fingerprint: str) -> str:
    """A permanent address of the page of the run, which works whatever port MLflow has later."""
    uri = tracking_uri(layout)
    url = run_url(layout, fingerprint, uri) if uri.startswith("http") else None
    return url or f"http://{LINK_HOST}:{LINK_PORT}/runs/{fingerprint}"  # pipeline/commands/mlflow_links.py
