"""Outputs that running builds use, so that `gristmill gc` can remove others meanwhile.

In: the root of a store. Out: leases: a process that builds or reuses an output lists it, and what it reads, in a file
that it keeps locked until it has ended; the lock of a killed process is gone, and its list with it. `settled` is a
lock that is held for moments only: while an output is looked up and listed, and while one is removed, so that no
output is removed between the two.

The locks are those of flock, which the kernel releases when a process ends however it ends.
"""

import errno
import fcntl
import io
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock

LEASES = ".leases"  # folder of the store
SETTLED = ".settled.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The list of one process; folders are written relative to the store."""

    root: Path
    file: IO[str]

    def take(self, folders: Iterable[Path]) -> None:
        """List outputs as used; a folder outside the store is its owner's affair."""
        own = [folder for folder in folders if folder.is_relative_to(self.root)]
        with settled(self.root) if not isinstance(self.file, io.StringIO) else nullcontext():
            self.file.write("".join(f"{folder.relative_to(self.root)}\n" for folder in own))
            self.file.flush()


@contextmanager
def leased(root: Path) -> Iterator[Lease]:
    """A lease that ends with the block, or with the process."""
    path = root / LEASES / uuid.uuid4().hex
    try:
        with settled(root):
            path.parent.mkdir(exist_ok=True)
            file: IO[str] = path.open("w", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        file = io.StringIO()  # what cannot be written to, nobody removes either
    try:
        with file:
            yield Lease(root=root, file=file)
    finally:
        if not isinstance(file, io.StringIO):
            path.unlink(missing_ok=True)


@contextmanager
def settled(root: Path) -> Iterator[None]:
    """While it is held, no build begins to use an output, and none is removed."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / SETTLED):
        yield


def in_use(root: Path) -> set[Path]:
    """Folders on the lists of running processes, for a caller that holds `settled`.

    Lists of processes that have ended are removed.
    """
    used: set[Path] = set()
    for path in sorted((root / LEASES).glob("*")):
        with suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                used |= {root / line for line in os.fsdecode(path.read_bytes()).split("\n") if line}
            else:
                path.unlink(missing_ok=True)
    return used
