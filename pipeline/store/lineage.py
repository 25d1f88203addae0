"""What an output was made from, stage by stage, back to the sources.

In: handles. Out: for each folder that they were made from, directly or not, its record, or None where the folder
was removed since. A record names the stage and the fingerprint of every input, and the outputs of one store lie side
by side, so the chain is followed without a look at anything else.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.records import Handle
from pipeline.store.store import output_folder, read_record

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the output of one build lies, or lay."""

    stage: str
    fingerprint: str
    directory: Path

    def inputs(self, record: Mapping[str, Any] | None) -> list["Folder"]:
        """What it was made from, in the same store, as its `record` names it; nothing where the record is gone."""
        return inputs_of(self.directory.parents[1], record)


def inputs_of(store: Path, record: Mapping[str, Any] | None) -> list[Folder]:
    """What a record names as inputs, in `store`, for an output that was written somewhere else."""
    names = [(one["stage"], one["fingerprint"]) for one in (record or {}).get("inputs", ())]
    return [Folder(*name, output_folder(store, *name)) for name in names]


def folder_of(handle: Handle) -> Folder:
    return Folder(handle.stage, handle.fingerprint, handle.directory)


def lineage(handles: Iterable[Handle], until: Collection[Path] = ()) -> dict[Folder, Record | None]:
    """Every folder before those that it was made from.

    Inputs that lie in one of the directories `until` are left out, and with them what they were made from.
    """
    found: dict[Folder, Record | None] = {}  # what it was made from, before every folder

    def visit(folder: Folder) -> None:
        if folder in found:
            return
        record = read_record(folder.directory)
        for one in folder.inputs(record):
            if one.directory not in until:
                visit(one)
        found[folder] = record

    for handle in handles:
        visit(folder_of(handle))
    return dict(reversed(found.items()))
