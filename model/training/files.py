"""Files of models and runs: tensors in safetensors, tables in JSON, written whole or not at all.

In: tensors by name, JSON values, paths. Out: files, and their contents; ValueError when one cannot be read.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Raises OSError, with its number, where safetensors only tells of one in words."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), "utf-8")


def replace_json(path: Path, value: Any) -> None:
    """Write beside, flush, rename: the file is old or new, never half."""
    part = path.with_name(f".{path.name}.part")
    write_json(part, value)
    flush(part)
    os.replace(part, path)  # noqa: PTH105
    flush(path.parent)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also of brackets or digits without end
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def flush(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same_shapes(what: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensors that are missing, unknown or of another shape."""
    if missing := sorted(expected.keys() - got.keys()):
        raise ValueError(f"{what}: {len(missing)} of {len(expected)} tensors are missing, first {missing[:3]}")
    if unknown := sorted(got.keys() - expected.keys()):
        raise ValueError(f"{what}: no place for {len(unknown)} of {len(got)} tensors, first {unknown[:3]}")
    for name, tensor in expected.items():
        if got[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} has shape {tuple(got[name].shape)}, expected {tuple(tensor.shape)}")
