"""Finds files of finished outputs whose bytes are no longer those that were written, as a failing disk leaves them.

In: the folder of an output and its record, which has a checksum of every block of every file, also of files that are
not part of its identity. Out: nothing, or a CorruptShard that names the file and what to do.

Before an output is read, files that were touched since they were last verified (size, times, inode) are verified, and
once a day a random sample of the others, so that the cost stays bounded however large an output is. Weights are
verified whole every time. `gristmill doctor --verify` verifies everything.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from pipeline.store.digests import content_digest
from pipeline.store.errors import CorruptShard
from pipeline.store.record_file import rebuilding
from pipeline.store.shards import write_text

BLOCK_BYTES = 16 << 20
SAMPLE_BYTES = 1 << 30  # verified at most before an output is read: a second or less from a usual disk
SEEN = ".verified.json"  # in the folder of an output: how its files looked when they were last verified, and the day
Signature = list[int]


def checksums(path: Path) -> list[str]:
    """A hash of every block of a file."""
    with path.open("rb") as file:
        return [xxhash.xxh3_64_hexdigest(block) for block in iter(lambda: file.read(BLOCK_BYTES), b"")]


def check_output(directory: Path, record: Mapping[str, Any], *, is_read: bool = False, whole: bool = False) -> None:
    """Raises CorruptShard when a file was changed, as far as it is looked at.

    Looked at are the files that were touched since they were last verified; if the output `is_read`, a sample of the
    others too; if `whole`, all that identify the output.
    """
    seen, today = _seen(directory), time.strftime("%Y-%m-%d")
    files = {name: one["blocks"] for name, one in record["files"].items() if "blocks" in one}
    signatures = {name: _signature(directory / name) for name in files}
    touched = {name for name in files if seen["files"].get(name) != signatures[name]}
    needed = {name for name in files if whole and record["files"][name]["digest"]}
    is_due = is_read and seen["day"] != today
    if not touched and not needed and not is_due:
        return
    blocks = [
        (name, i) for name in sorted((files.keys() if is_due else touched) - needed) for i in range(len(files[name]))
    ]
    random.Random(f"{record['fingerprint']} {today}").shuffle(blocks)
    blocks.sort(key=lambda block: block[0] not in touched)
    all_of_needed = [(name, i) for name in needed for i in range(len(files[name]))]
    for name, numbers in _by_file([*all_of_needed, *blocks[: SAMPLE_BYTES // BLOCK_BYTES]]).items():
        if (number := _first_changed(directory / name, files[name], numbers)) is not None:
            raise damaged(directory, name, f"block {number + 1} of {len(files[name])}")
    _record_seen(directory, signatures, today)


def damaged_files(directory: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """All files that are not as they were written, each in words; every byte is read."""
    for name, entry in record["files"].items():
        path = directory / name
        try:
            if not path.exists() or path.stat().st_size != entry["bytes"]:
                yield f"{path} is missing or has another size"
            elif "blocks" in entry:
                if checksums(path) != entry["blocks"]:
                    yield f"{path} contains other bytes than were written"
            elif entry["digest"] and content_digest(path, record.get("volatile", ())) != entry["digest"]:
                yield f"{path} contains other data than was written"
        except (CorruptShard, OSError) as error:
            yield f"{path} cannot be read: {error}"


def damaged(directory: Path, name: str, what: str) -> CorruptShard:
    return CorruptShard(
        f"{directory / name} contains other bytes than were written ({what}), as a failing disk leaves it;"
        f" {rebuilding(directory)}"
    )


def record_written(directory: Path, names: list[str]) -> None:
    """Notes that the files of an output were just written and hashed."""
    _record_seen(directory, {name: _signature(directory / name) for name in names}, time.strftime("%Y-%m-%d"))


def _first_changed(path: Path, expected: list[str], numbers: list[int]) -> int | None:
    with path.open("rb") as file:
        for number in sorted(numbers):
            file.seek(number * BLOCK_BYTES)
            if xxhash.xxh3_64_hexdigest(file.read(BLOCK_BYTES)) != expected[number]:
                return number
    return None


def _by_file(blocks: list[tuple[str, int]]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for name, number in blocks:
        numbers.setdefault(name, []).append(number)
    return numbers


def _signature(path: Path) -> Signature:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _seen(directory: Path) -> dict[str, Any]:
    try:
        seen = json.loads((directory / SEEN).read_text("utf-8"))
        return {"files": dict(seen["files"]), "day": seen["day"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"files": {}, "day": ""}  # a cache: without it the files are verified again


def _record_seen(directory: Path, signatures: Mapping[str, Signature], day: str) -> None:
    try:
        write_text(directory / SEEN, json.dumps({"files": signatures, "day": day}))
    except OSError:
        return  # a folder that is only read: they are verified again next time
