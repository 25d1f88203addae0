"""The address of the MLflow server, a client for it, and links to its runs."""

import logging
import os
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.store.layout import Layout
from pipeline.store.redaction import redacted
from pipeline.tracking.database import create_database
from pipeline.tracking.journal import FINISHED, Journal
from pipeline.tracking.refusals import reason_of
from pipeline.tracking.relocation import relocate

URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
log = logging.getLogger(__name__)
LINK_HOST, LINK_PORT = "127.0.0.1", 4747  # where `gristmill ui` resolves links, whatever the port of MLflow


def tracking_uri(layout: Layout) -> str:
    """MLFLOW_TRACKING_URI without the login of an HTTP address, else a SQLite file below the data folder.

    The address of a database may contain a password: show it by `shown_uri` only.
    """
    return without_login(os.environ.get(URI_VARIABLE, "").strip())[0] or f"sqlite:///{layout.mlflow / 'mlflow.db'}"


def shown_uri(layout: Layout) -> str:
    """The address of the server for people, without passwords."""
    return redacted(tracking_uri(layout))


def without_login(uri: str) -> tuple[str, str, str]:
    """An HTTP address without the login in it, the user and the password. Other addresses are returned unchanged."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # for instance [ without ]; MLflow will refuse it
        return uri, "", ""
    login, _, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if parts.scheme not in ("http", "https") or not (user and password):
        return uri, "", ""
    return urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password)


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
    uri = _checked_uri(layout)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # otherwise it logs a line for each of 50 migrations
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    if is_local(layout) and (n_changed := relocate(layout)):
        log.warning(
            "the data folder was moved or copied to %s; %d addresses in MLflow were corrected", layout.data, n_changed
        )
    if uri == f"sqlite:///{layout.mlflow / 'mlflow.db'}":
        create_database(layout)
    return mlflow.MlflowClient(uri, uri)


def unreachable(layout: Layout, error: Exception) -> OSError:
    """The error of a request as one for people, for a command that cannot go on without MLflow."""
    return OSError(
        f"MLflow at {shown_uri(layout)} could not be asked which models are registered: {reason_of(error)}"
    )


def _checked_uri(layout: Layout) -> str:
    """The address for MLflow's client. A login is passed by variables, because MLflow's messages contain addresses.

    Raises ValueError for a text that MLflow would take for the name of a folder, and create.
    """
    given = os.environ.get(URI_VARIABLE, "").strip()
    _, user, password = without_login(given)
    if user and password:
        os.environ.setdefault(USER_VARIABLE, user)
        os.environ.setdefault(PASSWORD_VARIABLE, password)
    elif "@" in given and "://" not in given:
        raise ValueError(
            f"{URI_VARIABLE}={redacted(given)} is no address; expected for instance http://HOST:PORT, with user and"
            f" password in {USER_VARIABLE} and {PASSWORD_VARIABLE}"
        )
    return tracking_uri(layout)


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
    url = None
    if (uri := tracking_uri(layout)).startswith(("http://", "https://")):
        url = run_url(layout, fingerprint, redacted(uri.partition("?")[0].partition("#")[0]))
    return url or f"http://{LINK_HOST}:{LINK_PORT}/runs/{fingerprint}"  # pipeline/commands/mlflow_links.py
