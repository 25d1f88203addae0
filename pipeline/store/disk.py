"""Disk usage below the data folder, and which outputs are no longer needed, for `gristmill du` and `gristmill gc`.

In: a layout. Out: the size of each place, and the garbage: outputs from which neither a kept result nor a registered
model was built, cached shard results (parts) that no kept output shares, and indexes of `gristmill trace` for removed
outputs.

The newest outputs of every asset and those with a registered model are kept, with everything that they were built
from according to their records. Unfinished outputs and the parts of their stages are kept too, because a killed
training resumes from them. Bytes that several places share through hard links are counted once.
"""

import shutil
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.store.layout import INDEXES, Layout, all_entries
from pipeline.store.record_file import RECORD, load_record

PARTS = "parts"


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

    @property
    def folders(self) -> tuple[Path, ...]:
        return (*self.outputs, *self.unfinished, *self.parts, *self.indexes)


def disk_usage(layout: Layout) -> list[DiskUse]:
    """One row per place, first the outputs of each stage. Bytes that an earlier row counts are not counted again."""
    seen: set[tuple[int, int]] = set()
    current = {layout.store / entry["folder"] for entry in all_entries(layout)}
    places = []
    for stage in _stages(layout):
        outputs = _outputs(stage)
        n_current = sum(output in current for output in outputs)
        note = f"{len(outputs)} outputs, {n_current} current"
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
        (layout.tracking, "events that wait for MLflow"),
        (layout.dagster_home, "runs and their logs"),
    ):
        if folder.exists():
            places.append(_place(str(folder.relative_to(layout.data)), [folder], seen, note))
    return places


def find_garbage(layout: Layout, *, keep: int, registered: Collection[str], unfinished: bool = False) -> Garbage:
    """What neither the `keep` newest outputs of each asset nor the `registered` fingerprints need.

    With `unfinished`, outputs that were never finished are garbage too.
    """
    if keep < 1:
        raise ValueError(f"--keep is {keep}; it must be at least 1 output per asset")
    stages = _stages(layout)
    outputs = {output.name: output for stage in stages for output in _outputs(stage)}
    needed = _needed(layout, outputs, keep, registered)
    old = [output for output in outputs.values() if output not in needed]
    abandoned = [folder for stage in stages for folder in _unfinished(stage)] if unfinished else []
    shared = {_inode(file) for output in needed for file in _files([output])}
    parts = [
        part
        for stage in stages
        if unfinished or not _unfinished(stage)
        for part in _parts(stage)
        if not any(_inode(file) in shared for file in _files([part]))
    ]
    kept = {output.name for output in needed}
    indexes = [
        index for index in sorted((layout.store / INDEXES).glob("*")) if index.is_dir() and index.name not in kept
    ]
    return Garbage(
        outputs=tuple(old),
        unfinished=tuple(abandoned),
        parts=tuple(parts),
        indexes=tuple(indexes),
        n_bytes=bytes_freed([*old, *abandoned, *parts, *indexes]),
    )


def remove_garbage(layout: Layout, garbage: Garbage) -> None:
    """Delete the folders. Raises ValueError, and deletes nothing, while a build runs."""
    with ExitStack() as stack:
        for path in sorted(layout.store.glob("*/.*.lock")):
            lock = FileLock(path)
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                folder = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
                raise ValueError(
                    f"{folder} is being built; nothing was removed; try again when the build has ended"
                ) from None
        for folder in garbage.folders:
            (folder / RECORD).unlink(missing_ok=True)  # first: a partly removed folder is not finished
            shutil.rmtree(folder)


def size_text(n_bytes: float) -> str:
    """For instance "3.2 MB"; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def _needed(layout: Layout, outputs: dict[str, Path], keep: int, registered: Collection[str]) -> set[Path]:
    there = set(outputs.values())
    waiting = [outputs[fingerprint] for fingerprint in registered if fingerprint in outputs]
    for entry in all_entries(layout):
        held = [layout.store / folder for folder in (entry["folder"], *entry["earlier"])]
        waiting += [output for output in held if output in there][:keep]
    needed: set[Path] = set()
    while waiting:
        output = waiting.pop()
        if output in needed:
            continue
        needed.add(output)
        inputs = load_record(output)["inputs"]
        waiting += [outputs[entry["fingerprint"]] for entry in inputs if entry["fingerprint"] in outputs]
    return needed


def _stages(layout: Layout) -> list[Path]:
    return sorted(folder for folder in layout.store.glob("*") if folder.is_dir() and folder.name != INDEXES)


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
