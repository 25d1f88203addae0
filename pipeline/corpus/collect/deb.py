"""The files of a Debian package: the tar archive data.tar.* inside an ar archive.

In: the path of a .deb. Out: data.tar, unpacked as it is read. Its other parts, which hold the scripts, are not read.
Format: deb(5); each part has a header of 60 bytes and begins at an even place.
"""

import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"!<arch>\n"
HEADER = 60  # bytes
HEADER_END = b"`\n"


@contextmanager
def deb_data(path: Path) -> Iterator[BinaryIO]:
    """data.tar of the package. OSError says what is wrong with it."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise OSError("it does not begin as a Debian package does")
        size = path.stat().st_size
        for name, start, length in _parts(file, size):
            if not name.startswith("data.tar"):
                continue
            if start + length > size:
                raise OSError("its end is missing")
            suffix = name.removeprefix("data.tar")
            if suffix not in OPENERS:
                raise OSError(
                    f"{name[:100]} is packed in a way that is not known, expected one of {', '.join(OPENERS)}"
                )
            with io.BufferedReader(_Part(file, start, length)) as part, OPENERS[suffix](part) as data:
                yield data
            return
        raise OSError("it holds no data.tar")


def _parts(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, place and length of each part."""
    start = len(MAGIC)
    while start < size:
        file.seek(start)
        header = file.read(HEADER)
        digits = re.fullmatch(rb"([0-9]{1,10}) *", header[48:58])
        if len(header) < HEADER or not header.endswith(HEADER_END) or digits is None:
            raise OSError("a part of it has a broken header")
        length = int(digits[1])
        yield header[:16].decode("ascii", "replace").rstrip().removesuffix("/"), start + HEADER, length
        start += HEADER + length + length % 2


class _Part(io.RawIOBase):
    """`length` bytes of `file` from `start`."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self.file, self.left = file, length
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.file.read(min(self.left, len(buffer)))
        self.left -= len(block)
        buffer[: len(block)] = block
        return len(block)


def _open_zstd(part: BinaryIO) -> Any:
    import pyarrow as pa  # the standard library has no zstd before Python 3.14

    return pa.CompressedInputStream(pa.PythonFile(part, mode="r"), "zstd")


OPENERS: dict[str, Callable[..., Any]] = {
    "": io.BufferedReader,
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
