"""Creates MLflow's database in the data folder, and brings an older one up to date, in one process at a time.

In: a layout whose tracking is its own SQLite file. Out: a database that later clients only open. MLflow locks the
first of its steps alone: of two first runs at once, one found its database half migrated and failed.
"""

import functools
from pathlib import Path

from filelock import FileLock

from pipeline.store.layout import Layout

LOCK = ".creating.lock"


def create_database(layout: Layout) -> None:
    path = layout.mlflow / "mlflow.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    _opened(path, path.stat().st_ino if path.exists() else None)


@functools.lru_cache(maxsize=8)  # once per process, unless the file was removed in the meantime
def _opened(path: Path, inode: int | None) -> None:
    import mlflow

    uri = f"sqlite:///{path}"
    with FileLock(path.with_name(LOCK)):
        mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)
