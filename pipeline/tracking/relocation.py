"""Corrects the absolute addresses in MLflow's database after the data folder was copied or moved.

In: a layout with its own database. Out: the old folder that the database names, and the database with the current
folder in its place. MLflow stores absolute addresses, with which a run in a copy would show, and write to, the
original folder.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.store.layout import Layout

ADDRESSES = (  # table and column of each address in MLflow's database
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("datasets", "dataset_source"),
)
BELOW = "/mlflow/artifacts/"  # in a data folder
WAIT_SECONDS = 30  # for another process to finish writing


def moved_from(layout: Layout) -> Path | None:
    """A data folder other than the current one that occurs in the database; None if there is none."""
    uri = next(_foreign_roots(layout), None)
    return None if uri is None else Path(unquote(urlparse(uri).path))


def relocate(layout: Layout) -> int:
    """Replace other data folders in all addresses by the current one. Returns the number of changed addresses."""
    roots = list(_foreign_roots(layout))
    if not roots:
        return 0
    here, n_changed = layout.data.as_uri(), 0
    with closing(sqlite3.connect(layout.mlflow / "mlflow.db", timeout=WAIT_SECONDS)) as database, database:
        for there in roots:
            for table, column in ADDRESSES:
                n_changed += database.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)",
                    (f"{there}/", f"{here}/", f"{there}/"),
                ).rowcount
    return n_changed


def _foreign_roots(layout: Layout) -> Iterator[str]:
    """Addresses of the data folders with artifacts of experiments, except the current one."""
    path = layout.mlflow / "mlflow.db"
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        has_tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        query = f"SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%{BELOW}%'"
        locations = [location for (location,) in database.execute(query)] if has_tables else []
    roots = {location.rpartition(BELOW)[0] for location in locations}
    yield from sorted(roots - {layout.data.as_uri()})
