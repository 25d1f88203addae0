"""Takes the files of a model out of a package, which is opened as an archive and not trusted.

In: the members of an archive. Out: files with the pinned sha256, or a ValueError with what is there instead. A member
that leads outside, is a link, or unpacks to much more than it holds is refused.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from pipeline.corpus.collect.download import BLOCK, check_sha256
from pipeline.corpus.collect.members import UNREADABLE, Member, shown
from pipeline.corpus.collect.source import Progress
from pipeline.corpus.collect.unpacking import FREE_BYTES
from pipeline.store.settings import did_you_mean
from pipeline.training.model_files import pickles_among, useful

MOST_EXPANSION = 20  # from the stored bytes of a member, beyond FREE_BYTES; weights hardly compress
MOST_SHOWN = 12  # names in a message


def take_members(
    members: Iterable[Member],
    files: Mapping[str, str],
    targets: Mapping[str, Path],
    archive: Path,
    progress: Progress,
) -> None:
    """Write each of `files` (path in the archive -> sha256) to its target. Raises ValueError if one is missing."""
    names, missing, done = [], dict(files), 0
    for member in members:
        names.append(member.name)
        if missing.pop(member.name, None) is None:
            continue
        target = targets[member.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for block in _blocks(member, archive):
                done += file.write(block)
                progress(done, None)
        try:
            check_sha256(target, f"{member.name} in {archive.name}", files[member.name])
        except ValueError:
            target.unlink()
            raise
    if missing:
        raise _missing(next(iter(missing)), names, archive)


def copy_member(members: Iterable[Member], path: str, file: BinaryIO, archive: Path) -> None:
    """Append one member to `file`. Raises ValueError if it is missing."""
    names = []
    for member in members:
        names.append(member.name)
        if member.name == path:
            for block in _blocks(member, archive):
                file.write(block)
            return
    raise _missing(path, names, archive)


def found_in_archive(members: Callable[[], Iterable[Member]], archive: Path) -> dict[str, str]:
    """The files that make a model, with their sha256."""
    names = [member.name for member in members() if not member.refused]
    chosen, files = set(useful(names)), {}
    for member in members():
        if member.name in chosen and not member.refused:
            digest = hashlib.sha256()
            for block in _blocks(member, archive):
                digest.update(block)
            files[member.name] = digest.hexdigest()
    return files


def _blocks(member: Member, archive: Path) -> Iterator[bytes]:
    """The content of a member. Raises ValueError for one that is refused, damaged or unpacks to too much."""
    name, most, done = f"{shown(member.name)} in {archive.name}", FREE_BYTES + MOST_EXPANSION * member.size, 0
    if member.refused:
        raise ValueError(f"{name} is not read: it is {member.detail}")
    try:
        with member.open() as stream:
            while block := stream.read(BLOCK):
                done += len(block)
                if done > most:
                    raise ValueError(
                        f"{name} unpacks to more than {most / 1e6:,.0f} MB from {member.size / 1e6:,.1f} MB, which no"
                        " weights do; nothing of it was kept"
                    )
                yield block
    except (*UNREADABLE, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{name} is damaged ({error}); find a good copy of the package") from error


def _missing(path: str, names: list[str], archive: Path) -> ValueError:
    near = did_you_mean(path, names)
    there = sorted(useful(names) or pickles_among(names) or names)
    more = f" and {len(there) - MOST_SHOWN} more" if len(there) > MOST_SHOWN else ""
    listed = ", ".join(map(shown, there[:MOST_SHOWN])) or "nothing"
    return ValueError(f"{archive.name} has no file {path}{near}; it contains {listed}{more}")
