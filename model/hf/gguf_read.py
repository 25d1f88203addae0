"""Reads a GGUF file of anybody: its metadata, and its tensors dequantised one at a time.

In: a .gguf file (versions 2 and 3 of the format of ggml). Out: a GgufFile with the metadata as plain values, the
shape and the number format of every tensor, and `read`, which gives one tensor in float32.

A file from elsewhere may claim anything, so every length is compared with what the file still has before it is used,
and every mistake is one ValueError. Nothing is memory-mapped: memory holds the metadata and the tensor that is read.
Tensors are dequantised by the package `gguf`, block of rows by block of rows.
"""

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_HEADER_BYTES = 64_000_000  # the metadata of a vocabulary of 262,144 tokens has about 10 MB
MAX_DIMENSIONS = 4  # of ggml
MAX_NAME_BYTES = 65_535  # of a key; a tensor's name is shorter
MAX_ALIGNMENT = 2**20
BLOCK_ELEMENTS = 2**20  # dequantised at once; the temporaries of `gguf` take a few times as much
# Kind of a value -> its code in `struct`; 8 is a text, 9 an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    shape: tuple[int, ...]  # as torch has it: rows first
    stored: str  # number format, such as Q4_1
    start: int  # byte of the file
    n_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufFile:
    path: Path
    fields: Mapping[str, Any]  # numbers, texts, and lists of them
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32, in its shape."""
        shape = self.tensors[name].shape
        n_rows, step = math.prod(shape[:-1]), max(1, BLOCK_ELEMENTS // shape[-1])
        values = np.empty((n_rows, shape[-1]), np.float32)
        for row in range(0, n_rows, step):
            values[row : row + step] = self.rows(name, row, min(step, n_rows - row))
        return values.reshape(shape)

    def rows(self, name: str, first: int, n_rows: int) -> np.ndarray:
        """`n_rows` rows of the tensor in float32, from row `first` on."""
        import gguf

        tensor = self.tensors[name]
        row_bytes = tensor.n_bytes // math.prod(tensor.shape[:-1])
        with self.path.open("rb") as file:
            file.seek(tensor.start + first * row_bytes)
            content = file.read(n_rows * row_bytes)
        if len(content) < n_rows * row_bytes:
            raise ValueError(f"{self.path}: it became shorter while {name} was read; fetch it again")
        block = np.frombuffer(content, np.uint8).reshape(n_rows, row_bytes)
        with np.errstate(all="ignore"):  # of scales that are infinite or nan; the caller looks for such weights
            return gguf.quants.dequantize(block, gguf.GGMLQuantizationType[tensor.stored])


def read_gguf(path: Path) -> GgufFile:
    """Metadata and tensors' places. ValueError when the file is truncated, contradicts itself or is no GGUF file."""
    with path.open("rb") as file:
        header = _Header(path, file)
        n_tensors, n_fields = header.begin()
        fields = header.fields(n_fields)
        infos = [header.tensor_info() for _ in range(header.count(n_tensors, 24, "tensors"))]
        tensors = _placed(header, infos, fields.get("general.alignment", 32))
    return GgufFile(path=path, fields=fields, tensors=tensors)


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF files do, whatever its name is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class _Header:
    """Reads one value after another, and none that the file is too short for."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.n_bytes = path.stat().st_size
        self.place = 0

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: not a sound GGUF file: {what} (at byte {self.place:,}); fetch it again")

    def take(self, n_bytes: int) -> bytes:
        end = self.place + n_bytes
        if end > self.n_bytes:
            self.fail(f"it has {self.n_bytes:,} bytes and ends within a value of {n_bytes:,}")
        if end > MAX_HEADER_BYTES:
            self.fail(f"its metadata exceed {MAX_HEADER_BYTES:,} bytes")
        content = self.file.read(n_bytes)
        if len(content) < n_bytes:
            self.fail("it became shorter while it was read")
        self.place = end
        return content

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, n_items: int, item_bytes: int, what: str) -> int:
        """`n_items`, if that many can follow when each takes at least `item_bytes`."""
        if n_items * item_bytes > min(self.n_bytes, MAX_HEADER_BYTES) - self.place:
            self.fail(f"it claims {n_items:,} {what}, which cannot fit into the rest of its metadata")
        return n_items

    def text(self, max_bytes: int = MAX_HEADER_BYTES) -> str:
        n_bytes = self.number("Q")
        if n_bytes > max_bytes:
            self.fail(f"it has a name or text of {n_bytes:,} bytes, at most {max_bytes:,} are allowed")
        try:
            return self.take(n_bytes).decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a name or text in it is not UTF-8")

    def begin(self) -> tuple[int, int]:
        """Numbers of tensors and of fields."""
        if self.take(len(MAGIC)) != MAGIC:
            self.fail("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            hint = ", it may be written for big-endian machines" if version >> 16 else ""
            self.fail(f"it has version {version}, only {' and '.join(map(str, VERSIONS))} can be read{hint}")
        return self.number("Q"), self.number("Q")

    def fields(self, n_fields: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self.count(n_fields, 12, "fields")):
            name = self.text(MAX_NAME_BYTES)
            if name in found:
                self.fail(f"it has the field {name!r} twice")
            found[name] = self.value(name)
        return found

    def value(self, name: str) -> Any:
        kind = self.number("I")
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array(name)
        if kind not in NUMBERS:
            self.fail(f"its field {name!r} has a value of the unknown kind {kind}")
        return self.number(NUMBERS[kind])

    def array(self, name: str) -> list[Any]:
        kind, n_items = self.number("I"), self.number("Q")
        if kind == TEXT:
            return [self.text() for _ in range(self.count(n_items, 8, f"texts in {name!r}"))]
        if kind not in NUMBERS:
            self.fail(f"its field {name!r} is an array of kind {kind}, only numbers and texts can be read")
        dtype = np.dtype("<" + NUMBERS[kind])
        n_bytes = self.count(n_items, dtype.itemsize, f"numbers in {name!r}") * dtype.itemsize
        return np.frombuffer(self.take(n_bytes), dtype).tolist()

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, dimensions (the fastest first), kind, offset."""
        name, n_dimensions = self.text(MAX_NAME_BYTES), self.number("I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            self.fail(f"the tensor {name!r} has {n_dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        dimensions = tuple(self.number("Q") for _ in range(n_dimensions))
        return name, dimensions, self.number("I"), self.number("Q")


def _placed(
    header: _Header, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: Any
) -> dict[str, GgufTensor]:
    """The tensors with their places in the file, none of which overlap or go beyond its end."""
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        header.fail(f"general.alignment={str(alignment)[:40]} is no power of two up to {MAX_ALIGNMENT:,}")
    begin = -(-header.place // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, dimensions, kind, offset in infos:
        if name in tensors:
            header.fail(f"it has the tensor {name!r} twice")
        stored, n_bytes = _storage(header, name, dimensions, kind)
        if offset % alignment or begin + offset + n_bytes > header.n_bytes:
            header.fail(
                f"the tensor {name!r} needs {n_bytes:,} bytes from byte {begin + offset:,}, a multiple of"
                f" {alignment}; the file has {header.n_bytes:,}"
            )
        tensors[name] = GgufTensor(shape=dimensions[::-1], stored=stored, start=begin + offset, n_bytes=n_bytes)
    end, before = begin, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            header.fail(f"the tensors {before!r} and {name!r} overlap")
        end, before = tensor.start + tensor.n_bytes, name
    return tensors


def _storage(header: _Header, name: str, dimensions: tuple[int, ...], kind: int) -> tuple[str, int]:
    """Number format of a tensor and its size in bytes. ValueError when the format is unknown to us."""
    import gguf

    formats = {int(one): one for one in gguf.GGMLQuantizationType}
    if kind not in formats or not _can_dequantise(formats[kind]):
        known = ", ".join(one.name for one in formats.values() if _can_dequantise(one))
        what = formats[kind].name if kind in formats else f"number {kind}"
        raise ValueError(f"{header.path}: the tensor {name!r} is stored as {what}; only {known} can be dequantised")
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[formats[kind]]
    n_elements = math.prod(dimensions)
    if not n_elements or dimensions[0] % block_elements:
        header.fail(f"the tensor {name!r} has rows of {dimensions[0]:,}, expected a multiple of {block_elements}")
    return formats[kind].name, n_elements // block_elements * block_bytes


@functools.cache
def _can_dequantise(kind: Any) -> bool:
    import gguf

    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
