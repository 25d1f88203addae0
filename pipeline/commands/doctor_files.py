"""The checks of `gristmill doctor` of files: the disk, current outputs with all that they were built from, databases.

In: what the doctor was asked to do. Out: findings. What can be made again is mended: files of data/current from the
records of the outputs, Dagster's databases and the journals of MLflow by setting the damaged file aside. Damaged
outputs are removed only where that was asked for, because a model may have taken days.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.findings import BAD, MENDED, OK, WARNING, Finding, Visit
from pipeline.store.chain import OF_SOURCE, asset_folders, fixed_assets, output_of
from pipeline.store.checksums import check_output, damaged_files
from pipeline.store.disk import size_text
from pipeline.store.errors import CorruptShard
from pipeline.store.faults import BESIDE, FULL, databases, fault_in, full_disk
from pipeline.store.layout import Layout, read_entry, save_current, set_aside, write_fault
from pipeline.store.record_file import CHECKPOINTS, CURVE, RECORD, load_record, read_record, rebuilding
from pipeline.store.store import handle_of, output_folder
from pipeline.tasks.declared import declared_assets
from pipeline.tracking.journal import damaged_journals

if TYPE_CHECKING:
    from pipeline.commands.planning import PlannedAsset

LITTLE_BYTES = 5e9  # the demo needs about 1 GB, a crash on a full disk costs an afternoon
TOO_LITTLE_BYTES = 1e9


def check_disk(visit: Visit) -> Iterator[Finding]:
    """Free space, and whether files can be written to the data folder and to the folder of temporary files."""
    data = visit.layout.data
    for check, folder in (("data folder", data), ("temporary files", Path(tempfile.gettempdir()))):
        fault = write_fault(Layout(folder))
        if fault and any(sign in fault for sign in FULL):
            fault += f"; {full_disk(folder)}"
        elif fault and check == "data folder":
            fault += "; let GRISTMILL_DATA name another folder, or create one with `gristmill init FOLDER`"
        yield Finding(check, BAD if fault else OK, f"{folder} {fault or 'can be written to'}")
    there = next(path for path in (data, *data.parents) if path.exists())
    free = shutil.disk_usage(there).free
    state = OK if free >= LITTLE_BYTES else WARNING if free >= TOO_LITTLE_BYTES else BAD
    advice = "" if state == OK else "; `gristmill du` shows what uses the space, `gristmill gc` frees some"
    yield Finding("disk", state, f"{size_text(free)} free below {data}{advice}")


def check_handles(visit: Visit) -> Iterator[Finding]:
    """Whether the files that name the current output of each asset are whole."""
    found = []
    for path in sorted(visit.layout.current.glob("*.json")):
        try:
            read_entry(path)
        except CorruptShard as error:
            found.append((path, str(error)))
    if not visit.mend:
        yield from (Finding(f"current {_asset_of(path)}", BAD, fault) for path, fault in found)
        return
    asides = {path: set_aside(path) for path, _ in found}
    planned = _plans(visit.layout) if found else {}
    for path, fault in found:
        fault, asset = fault.partition("; run")[0], _asset_of(path)
        if (folder := _output_to_name(visit.layout, asset, planned.get(asset))) is not None:
            record = load_record(folder)
            save_current(visit.layout, asset, handle_of(folder, record))
            done = f"made again, and names {folder}"
        else:
            done = f"`gristmill run +{asset}` makes it again, and finds the output if it is still there"
        yield Finding(f"current {asset}", MENDED, f"{fault}; kept as {asides[path].name}; {done}")


def check_outputs(visit: Visit) -> Iterator[Finding]:
    """Whether the current outputs, and those that they were built from, are whole."""
    n_whole = n_bytes = 0
    names, retired = _current_folders(visit.layout)
    if retired:
        detail = f"{', '.join(retired)}: in none of the files any more; `gristmill gc` removes what only they need"
        yield Finding("retired assets", OK, detail)
    for folder, name in names.items():
        complaint, size = _complaint(folder, visit.verify)
        n_bytes += size
        if complaint is None:
            n_whole += 1
        elif visit.remove_damaged and visit.mend and (folder / RECORD).exists():
            yield Finding(f"output {name}", MENDED, f"{complaint.partition('; ')[0]}; {_removed(folder)}")
        else:
            yield Finding(f"output {name}", BAD, complaint)
    if n_whole == len(names):
        how = f"{size_text(n_bytes)} verified by checksum" if visit.verify else "all complete"
        yield Finding("outputs", OK, f"{n_whole} current, {how}" if names else "none yet")


def check_databases(visit: Visit) -> Iterator[Finding]:
    """Whether the databases of Dagster and MLflow can be read."""
    n_whole = 0
    for path in databases(visit.layout):
        check = f"database {path.name}"
        if (fault := fault_in(path)) is None:
            n_whole += 1
        elif not path.is_relative_to(visit.layout.dagster_home):
            yield Finding(check, BAD, f"{path}: {fault}; {_without_mlflow(path)}")
        elif not visit.mend:
            yield Finding(check, BAD, f"{path}: {fault}; run `gristmill doctor` to set it aside and have a new one")
        else:
            aside = _set_database_aside(path)
            lost = "the history of runs in the UI begins anew; outputs and models are not in it"
            yield Finding(check, MENDED, f"{path}: {fault}; kept as {aside.name}; {lost}")
    if n_whole:
        yield Finding("databases", OK, f"{n_whole} can be read")


def check_journals(visit: Visit) -> Iterator[Finding]:
    """Whether the states of the journals for MLflow are whole."""
    for journal in damaged_journals(visit.layout):
        check, fault = f"journal {journal.fingerprint[:8]}", str(journal.fault())
        if visit.mend:
            aside = journal.set_state_aside()
            done = f"kept as {aside.name}; what MLflow has of the run stays there"
            yield Finding(check, MENDED, f"{fault.partition('; run')[0]}; {done}")
        else:
            yield Finding(check, BAD, fault)


def _asset_of(path: Path) -> str:
    name = path.name.removesuffix(".json")
    folder, mark, rest = name.partition("__")
    return f"{folder}/{rest}" if mark and folder in asset_folders() else name


def _plans(layout: Layout) -> dict[str, "PlannedAsset"]:
    """Asset -> its plan; empty where nothing can be planned, which other checks report."""
    from pipeline.commands.planning import plan

    try:
        return {one.asset: one for one in plan(layout)}
    except (ValueError, CorruptShard):
        return {}


def _output_to_name(layout: Layout, asset: str, planned: "PlannedAsset | None") -> Path | None:
    """The output that the settings of today lead to, else the newest of its stage, if only this asset has that."""
    if planned and planned.builds and not planned.rebuilt and not planned.fault and (last := planned.builds[-1].last):
        return output_folder(layout.store, last["stage"], last["fingerprint"])
    source = asset.removeprefix("pages/") if asset.startswith("pages/") else ""
    if not (source or asset in fixed_assets()):
        return None
    found = []
    for path in (layout.store / output_of(OF_SOURCE if source else asset)).glob(f"*/{RECORD}"):
        try:
            record = load_record(path.parent)
        except CorruptShard:  # cannot be named
            continue
        if not source or record["config"]["source"]["name"] == source:
            found.append((record["finished_at"], path.parent))
    return max(found)[1] if found else None


def _current_folders(layout: Layout) -> tuple[dict[Path, str], list[str]]:
    """Folder -> name of every current output, and of everything that it was built from; and assets that are no longer
    declared, whose outputs are not looked at."""
    names: dict[Path, str] = {}
    declared, retired = None, []
    with suppress(ValueError):  # of an invalid file, which `check_settings` reports
        declared = declared_assets(layout)
    for path in sorted(layout.current.glob("*.json")):
        try:
            entry = read_entry(path)
        except CorruptShard:  # `check_handles` reports it
            continue
        if declared is not None and entry["asset"] not in declared:
            retired.append(entry["asset"])
            continue
        names[layout.store / entry["folder"]] = entry["asset"]
    waiting = list(names)
    while waiting:
        try:
            record = load_record(waiting.pop())
        except (CorruptShard, OSError):  # `_complaint` reports it
            continue
        for one in record["inputs"]:
            folder = output_folder(layout.store, one["stage"], one["fingerprint"])
            if folder not in names and folder.exists():
                names[folder] = f"{one['stage']} {one['fingerprint'][:8]}"
                waiting.append(folder)
    return names, retired


def _complaint(folder: Path, verify: bool) -> tuple[str | None, int]:
    """The problem of the finished output in `folder`, or None; and its bytes."""
    try:
        record = read_record(folder)
        if record is None:
            return f"{folder} is missing or not finished; materialise the asset again", 0
        if verify:
            found = list(damaged_files(folder, record))
            more = f" (and {len(found) - 1} more files)" if found[1:] else ""
            return (f"{found[0]}{more}; {rebuilding(folder)}" if found else None), record["bytes"]
        check_output(folder, record)
    except (CorruptShard, ValueError, OSError) as error:
        return str(error), 0
    return None, record["bytes"]


def _removed(folder: Path) -> str:
    """Remove a damaged output, of a training all but what it can go on from. Returns what was done."""
    (folder / RECORD).unlink()  # first: a partly removed folder is not finished
    if not any(folder.glob(f"{CHECKPOINTS}/step-*/complete.json")):
        shutil.rmtree(folder)
        return f"{folder} was removed; `gristmill run` builds it again"
    for path in folder.iterdir():
        if path.name not in (CHECKPOINTS, CURVE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"removed; `gristmill run` makes it again from the last checkpoint in {folder}"


def _set_database_aside(path: Path) -> Path:
    for ending in BESIDE:
        if (beside := path.with_name(path.name + ending)).exists():
            set_aside(beside)
    return set_aside(path)


def _without_mlflow(path: Path) -> str:
    return (
        f"put a copy of it back, or move it away ({path}): MLflow then begins anew, without the curves and registered"
        " models that were in it; outputs and models in the store are not touched"
    )
