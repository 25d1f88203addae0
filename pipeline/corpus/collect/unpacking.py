"""Unpacks compressed files, which are recognised by their first bytes, and bounds what they unpack to.

In: an open, untrusted file. Out: the stream of what it contains. A few bytes can unpack to terabytes, so a file may
unpack to FREE_BYTES and, beyond that, to MAX_EXPANSION times its own size, which honest gzip cannot exceed.
"""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

MAX_EXPANSION = 1000  # from the bytes of a file to what it unpacks to, beyond FREE_BYTES; the maximum of gzip
FREE_BYTES = 100_000_000
ROW_BYTES = 100  # counted per row besides its text
MAGIC_BYTES = 10  # bytes that show how a file is compressed
XZ, ZST, GZIP, BZIP2 = b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"BZh"
BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # the first block, and the end of an empty file

OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda stream: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")),
}


class Rewound(io.RawIOBase):
    """A stream from its beginning, although its head was already read. Seeking would read an archive again."""

    def __init__(self, head: bytes, rest: Any):
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        block = block or self.rest.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class TooLarge(ValueError):
    """A file unpacks to more than it may."""


class Budget:
    """How many more bytes a file may unpack to; rows are counted with ROW_BYTES each."""

    def __init__(self, most: int):
        self.most, self.spent = most, 0

    def spend(self, n_bytes: int, what: str = "it") -> None:
        self.spent += n_bytes
        if self.spent > self.most:
            raise TooLarge(
                f"{what} unpacks to more than {self.most / 1e6:,.0f} MB, which is {MAX_EXPANSION} times its size"
                f" and {FREE_BYTES / 1e6:.0f} MB more"
            )


class Bounded(io.RawIOBase):
    """A stream that raises TooLarge after more than `most` bytes."""

    def __init__(self, stream: Any, most: int | Budget, what: str = "it"):
        self.stream, self.what = stream, what
        self.budget = most if isinstance(most, Budget) else Budget(most)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.stream.read(len(buffer))
        buffer[: len(block)] = block
        self.budget.spend(len(block), self.what)
        return len(block)


def most_unpacked(n_bytes: int) -> int:
    """The number of bytes that a file of `n_bytes` may unpack to."""
    return FREE_BYTES + MAX_EXPANSION * n_bytes


def compression_of(head: bytes) -> str | None:
    """The suffix of the compression that the first bytes show, None for a file that is not compressed."""
    if head.startswith(BZIP2) and head[4:10] in BZIP2_BLOCKS:
        return ".bz2"
    return next(
        (suffix for magic, suffix in ((GZIP, ".gz"), (XZ, ".xz"), (ZST, ".zst")) if head.startswith(magic)), None
    )


def unpacked(stream: BinaryIO) -> Any:
    """What `stream`, which can seek, contains when it is unpacked; itself, if it is not compressed."""
    head = stream.read(MAGIC_BYTES)
    stream.seek(0)
    suffix = compression_of(head)
    return OPENERS[suffix](stream) if suffix else stream
