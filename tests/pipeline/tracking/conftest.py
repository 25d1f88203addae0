"""Shared by the tests of MLflow: a data folder with a fresh database."""

from pathlib import Path

import pytest

from pipeline.store.layout import Layout
from pipeline.tracking.server import new_client


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """A fresh MLflow database; making one takes seconds, so each test copies it."""
    layout = Layout(tmp_path_factory.mktemp("mlflow"))
    new_client(layout).search_experiments()
    return layout.mlflow / "mlflow.db"


@pytest.fixture
def layout(tmp_path, database, monkeypatch) -> Layout:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = Layout(tmp_path)
    layout.mlflow.mkdir()
    (layout.mlflow / "mlflow.db").write_bytes(database.read_bytes())
    return layout
