"""The MLflow server of `gristmill ui`, which answers no requests that pages of other sites send.

In: a port, a data folder and further host names. Out: MLflow's server for the database and the artifacts of the
folder, on 127.0.0.1, until a signal ends it. `mlflow server` has such a check of its own, but it takes every page
that another program serves on this machine, and every host whose name begins like a private address, for a friend.
What that command passes to its workers in variables is set here instead, and one process does the work of two.
"""

import os
import uuid
from argparse import ArgumentParser, Namespace
from pathlib import Path

import uvicorn

from pipeline.serving.same_origin import SameOrigin
from pipeline.store.layout import Layout
from pipeline.tracking.database import create_database

ADDRESS = "127.0.0.1"
ARTIFACTS = "mlflow-artifacts:/"  # what `mlflow server --serve-artifacts` uses
CLOSE_SECONDS = 5  # for answers that are under way when a signal ends the server


def main() -> None:
    parser = ArgumentParser(prog="python -m pipeline.tracking.mlflow_server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--allow-host", action="append", default=[])
    serve(parser.parse_args())


def serve(args: Namespace) -> None:
    layout = Layout(args.data)
    uri = f"sqlite:///{layout.mlflow / 'mlflow.db'}"
    os.environ |= {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 7 processes and 2 GB that nothing here uses
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",  # SameOrigin is stricter, and also knows WebSockets
        "MLFLOW_ENABLE_WORKSPACES": "false",
        "_MLFLOW_IN_JOB_EXECUTOR": "false",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: uri,
        constants.REGISTRY_STORE_URI_ENV_VAR: uri,
        constants.ARTIFACT_ROOT_ENV_VAR: ARTIFACTS,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(layout.mlflow / "artifacts"),
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    create_database(layout)
    initialize_backend_stores(uri, uri, ARTIFACTS)
    guarded = SameOrigin(app=app, hosts=args.allow_host)
    uvicorn.run(guarded, host=ADDRESS, port=args.port, log_level="warning", timeout_graceful_shutdown=CLOSE_SECONDS)


if __name__ == "__main__":
    main()
