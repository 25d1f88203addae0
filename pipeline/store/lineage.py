"""Follows an output back to its sources, stage by stage, through the records of the store.

In: handles. Out: the record of each folder that they were built from, directly or indirectly, or None if the folder
was removed since. A record names the stage and the fingerprint of every input, and these determine its folder in the
store, so nothing but records is read.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.checksums import check_output
from pipeline.store.records import Handle
from pipeline.store.store import output_folder, read_record

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of an output, which may have been removed."""

    stage: str
    fingerprint: str
    directory: Path

    def inputs(self, record: Mapping[str, Any] | None) -> list["Folder"]:
        """The inputs that its `record` names, in the same store; none if there is no record."""
        return inputs_of(self.directory.parents[1], record)


def inputs_of(store: Path, record: Mapping[str, Any] | None) -> list[Folder]:
    """The inputs that a record names, in `store`, for an output that was written somewhere else."""
    names = [(one["stage"], one["fingerprint"]) for one in (record or {}).get("inputs", ())]
    return [Folder(*name, output_folder(store, *name)) for name in names]


def folder_of(handle: Handle) -> Folder:
    return Folder(handle.stage, handle.fingerprint, handle.directory)


def lineage(handles: Iterable[Handle], until: Collection[Path] = ()) -> dict[Folder, Record | None]:
    """All folders that the handles were built from, each before its own inputs.

    Inputs in one of the directories `until` are left out, and so are the inputs of those. Raises CorruptShard when a
    file of one of them was changed.
    """
    found: dict[Folder, Record | None] = {}  # a folder comes before what it was built from

    def visit(folder: Folder) -> None:
        if folder in found:
            return
        if (record := read_record(folder.directory)) is not None:
            check_output(folder.directory, record)
        for one in folder.inputs(record):
            if one.directory not in until:
                visit(one)
        found[folder] = record

    for handle in handles:
        visit(folder_of(handle))
    return dict(reversed(found.items()))
