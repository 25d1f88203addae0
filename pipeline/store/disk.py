"""Disk usage below the data folder, and which outputs are no longer needed, for `gristmill du` and `gristmill gc`.

In: a layout. Out: the size of each place, and the garbage: outputs from which neither a kept result nor a registered
model was built, cached shard results (parts) that no kept output shares, and indexes of `gristmill trace` for removed
outputs.

The newest outputs of every asset and those with a registered model are kept, with everything that they were built
from according to their records; so is what a running build uses (store/leases.py) or a run may still read
(store/run_handles.py). Unfinished outputs and the parts of their stages are kept too, because a killed training
resumes from them. Bytes that several places share through hard links are counted once.
"""

import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.store.layout import INDEXES, Layout, all_entries, remove_entry
from pipeline.store.leases import in_use, settled
from pipeline.store.record_file import RECORD, load_record
from pipeline.store.run_handles import held_by_runs
from pipeline.store.shards import text_digest
from pipeline.store.store import output_folder

PARTS = "parts"
FILE_DIGESTS = "file_digests"  # folder of the cache, see corpus/collect/files.py
REMOVED = ".removed"  # folder of the store, for what is being deleted
LEFTOVER_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskUse:
    """A row of `gristmill du`."""

    name: str
    n_files: int
    n_bytes: int
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Folders that can be removed, and the bytes that this frees."""

    outputs: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    parts: tuple[Path, ...]
    n_bytes: int
    indexes: tuple[Path, ...] = ()  # of `gristmill trace`, for outputs that are removed now or were removed before
    retired: tuple[str, ...] = ()  # assets that no file declares any more; their outputs are kept for nobody
    files: tuple[Path, ...] = ()  # locks of outputs that are gone, what killed processes left, digests of old sources

    @property
    def folders(self) -> tuple[Path, ...]:
        return (*self.outputs, *self.unfinished, *self.parts, *self.indexes)


def disk_usage(layout: Layout) -> list[DiskUse]:
    """One row per place, first the outputs of each stage. Bytes that an earlier row counts are not counted again."""
    seen: set[tuple[int, int]] = set()
    needed = _with_inputs(layout, [layout.store / entry["folder"] for entry in all_entries(layout)])
    places = []
    for stage in _stages(layout):
        outputs = _outputs(stage)
        n_needed = sum(output in needed for output in outputs)
        note = f"{len(outputs)} {'output' if len(outputs) == 1 else 'outputs'}, {n_needed} needed by current results"
        if n_unfinished := len(_unfinished(stage)):
            note += f", {n_unfinished} unfinished"
        places.append(_place(f"store/{stage.name}", [*outputs, *_unfinished(stage)], seen, note))
    for stage in _stages(layout):
        if parts := _parts(stage):
            places.append(
                _place(f"store/{stage.name}/parts", parts, seen, "cached shard results that no output shares")
            )
    for folder, note in (
        (layout.store / INDEXES, "indexes of `gristmill trace`; rebuilt when missing"),
        (layout.cache, "downloads; fetched again when missing"),
        (layout.mlflow, "runs, artifacts, registered models"),
        (layout.tracking, "which MLflow run belongs to which output, and events that wait for MLflow"),
        (layout.dagster_home, "runs and their logs"),
    ):
        if folder.exists():
            places.append(_place(str(folder.relative_to(layout.data)), [folder], seen, note))
    return places


def find_garbage(
    layout: Layout,
    *,
    keep: int,
    registered: Collection[str],
    unfinished: bool = False,
    declared: Collection[str] | None = None,
    sources: Collection[str] | None = None,
    downloads: Collection[str] | None = None,
) -> Garbage:
    """What neither the `keep` newest outputs of each asset nor the `registered` fingerprints need.

    With `unfinished`, outputs that were never finished are garbage too. `declared` are the assets of the graph: the
    outputs of others are kept for nobody; None = all assets count. `sources` are the paths of the `files` sources,
    `downloads` the sha256 of what the files of the data folder name; other downloads are garbage. None = none are.
    """
    if keep < 1:
        raise ValueError(f"--keep is {keep}; it must be at least 1 output per asset")
    stages = _stages(layout)
    outputs = {output.name: output for stage in stages for output in _outputs(stage)}
    entries = all_entries(layout)
    retired = [entry["asset"] for entry in entries if declared is not None and entry["asset"] not in declared]
    with settled(layout.store):
        used = _used(layout)
    waiting = [outputs[fingerprint] for fingerprint in registered if fingerprint in outputs]
    for entry in (entry for entry in entries if entry["asset"] not in retired):
        held = [layout.store / folder for folder in (entry["folder"], *entry["earlier"])]
        waiting += [output for output in held if output in outputs.values()][:keep]
    needed = _with_inputs(layout, [*waiting, *used])
    old = [output for output in outputs.values() if output not in needed]
    abandoned = (
        [folder for stage in stages for folder in _unfinished(stage) if folder not in used] if unfinished else []
    )
    building = {folder.parent for folder in used}
    parts = _unshared_parts([s for s in stages if s not in building and (unfinished or not _unfinished(s))], needed)
    kept = {output.name for output in needed}
    indexes = [
        index for index in sorted((layout.store / INDEXES).glob("*")) if index.is_dir() and index.name not in kept
    ]
    files = [*_leftovers(layout), *_old_digests(layout, sources), *_old_downloads(layout, downloads)]
    return Garbage(
        outputs=tuple(old),
        unfinished=tuple(abandoned),
        parts=tuple(parts),
        indexes=tuple(indexes),
        retired=tuple(retired),
        files=tuple(files),
        n_bytes=bytes_freed([*old, *abandoned, *parts, *indexes]) + sum(path.stat().st_size for path in files),
    )


def remove_garbage(layout: Layout, garbage: Garbage, *, even_for_retries: bool = False) -> list[Path]:
    """Delete it, except folders that a build began to use since they were found: these are returned.

    A folder leaves its place at once and is deleted then, so that a build finds it whole or not at all.
    `even_for_retries` deletes what only a run between two of its steps, or the retry of a failed one, may read.
    """
    kept, bin_ = [], layout.store / REMOVED
    for folder in garbage.folders:
        with settled(layout.store):
            used = in_use(layout.store) if even_for_retries else _used(layout)
            is_part = folder.parent.name == PARTS
            if folder in _with_inputs(layout, used) or (is_part and folder.parent.parent in {o.parent for o in used}):
                kept.append(folder)
                continue
            bin_.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another gc was faster
                folder.rename(bin_ / uuid.uuid4().hex)
                folder.with_name(f".{folder.name}.lock").unlink(missing_ok=True)
        shutil.rmtree(bin_, ignore_errors=True)
    for asset in garbage.retired:
        remove_entry(layout, asset)
    for path in garbage.files:
        path.unlink(missing_ok=True)
        if path.parent.parent == layout.cache:
            with suppress(OSError):  # another file is in it
                path.parent.rmdir()
    shutil.rmtree(bin_, ignore_errors=True)  # of a gc that was killed
    return kept


def size_text(n_bytes: float) -> str:
    """For instance "3.2 MB"; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def _used(layout: Layout) -> set[Path]:
    """Outputs that running builds use, and those that their runs, or retries of failed ones, may still read.

    The caller holds `settled`.
    """
    return {*in_use(layout.store), *held_by_runs(layout)}


def _with_inputs(layout: Layout, outputs: Iterable[Path]) -> set[Path]:
    """The outputs, and everything that they were built from according to their records."""
    waiting, needed = list(outputs), set[Path]()
    while waiting:
        output = waiting.pop()
        if output in needed:
            continue
        needed.add(output)
        if (output / RECORD).exists():
            inputs = load_record(output)["inputs"]
            waiting += [output_folder(layout.store, one["stage"], one["fingerprint"]) for one in inputs]
    return needed


def _unshared_parts(stages: Iterable[Path], needed: Collection[Path]) -> list[Path]:
    """Cached shard results of these stages that no needed output has."""
    shared = {_inode(file) for output in needed for file in _files([output])}
    parts = [part for stage in stages for part in _parts(stage)]
    return [part for part in parts if not any(_inode(file) in shared for file in _files([part]))]


def _leftovers(layout: Layout) -> list[Path]:
    """Locks of outputs that are gone, and parts of files that a killed process was writing."""
    locks = [path for path in layout.store.glob("*/.*.lock") if not path.with_name(path.name[1:-5]).exists()]
    parts = [path for folder in (layout.cache, layout.current) for path in folder.rglob(".*.part") if _is_old(path)]
    return sorted([*(lock for lock in locks if _is_old(lock)), *parts])


def _old_digests(layout: Layout, sources: Collection[str] | None) -> list[Path]:
    """Digests of the files of sources that are not declared any more."""
    if sources is None:
        return []
    known = {text_digest(source) for source in sources}
    return [path for path in sorted((layout.cache / FILE_DIGESTS).glob("*.json")) if path.stem not in known]


def _old_downloads(layout: Layout, wanted: Collection[str] | None) -> list[Path]:
    """Finished downloads that nothing names any more; unfinished ones are among the leftovers."""
    folders = [] if wanted is None else [one for one in sorted(layout.cache.glob("?" * 64)) if one.name not in wanted]
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return [path for path in files if path.is_file() and not path.name.endswith(".part")]


def _is_old(path: Path) -> bool:
    """Whether no process that runs now can be expected to need a file."""
    try:
        return path.stat().st_mtime < time.time() - LEFTOVER_SECONDS
    except FileNotFoundError:
        return False


def _stages(layout: Layout) -> list[Path]:
    folders = [folder for folder in layout.store.glob("*") if folder.is_dir() and folder.name != INDEXES]
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def _folders(stage: Path) -> list[Path]:
    return sorted(path for path in stage.iterdir() if path.is_dir() and path.name != PARTS)


def _outputs(stage: Path) -> list[Path]:
    return [folder for folder in _folders(stage) if (folder / RECORD).exists()]


def _unfinished(stage: Path) -> list[Path]:
    return [folder for folder in _folders(stage) if not (folder / RECORD).exists()]


def _parts(stage: Path) -> list[Path]:
    return sorted(path for path in (stage / PARTS).glob("*") if path.is_dir())


def _files(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _place(name: str, folders: Iterable[Path], seen: set[tuple[int, int]], note: str) -> DiskUse:
    files = [file for file in _files(folders) if _inode(file) not in seen]
    sizes = {_inode(file): file.stat().st_size for file in files}
    seen.update(sizes)
    return DiskUse(name=name, n_files=len(files), n_bytes=sum(sizes.values()), note=note)


def bytes_freed(folders: Iterable[Path]) -> int:
    """Bytes of the files whose links are all in `folders`."""
    links: dict[tuple[int, int], int] = {}
    status = {}
    for file in _files(folders):
        inode = _inode(file)
        links[inode] = links.get(inode, 0) + 1
        status[inode] = file.stat()
    return sum(s.st_size for inode, s in status.items() if links[inode] == s.st_nlink)
