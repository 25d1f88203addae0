"""Files of models and runs: tensors in safetensors, tables in JSON, written whole or not at all.

In: tensors by name, JSON values, paths. Out: files, and their contents; ValueError when one cannot be read. A folder
of files is complete once COMPLETE, which lists the size and the sha256 of each, is in it; that file is written last.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of every model
COMPLETE = "complete.json"
# The names of dtypes in a safetensors file, in the order in which its tensors are stored: wide ones first, so that
# each is aligned. https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ORDER = list(DTYPES)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write the bytes that safetensors.torch.save_file writes, one tensor after another, and return their sha256.

    The library's own function gives no digest, so that the file would have to be read again for one, and hides the
    number of an OSError. Tensors on a device are copied to host memory one at a time.
    """
    header, places = _header_of(tensors, metadata)
    contents = (_bytes_of(tensors[name]) for name in places)
    digest = hashlib.sha256()
    with naming(path), path.open("wb") as file:
        for content in itertools.chain([header], contents):
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


def write_tensors_as_they_come(
    path: Path, expected: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """As `write_tensors`, for tensors that come in any order and are not in memory together. `expected` has the same
    names, shapes and dtypes, without memory on the meta device."""
    header, places = _header_of(expected, None)
    missing = set(expected)
    with naming(path), path.open("wb") as file:
        file.write(header)
        for name, tensor in tensors:
            missing.remove(name)
            file.seek(len(header) + places[name])
            file.write(_bytes_of(tensor))
    assert not missing, f"{sorted(missing)[:3]} did not come"


def _header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, and the place of each tensor behind it, in the order of the places."""
    names = sorted(tensors, key=lambda name: (ORDER.index(tensors[name].dtype), name))
    ends = list(itertools.accumulate((tensors[name].nbytes for name in names), initial=0))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    for name, offsets in zip(names, itertools.pairwise(ends), strict=True):
        tensor = tensors[name]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": list(offsets)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, dict(zip(names, ends, strict=False))


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def check_same_shapes(what: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """ValueError names the first tensors that are missing, unknown or of another shape."""
    if missing := sorted(expected.keys() - got.keys()):
        raise ValueError(f"{what}: {len(missing)} of {len(expected)} tensors are missing, first {missing[:3]}")
    if unknown := sorted(got.keys() - expected.keys()):
        raise ValueError(f"{what}: {len(unknown)} of {len(got)} tensors are unknown, first {unknown[:3]}")
    for name, tensor in expected.items():
        if got[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} has shape {tuple(got[name].shape)}, expected {tuple(tensor.shape)}")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within the block an OSError names `path`, as those of `open` do and those of `write` do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    with naming(path):
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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    with opened(path) as descriptor, naming(path):
        os.fsync(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault_in(folder: Path, names: Collection[str]) -> str | None:
    """The first of these files of a complete folder that is not as it was written, in words. None: all are."""
    try:
        about = read_json(folder / COMPLETE)
    except ValueError as error:
        return str(error)
    files = about.get("files") if isinstance(about, dict) else None
    if not isinstance(files, dict) or not files.keys() >= set(names):
        return f"{folder / COMPLETE} does not list the files of a checkpoint"
    for name in names:
        path, entry = folder / name, files[name]
        n_bytes = path.stat().st_size if path.is_file() else None
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"{folder / COMPLETE} does not describe {name}"
        if n_bytes is None:
            return f"{path} is missing"
        if n_bytes != entry["bytes"]:
            return f"{path} has {n_bytes} bytes, expected {entry['bytes']}"
        if sha256(path) != entry["sha256"]:
            return f"{path} holds other bytes than were written"
    return None
