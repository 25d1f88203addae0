"""The curve of a training: curve.jsonl, one JSON object per step and per validation, which is only appended to.

In: steps with their values. Out: the file, and a mark (length and checksum) for every checkpoint, to which a resume
truncates the file. If the file no longer fits the mark, every line that is still whole is kept: a damaged curve loses
points of a figure, and the training nothing.
"""

import contextlib
import io
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from model.training.files import naming

CURVE = "curve.jsonl"
BYTES, CRC = "curve_bytes", "curve_crc32"  # of a mark
log = logging.getLogger(__name__)


class Curve:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.crc = file, path, 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._append(json.dumps({"step": step, **values}).encode() + b"\n")

    def mark(self) -> dict[str, int]:
        """Flush, and describe the file as it is now, for `cut`."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return {BYTES: self.file.tell(), CRC: self.crc}

    def clear(self) -> None:
        self.file.truncate(0)
        self.file.seek(0)
        self.crc = 0

    def cut(self, mark: Mapping[str, int], step: int) -> None:
        """Remove what was appended after `mark`, which was made at `step`."""
        with self.path.open("rb") as file:
            content = file.read()
        before = content[: mark[BYTES]]
        if len(before) == mark[BYTES] and mark.get(CRC, zlib.crc32(before)) == zlib.crc32(before):
            self.file.truncate(mark[BYTES])
            self.file.seek(mark[BYTES])
            self.crc = zlib.crc32(before)
            return
        whole = {(number, "loss" in line): raw for raw, number, line in _whole_lines(content, step)}
        n_steps = sum(has_loss for _, has_loss in whole)
        kept = "%s is damaged: of %d steps %d are still there and kept; the training itself loses nothing"
        log.warning(kept, self.path, step, n_steps)
        self.clear()
        for raw in whole.values():
            self._append(raw + b"\n")

    def _append(self, raw: bytes) -> None:
        with naming(self.path):
            self.file.write(raw)
        self.crc = zlib.crc32(raw, self.crc)


def _whole_lines(content: bytes, step: int) -> Iterator[tuple[bytes, int, dict[str, Any]]]:
    """Lines of steps up to `step`, without its validation, which a resume writes again."""
    for raw in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(raw)
            number = line.get("step") if isinstance(line, dict) else None
            if isinstance(number, int) and number <= step and (number < step or "loss" in line):
                yield raw, number, line


@contextlib.contextmanager
def opened_curve(directory: Path, *, writes: bool) -> Iterator[Curve]:
    """The curve to append to; one in memory, which is thrown away, in a process that must not write."""
    if not writes:
        yield Curve(io.BytesIO(), directory / CURVE)
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CURVE
    file = path.open("ab")
    try:
        yield Curve(file, path)
    finally:
        with naming(path):  # closing it writes what is left
            file.close()


def read_curve(directory: Path) -> list[dict[str, float]]:
    with (directory / CURVE).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
