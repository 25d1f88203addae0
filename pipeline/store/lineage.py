"""What an output was made from, stage by stage, back to the sources.

In: handles. Out: for each folder that they were made from, directly or not, its record, or None where the folder
was removed since. A record names the stage and the fingerprint of every input, and the outputs of one store lie side
by side, so the chain is followed without a look at anything else.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.records import Handle
from pipeline.store.store import read_record

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the output of one build lies, or lay."""

    stage: str
    fingerprint: str
    directory: Path


def lineage(handles: Iterable[Handle], until: Collection[Path] = ()) -> dict[Folder, Record | None]:
    """Every folder before those that it was made from.

    Inputs that lie in one of the directories `until` are left out, and with them what they were made from.
    """
    found: dict[Folder, Record | None] = {}  # what it was made from, before every folder

    def visit(folder: Folder) -> None:
        if folder in found:
            return
        record = read_record(folder.directory)
        root = folder.directory.parents[1]
        for one in record["inputs"] if record else ():
            directory = root / one["stage"] / one["fingerprint"]
            if directory not in until:
                visit(Folder(one["stage"], one["fingerprint"], directory))
        found[folder] = record

    for handle in handles:
        visit(Folder(handle.stage, handle.fingerprint, handle.directory))
    return dict(reversed(found.items()))
