"""Opens Dagster's instance of a data folder, and creates it first if need be, in one process at a time.

In: a layout. Out: DAGSTER_HOME with a dagster.yaml, which is written once and may be edited, a workspace file, and
the instance with its databases. Dagster creates these without a lock: of two first runs at once, one failed, or both
wrote the version of a database, which then had two heads and could not be opened any more.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef  # public functions accept no overrides
from filelock import FileLock

from pipeline.defs.run_process import CODE_LOCATION
from pipeline.store.layout import Layout
from pipeline.store.shards import write_text

DAGSTER_YAML = Path(__file__).resolve().parents[1] / "dagster.yaml"  # in a checkout and in a wheel
WORKSPACE = f"""\
load_from:
  - python_module:
      module_name: pipeline.definitions
      location_name: {CODE_LOCATION}
"""
LOCK = ".creating.lock"


@contextmanager
def open_instance(layout: Layout, overrides: Mapping[str, Any] | None = None) -> Iterator[dg.DagsterInstance]:
    """The instance of the data folder; `overrides` replace parts of its dagster.yaml."""
    prepare_dagster_home(layout)
    with FileLock(layout.dagster_home / LOCK):
        try:
            reference = InstanceRef.from_dir(str(layout.dagster_home), overrides=dict(overrides or {}))
        except yaml.YAMLError as error:
            settings = layout.dagster_home / "dagster.yaml"
            raise ValueError(f"{settings} is not valid YAML ({error}); correct or delete it") from error
        instance = dg.DagsterInstance.from_ref(reference)
    with instance:
        yield instance


def prepare_dagster_home(layout: Layout) -> None:
    layout.dagster_home.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.dagster_home / LOCK):
        if not (settings := layout.dagster_home / "dagster.yaml").exists():
            write_text(settings, DAGSTER_YAML.read_text(encoding="utf-8"))
        if not (workspace := workspace_file(layout)).exists() or workspace.read_text(encoding="utf-8") != WORKSPACE:
            write_text(workspace, WORKSPACE)


def workspace_file(layout: Layout) -> Path:
    return layout.dagster_home / "workspace.yaml"
