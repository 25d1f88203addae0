"""Two first runs at once create the databases of Dagster and MLflow in a folder that works afterwards."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.defs.instance import open_instance, prepare_dagster_home
from pipeline.store.layout import Layout
from tests.children import python

AT_ONCE = 2  # processes
DAGSTER = """
import sys, time
from pathlib import Path
from pipeline.defs.instance import open_instance
from pipeline.store.layout import Layout
time.sleep(max(0, float(sys.argv[2]) - time.time()))
with open_instance(Layout(Path(sys.argv[1]))) as instance:
    assert instance.get_runs_count() == 0
    assert list(instance.all_instigator_state()) == []
"""
MLFLOW = """
import sys
from pathlib import Path
from pipeline.store.layout import Layout
from pipeline.tracking.experiments import experiment_id_of
from pipeline.tracking.server import new_client
layout = Layout(Path(sys.argv[1]))
print(experiment_id_of(new_client(layout), layout, "pretraining"))
"""


def at_once(code: str, *arguments: str) -> list[str]:
    """What the processes print; the error of one that fails is that of the test."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        ended = list(threads.map(lambda _: python("-c", code, *arguments), range(AT_ONCE)))
    for process in ended:
        assert process.returncode == 0, process.stderr[-2000:]
    return [process.stdout.strip() for process in ended]


@pytest.mark.parametrize("attempt", range(3))
def test_instance_of_several_first_runs_at_once_has_one_version_a_database(tmp_path, attempt):
    """Two first runs at once left two alembic heads, with which no later run could start (own reliability trials)."""
    layout = Layout(tmp_path)
    at_once(DAGSTER, str(tmp_path), str(time.time() + 1.0))
    databases = [path for path in layout.dagster_home.rglob("*.db") if path.stem in ("runs", "index", "schedules")]
    assert len(databases) == 3
    for path in databases:
        with closing(sqlite3.connect(path)) as database:
            assert len(database.execute("SELECT version_num FROM alembic_version").fetchall()) == 1, path
    with open_instance(layout) as instance:
        assert instance.get_runs_count() == 0


def test_mlflow_database_of_several_first_runs_at_once_has_one_experiment(tmp_path):
    ids = at_once(MLFLOW, str(tmp_path))
    assert len(set(ids)) == 1


def test_instance_settings_that_were_edited_are_kept(tmp_path):
    layout = Layout(Path(tmp_path))
    with open_instance(layout):
        settings = layout.dagster_home / "dagster.yaml"
    settings.write_text(settings.read_text() + "# mine\n")
    with open_instance(layout):
        assert settings.read_text().endswith("# mine\n")


def test_dagster_yaml_that_is_damaged_is_named(tmp_path):
    """It was an unexpected ParserError."""
    layout = Layout(tmp_path)
    prepare_dagster_home(layout)
    path = layout.dagster_home / "dagster.yaml"
    path.write_text("storage: {")
    with (
        pytest.raises(ValueError, match=rf"{path} is not valid YAML"),
        open_instance(layout),
    ):
        pass
