"""Gives advice on errors of the disk and of SQLite, whose own messages name neither the file nor a cure.

In: the text of an error, and the data folder. Out: the text with the file and the advice: a full disk, a folder that
cannot be written to, a damaged database. The databases of Dagster and MLflow are looked at only here and in
`gristmill doctor`.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.store.layout import Layout, write_fault

FULL = ("No space left", "database or disk is full", "Disk quota exceeded", "max_temp_directory_size")
UNWRITABLE = (
    "Read-only file system", "readonly database", "unable to open database file", "Permission denied",
    "disk I/O error",  # also of SQLite on a full disk
)  # fmt: skip
TOO_LARGE = "File too large"  # the limit of a shell or of the file system
DAMAGED = ("disk image is malformed", "file is not a database", "malformed database schema", "no such table")
ENDS = ("[SQL:", "(Background on this error")  # of what helps in an error of SQLAlchemy
ASK_THE_DOCTOR = "run `gristmill doctor`, which says what to do and mends what it can"
MAGIC = b"SQLite format 3\0"
BESIDE = ("-wal", "-shm", "-journal")  # endings of the files that belong to a database


def advised(text: str, layout: Layout) -> str:
    """`text` in one line, with what to do if it is about a full disk, a folder or a database."""
    line = " ".join(text.split())
    for end in ENDS:
        line = line.partition(end)[0].strip()
    if any(sign in line for sign in FULL):
        return line if "gristmill gc" in line else f"{line}; {full_disk(layout.data)}"
    if TOO_LARGE in line:
        return f"{line}; raise the limit on the size of files (`ulimit -f`)"
    if "GRISTMILL_DATA" not in line and any(sign in line for sign in UNWRITABLE) and (fault := write_fault(layout)):
        cure = "make it writable, or choose another one: `gristmill init FOLDER`"
        if any(sign in fault for sign in FULL):
            cure = full_disk(layout.data)
        return f"{layout.data}, the data folder (GRISTMILL_DATA), {fault}; {cure} ({line})"
    if any(sign in line for sign in DAMAGED):
        return f"{damaged_databases(layout) or f'a database below {layout.data}'} ({line}); {ASK_THE_DOCTOR}"
    return line


def damaged_databases(layout: Layout) -> str:
    """The damaged databases with their faults; empty if there are none."""
    return "; ".join(f"{path}: {fault}" for path in databases(layout) if (fault := fault_in(path)))


def full_disk(folder: Path) -> str:
    """What to do when there is no room in `folder`."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e6
    advice = "free some space, or run `gristmill gc`, and run again: finished work is kept"
    return f"{free:,.0f} MB are free in {folder}; {advice}"


def databases(layout: Layout) -> Iterator[Path]:
    """The SQLite files of Dagster and of MLflow."""
    yield from sorted(layout.dagster_home.rglob("*.db"))
    if (path := layout.mlflow / "mlflow.db").exists():
        yield path


def fault_in(path: Path) -> str | None:
    """What is wrong with a SQLite file; None = nothing, or it cannot be told because it is in use."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(100)
    if not size:
        return "it is empty"
    if not header.startswith(MAGIC):
        return "it is no SQLite database"
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if size < expected and not path.with_name(f"{path.name}-wal").exists():
        return f"it is cut: {size} of {expected} bytes"
    try:
        with closing(sqlite3.connect(path, timeout=1)) as database:
            (answer,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        return f"it is damaged: {error}"
    return None if answer == "ok" else f"it is damaged: {' '.join(str(answer).split())}"
