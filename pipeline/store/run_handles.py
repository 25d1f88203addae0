"""What each run made, so that two runs at once each read their own outputs and not the newest of any run.

In: a layout, ids of runs, assets. Out: one small JSON file per run and asset below current/runs/, beside the file of
the newest output that layout.py keeps. They are removed when their run has succeeded: until then a retry of the run
may start behind the assets that it has made. `gristmill gc` keeps the outputs that they name.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.store.json_files import read_object
from pipeline.store.layout import Layout
from pipeline.store.records import Handle
from pipeline.store.shards import write_text
from pipeline.store.store import read_handle

RUN = re.compile(r"[0-9A-Za-z_-]+")  # ids are used as names of folders


def save_of_run(layout: Layout, run_id: str, asset: str, handle: Handle) -> None:
    path = _path(layout, run_id, asset)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"asset": asset, "folder": str(handle.directory.relative_to(layout.store))}))


def load_of_runs(layout: Layout, run_ids: Iterable[str], asset: str) -> Any:
    """The output of `asset` in the first of these runs that made one; None if none did, or it was removed since."""
    for path in (_path(layout, run_id, asset) for run_id in run_ids):
        if not path.exists():
            continue
        entry = read_object(path, {"folder": str}, "delete it, and the run reads the newest output")
        if (folder := layout.store / entry["folder"]).exists():
            return read_handle(folder)
    return None


def runs_with_handles(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.run_handles.glob("*") if path.is_dir())


def held_by_runs(layout: Layout) -> Iterator[Path]:
    """Folders of the outputs that runs may still read."""
    for path in sorted(layout.run_handles.glob("*/*.json")):
        try:
            yield layout.store / json.loads(path.read_text("utf-8"))["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # removed in the meantime, or damaged: the run then reads the newest output


def forget_runs(layout: Layout, run_ids: Collection[str]) -> None:
    for run_id in run_ids:
        shutil.rmtree(layout.run_handles / _name(run_id), ignore_errors=True)


def _path(layout: Layout, run_id: str, asset: str) -> Path:
    return layout.run_handles / _name(run_id) / (asset.replace("/", "__") + ".json")


def _name(run_id: str) -> str:
    if not RUN.fullmatch(run_id):
        raise ValueError(f"{run_id!r} is not the id of a run")
    return run_id
