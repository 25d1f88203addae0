"""Opens a DuckDB database for work that may be larger than memory.

In: a folder that belongs to the stage, and limits. Out: an open database whose tables are stored in the folder and
which spills there. duckdb is imported where it is used.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_SPACE = ("max_temp_directory_size", "No space left", "Disk quota exceeded")  # in DuckDB's messages


@contextmanager
def open_database(folder: Path, *, n_threads: int, memory_mb: int) -> Iterator[Any]:
    """A database that spills below `folder`, which is created. The limits do not affect results.

    Raises OSError when the disk is too full to spill, like any other full disk (`store.room_for`).
    """
    import duckdb

    settings: dict[str, Any] = {
        "threads": n_threads,
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(str(folder / "work.duckdb"), config=settings) as database:
            yield database
    except duckdb.Error as error:
        if any(sign in str(error) for sign in NO_SPACE):
            raise OSError(errno.ENOSPC, f"no room for the database: {error}") from error
        raise
