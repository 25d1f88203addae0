"""Reads record.json, which describes a finished output and is written last: a folder with one is complete.

In: the folder of an output. Out: its record, or a CorruptShard that names the file that is damaged and what to do.
"""

from pathlib import Path
from types import NoneType
from typing import Any

from pipeline.store.errors import CorruptShard
from pipeline.store.json_files import NUMBER, misfit, read_object
from pipeline.store.records import HANDLES

RECORD = "record.json"
CHECKPOINTS, CURVE = "checkpoints", "curve.jsonl"  # of a training, which goes on from them
KEYS = {
    "stage": str,
    "version": int,
    "handle": str,
    "fingerprint": str,
    "digest": str,
    "config": object,
    "libraries": dict,
    "inputs": list,
    "rows": int,
    "counts": (dict, NoneType),
    "measures": dict,
    "files": dict,
    "bytes": int,
    "seconds": NUMBER,
    "finished_at": str,
}
INPUT_KEYS = {"stage": str, "fingerprint": str, "digest": str}
COUNTS_KEYS = {"rows_in": int, "kept": int, "dropped": dict}
FILE_KEYS = {"bytes": int, "digest": (str, NoneType)}


def read_record(directory: Path, fingerprint: str | None = None) -> dict[str, Any] | None:
    """The record of a finished folder, or None if there is none.

    Raises ValueError when the folder contains an output with another fingerprint, CorruptShard when the record is
    damaged, or one of its files is missing or differs in size from the record.
    """
    if not (directory / RECORD).exists():
        return None
    record = load_record(directory)
    if fingerprint is not None and record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{directory} contains a finished `{record['stage']}` built from other inputs or settings;"
            " choose another folder or delete this one"
        )
    for name, entry in record["files"].items():
        file, expected = directory / name, entry["bytes"]
        size = file.stat().st_size if file.exists() else None
        if size != expected:
            raise CorruptShard(
                f"{file}: {'missing' if size is None else f'{size} bytes'}, expected {expected} bytes;"
                f" {rebuilding(directory)}"
            )
    return record


def load_record(directory: Path) -> dict[str, Any]:
    """The record of a finished folder, whose files are not looked at. Raises CorruptShard when it is damaged."""
    path, cure = directory / RECORD, rebuilding(directory)
    record = read_object(path, KEYS, cure)
    parts = [
        *(("inputs", one, INPUT_KEYS) for one in record["inputs"]),
        *(("counts", one, COUNTS_KEYS) for one in [record["counts"]] if one is not None),
        *((name, one, FILE_KEYS) for name, one in record["files"].items()),
    ]
    faults = [f"`{part}`: {fault}" for part, value, keys in parts if (fault := misfit(value, keys))]
    if record["handle"] not in HANDLES:
        faults.append(f"its `handle` is {record['handle']!r}, expected one of {', '.join(HANDLES)}")
    if faults:
        raise CorruptShard(f"{path} is damaged ({faults[0]}); {cure}")
    return record


def rebuilding(directory: Path) -> str:
    """What helps when a file of a finished output is damaged. Of a training, its checkpoints are worth keeping."""
    if (directory / CHECKPOINTS).is_dir():
        return "run `gristmill doctor --remove-damaged` and rerun to make the model again from its last checkpoint"
    return f"delete {directory} and rerun to rebuild it, or run `gristmill doctor --remove-damaged`"
