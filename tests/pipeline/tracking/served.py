"""Loads a registered model as a user does, without the tracking address of the process."""

from pathlib import Path
from typing import Any

from pipeline.store.layout import Layout
from pipeline.tracking.packaging import artifacts_of
from pipeline.tracking.server import new_client


def load_registered(layout: Layout, name: str, folder: Path, version: str = "") -> Any:
    """The model with the alias champion, or the given version of it, downloaded to `folder`."""
    import mlflow

    client = new_client(layout)
    number = version or client.get_model_version_by_alias(name, "champion").version
    return mlflow.pyfunc.load_model(str(artifacts_of(client, layout, name, number, str(folder))[0]))
