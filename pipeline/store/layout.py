"""Paths below the data folder, and the current output of each asset.

In: the data folder (GRISTMILL_DATA, else ./data). Out: paths, and the current handle of every asset: one small
JSON file per asset, written when it materialises. Nothing here searches for "the newest file in a folder".
"""

import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock

from pipeline.store.errors import CorruptShard
from pipeline.store.json_files import read_object
from pipeline.store.lineage import lineage
from pipeline.store.record_file import RECORD
from pipeline.store.records import Handle
from pipeline.store.settings import did_you_mean
from pipeline.store.shards import write_durably
from pipeline.store.store import read_handle

MENDING = "run `gristmill doctor`, which makes it again from the records of the outputs"
log = logging.getLogger(__name__)
TRIAL_BYTES = 1 << 16
START = "`gristmill init FOLDER` creates one"
INDEXES = "trace"  # folder of the store with the indexes of `gristmill trace`


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one data folder; two folders share nothing."""

    data: Path

    @property
    def sources_toml(self) -> Path:
        return self.data / "sources.toml"

    @property
    def models_toml(self) -> Path:
        return self.data / "models.toml"

    @property
    def tasks_toml(self) -> Path:
        return self.data / "tasks.toml"

    @property
    def config_toml(self) -> Path:
        return self.data / "config.toml"  # settings of this project, one table per asset: the launchpad defaults

    @property
    def denied(self) -> Path:
        return self.data / "denied.jsonl"  # what must not enter the corpus again; see corpus/deny_list.py

    @property
    def store(self) -> Path:
        return self.data / "store"  # outputs, <stage>/<fingerprint>/

    @property
    def cache(self) -> Path:
        return self.data / "cache"  # fetched packages by sha256

    @property
    def kept_tokenizer(self) -> Path:
        return self.data / "kept_tokenizer.json"  # see corpus/tokens/kept_tokenizer.py

    @property
    def current(self) -> Path:
        return self.data / "current"  # asset -> folder in the store

    @property
    def run_handles(self) -> Path:
        return self.current / "runs"  # run -> asset -> folder in the store, see store/run_handles.py

    @property
    def tracking(self) -> Path:
        return self.data / "tracking"  # fingerprint -> MLflow run id, metrics that wait for the server

    @property
    def dagster_home(self) -> Path:
        return self.data / "dagster"

    @property
    def mlflow(self) -> Path:
        return self.data / "mlflow"  # mlflow.db, artifacts/


def layout_from_environment() -> Layout:
    return Layout(Path(os.environ.get("GRISTMILL_DATA", "data")).resolve())


def existing_layout() -> Layout:
    """The data folder of the environment, to read. Raises ValueError with advice when there is none."""
    layout = layout_from_environment()
    if fault := absence(layout):
        raise ValueError(fault)
    return layout


def usable_layout() -> Layout:
    """The data folder of the environment, to build in. Raises ValueError with advice when it cannot be used."""
    layout = existing_layout()
    if fault := write_fault(layout):
        raise ValueError(f"{_named(layout)} {fault}; {START} elsewhere")
    if not layout.sources_toml.exists():
        raise ValueError(f"{_named(layout)} has no sources.toml; {START}")
    return layout


def absence(layout: Layout) -> str | None:
    """That there is no data folder, and what to do; None if there is one."""
    if layout.data.is_dir():
        return None
    if layout.data.exists():
        return f"{_named(layout)} is a file, expected a folder; {START} elsewhere"
    return f"{_named(layout)} does not exist; {START}"


def _named(layout: Layout) -> str:
    """The data folder as the subject of a sentence."""
    if os.environ.get("GRISTMILL_DATA"):
        return f"GRISTMILL_DATA names {layout.data}, which"
    return f"GRISTMILL_DATA is not set, and {layout.data}"


def write_fault(layout: Layout) -> str | None:
    """Why nothing can be written to the data folder; None if it can."""
    if not layout.data.is_dir():
        return "is a file, expected a folder" if layout.data.exists() else "does not exist"
    try:
        with TemporaryFile(dir=layout.data) as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
    except OSError as error:
        return f"cannot be written to ({error.strerror})"
    return None


def save_current(layout: Layout, asset: str, handle: Handle) -> None:
    """Record `handle`, which is in the store, as the current output of `asset` (`pages/<source>` for a source).

    Its previous outputs are kept in the list `earlier`, newest first, which `gristmill gc --keep N` uses.
    """
    folder = str(handle.directory.relative_to(layout.store))
    path = _entry_path(layout, asset)
    layout.current.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.current / ".lock"):  # two runs at once would each lose what the other one made
        before = _entry_to_replace(path) or {"folder": folder, "earlier": []}
        earlier = [name for name in [before["folder"], *before["earlier"]] if name != folder]
        write_durably(path, json.dumps({"asset": asset, "folder": folder, "earlier": earlier}))


def remove_entry(layout: Layout, asset: str) -> None:
    """Forget the outputs of an asset that no file declares any more; the outputs themselves are not touched."""
    _entry_path(layout, asset).unlink(missing_ok=True)


def load_current(layout: Layout, asset: str) -> Any:
    """The current handle of `asset`. Raises ValueError when it was never materialised."""
    path = _entry_path(layout, asset)
    if fault := absence(layout):
        raise ValueError(fault)
    if not path.exists():
        hint = did_you_mean(asset, [entry["asset"] for entry in all_entries(layout)])
        hint = hint or f"; run `gristmill run +{asset}`, or materialise it in the UI"
        raise ValueError(f"{asset} has not been materialised below {layout.data}{hint}")
    folder = layout.store / read_entry(path)["folder"]
    if not (folder / RECORD).exists():
        raise ValueError(f"{folder}, the output of {asset}, was removed; run `gristmill run +{asset}`")
    return read_handle(folder)


def folder_or_current(layout: Layout, text: str) -> Path:
    """The folder that a user names by its path, by the asset whose output it is, or by the table of an open model or
    of a task."""
    if Path(text).is_dir():
        return Path(text).absolute()
    of_table = (text, f"base/{text}", f"{text}_model")
    text = next((asset for asset in of_table if _entry_path(layout, asset).exists()), text)
    if "/" in text and not _entry_path(layout, text).exists():
        raise ValueError(f"{text} is neither a folder nor an asset that was materialised below {layout.data}")
    return load_current(layout, text).directory


def all_current(layout: Layout, declared: Collection[str] | None = None) -> dict[str, Any]:
    """Asset -> handle, for every asset that was materialised and whose output still exists.

    `declared` are the assets of the graph (tasks/declared.py); others were taken out of the files. None = all.
    """
    return {
        entry["asset"]: read_handle(folder)
        for entry in all_entries(layout)
        if (declared is None or entry["asset"] in declared)
        and ((folder := layout.store / entry["folder"]) / RECORD).exists()
    }


def all_entries(layout: Layout) -> list[dict[str, Any]]:
    """Asset, current folder and earlier folders (newest first) of each. Raises CorruptShard when one is damaged."""
    return [read_entry(path) for path in sorted(layout.current.glob("*.json"))]


def read_entry(path: Path) -> dict[str, Any]:
    """One file of `current`. Raises CorruptShard when it is damaged."""
    entry = read_object(path, {"asset": str, "folder": str, "earlier": list}, MENDING)
    folders = [entry["folder"], *entry["earlier"]]
    if path.name != entry_name(entry["asset"]) or not all(map(_is_output, folders)):
        raise CorruptShard(f"{path} is damaged (it does not name an asset and folders of the store); {MENDING}")
    return entry


def entry_name(asset: str) -> str:
    """The name of the file in `current` of an asset."""
    return asset.replace("/", "__") + ".json"


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder, so that it can be made again and still be looked at. Returns its new path."""
    aside = path.with_name(f"{path.name}.damaged")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}.again")
    path.replace(aside)
    return aside


def asset_records(layout: Layout, asset: str) -> list[dict[str, Any]]:
    """The record of the current output of `asset`, then those of earlier stages that are not assets, once each."""
    assets = {layout.store / entry["folder"] for entry in all_entries(layout)}
    return [record for record in lineage([load_current(layout, asset)], until=assets).values() if record]


def _entry_path(layout: Layout, asset: str) -> Path:
    return layout.current / entry_name(asset)


def _entry_to_replace(path: Path) -> dict[str, Any] | None:
    """The entry before a new one; a damaged one is set aside, because the new one does not depend on it."""
    try:
        return read_entry(path) if path.exists() else None
    except CorruptShard as error:
        log.warning("%s; it is kept as %s and made anew", error, set_aside(path))
        return None


def _is_output(folder: Any) -> bool:
    """Whether it is `<stage>/<fingerprint>`."""
    return isinstance(folder, str) and len(parts := PurePosixPath(folder).parts) == 2 and not {"/", ".."} & set(parts)
