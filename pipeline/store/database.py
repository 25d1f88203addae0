"""A DuckDB database for work that may be larger than memory.

In: a folder that belongs to the stage, and limits. Out: an open database with its tables and its spill files in the
folder. duckdb is imported where it is used.
"""

from pathlib import Path
from typing import Any


def open_database(folder: Path, *, n_threads: int, memory_mb: int) -> Any:
    """A database that spills below `folder`, which is created. The limits do not affect results."""
    import duckdb

    settings: dict[str, Any] = {
        "threads": n_threads,
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(str(folder / "work.duckdb"), config=settings)
