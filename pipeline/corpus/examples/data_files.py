"""Reads the labelled files of a task: from this machine, from inside a pinned package, from a pinned address, or from
tasks.toml itself.

In: a `LabelledFile`, `WrittenRows` or a `Source`. Out: name and content of each file, unpacked if it is compressed by
gzip. A file of this machine is read once, so that what is hashed is what becomes examples. A package is downloaded
and never run.
"""

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.unpacking import GZIP

MOST_BYTES = 1_000_000_000  # of a labelled file, which is read into memory
GZ = ".gz"


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A labelled file on this machine."""

    path: Path


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """Rows that are written in tasks.toml, as a file of JSON lines."""

    name: str  # for messages; ends in .jsonl
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A labelled file and the bytes that were read, once: what is hashed is what becomes examples."""

    path: Path
    content: bytes = field(repr=False)


Data = Source | LabelledFile | WrittenRows
Progress = Callable[[int, int | None], None]  # bytes so far, total bytes if known


def plain_name(name: str) -> str:
    """The name of a file without the ending of its compression."""
    return name[: -len(GZ)] if name.lower().endswith(GZ) else name


def beginning_of(path: Path, most: int) -> bytes:
    """The first bytes of a file of this machine, unpacked."""
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        return _gunzipped(str(path), file, most) if is_compressed else file.read(most)


def name_of(data: Data | ReadFile) -> str:
    if isinstance(data, WrittenRows):
        return data.name
    return ", ".join(data.members) if isinstance(data, Source) else str(data.path)


def read_data(data: Data) -> Source | ReadFile:
    if isinstance(data, Source):
        return data
    if isinstance(data, WrittenRows):
        return ReadFile(Path(data.name), data.content)
    if not data.path.is_file():
        raise ValueError(f"{data.path} is not a file; the path of a task is relative to the folder of tasks.toml")
    return ReadFile(data.path, data.path.read_bytes())


def digest_of(data: Source | ReadFile, cache: Path) -> str:
    return hashlib.sha256(data.content).hexdigest() if isinstance(data, ReadFile) else data.digest(cache)


def labelled_files(data: Source | ReadFile, cache: Path, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, one at a time in memory. Raises ValueError for one that cannot be read."""
    if isinstance(data, ReadFile):
        yield _unpacked(str(data.path), data.content)
        return
    for _, member in data.entries(cache, progress):
        if member.refused:
            raise ValueError(f"{member.name} cannot be read: {member.refused}")
        with member.open() as file:
            content = file.read(MOST_BYTES + 1)
        _refuse_large(member.name, content)
        yield _unpacked(member.name, content)


def _unpacked(name: str, content: bytes) -> tuple[str, bytes]:
    if not content.startswith(GZIP):
        return name, content
    unpacked = _gunzipped(name, io.BytesIO(content), MOST_BYTES + 1)
    _refuse_large(name, unpacked)
    return plain_name(name), unpacked


def _gunzipped(name: str, stream: BinaryIO, most: int) -> bytes:
    try:
        with gzip.open(stream) as file:
            return file.read(most)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is damaged ({error}); replace it with a good copy") from error


def _refuse_large(name: str, content: bytes) -> None:
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} is larger than {MOST_BYTES / 1e6:.0f} MB")
