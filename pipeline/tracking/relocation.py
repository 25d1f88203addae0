"""What MLflow's database says about a data folder that was copied or moved since, and how it is corrected.

In: a layout with a database of its own. Out: the folder that the database still names, and the same database with the
present folder in its place. MLflow writes down absolute addresses, by which a run in a copy would show, and write
into, the folder that it was copied from.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.store.layout import Layout

ADDRESSES = (  # table and column of every address in MLflow's database
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("datasets", "dataset_source"),
)
BELOW = "/mlflow/artifacts/"  # of a data folder
WAIT_SECONDS = 30  # for another process that writes


def moved_from(layout: Layout) -> Path | None:
    """A data folder other than the present one that addresses in the database name."""
    uri = next(_foreign_roots(layout), None)
    return None if uri is None else Path(unquote(urlparse(uri).path))


def relocate(layout: Layout) -> int:
    """Put the present data folder into all addresses of another one. Returns how many were changed."""
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
    """Addresses of the data folders that experiments keep their artifacts below, without the present one."""
    path = layout.mlflow / "mlflow.db"
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
        has_tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        query = f"SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%{BELOW}%'"
        locations = [location for (location,) in database.execute(query)] if has_tables else []
    roots = {location.rpartition(BELOW)[0] for location in locations}
    yield from sorted(roots - {layout.data.as_uri()})
