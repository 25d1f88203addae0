"""What an output was made from, stage by stage, back to the sources.

In: handles. Out: for each folder that they were made from, directly or not, its record, or None where the folder
was removed since. A record names the stage and the fingerprint of every input, and the outputs of one store lie side
by side, so the chain is followed without a look at anything else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stages.records import Handle
from pipeline.stages.store import read_record

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the output of one build lies, or lay."""

    stage: str
    fingerprint: str
    directory: Path


def lineage(handles: Iterable[Handle]) -> dict[Folder, Record | None]:
    """Folders in the order in which the records name them, beginning with those of `handles`."""
    found: dict[Folder, Record | None] = {}
    waiting = [Folder(handle.stage, handle.fingerprint, handle.directory) for handle in handles]
    while waiting:
        folder = waiting.pop(0)
        if folder in found:
            continue
        found[folder] = record = read_record(folder.directory)
        root = folder.directory.parents[1]
        for one in record["inputs"] if record else ():
            waiting.append(Folder(one["stage"], one["fingerprint"], root / one["stage"] / one["fingerprint"]))
    return found
