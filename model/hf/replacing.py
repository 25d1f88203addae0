"""Puts a new export in the place of an earlier one, whole or not at all.

In: the name of a folder that is new, empty or an earlier export. Out: a folder beside it to write into, which takes
its place at the end. Linux exchanges the two folders in one step, so that a process that is killed at any moment
leaves one whole export under the name. Where a system or a disk cannot, it takes two renames: a kill between them
leaves the earlier export as .NAME.old, and the next export restores it before anything else.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.training.files import flush, read_json

EXPORT = "gristmill_export.json"  # the file that makes a folder an export and lists the others
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2): paths from the working directory; both names exchange folders
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # by the kernel, or by the file system


@contextmanager
def replacing_export(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that takes its place at the end; an error leaves everything as it was.

    Raises ValueError when `directory` is a file, or contains anything that no earlier export wrote.
    """
    try:
        directory = directory.resolve()  # of a link the folder that it points to is replaced
    except RuntimeError as error:
        raise ValueError(f"{directory} is a link that leads back to itself; name another folder") from error
    part, old = (directory.with_name(f".{directory.name}.{end}") for end in ("part", "old"))
    if old.exists() and not directory.exists():
        os.replace(old, directory)  # noqa: PTH105
    _check_replaceable(directory)
    for leftover in (part, old):  # of an export that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            flush(path)
        flush(part)
        _take_place(part, directory, old)
    finally:  # the unfinished export after an error, the earlier one after an exchange
        shutil.rmtree(part, ignore_errors=True)
    flush(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _take_place(part: Path, directory: Path, old: Path) -> None:
    if directory.exists() and exchange(part, directory):
        return
    if directory.exists():
        os.replace(directory, old)  # noqa: PTH105
    try:
        os.replace(part, directory)  # noqa: PTH105
    except OSError:
        if old.exists():
            os.replace(old, directory)  # noqa: PTH105
        raise


def exchange(one: Path, other: Path) -> bool:
    """Whether the two folders now have each other's name; False where the system cannot do it in one step."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # not Linux, or a C library from before 2018
        return False
    if function(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if (number := ctypes.get_errno()) in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; name a folder that is new, empty or an earlier export")
    found = {path.name for path in directory.iterdir()} if directory.exists() else set()
    ours = {EXPORT, *_listed(directory / EXPORT)} if EXPORT in found else set()
    if foreign := sorted(found - ours):
        raise ValueError(
            f"{directory} contains {foreign[0]}, which no export wrote, so nothing is replaced; remove it, or name"
            " another folder"
        )


def _listed(path: Path) -> list[str]:
    """The files that an earlier export lists."""
    about = read_json(path)
    files = about.get("files") if isinstance(about, dict) else None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise ValueError(
            f"{path} does not list the files of an export, so nothing is replaced; remove the folder, or name another"
        )
    return files
