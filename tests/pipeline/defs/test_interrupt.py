"""Terminating a Dagster run while it pretrains: saved first, closed as killed, and gone on with by the next run."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest

from pipeline.definitions import definitions
from pipeline.store.layout import Layout, load_current
from pipeline.tracking.server import new_client, run_id_of

N_STEPS = 400
INTERRUPTED_AFTER = 60
RUN_CONFIG = {
    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    "ops": {"foundation_model": {"config": {"n_steps": N_STEPS}}},
}
PROGRAM = """
import os, sys
from pathlib import Path
import dagster as dg
from pipeline.definitions import definitions
from pipeline.store.layout import layout_from_environment

def pretrain():
    return definitions(layout_from_environment()).resolve_job_def("pretrain")

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
        assets = [dg.AssetKey("foundation_model")]
        dg.execute_job(dg.reconstructable(pretrain), instance, run_config={run_config}, asset_selection=assets)
""".replace("{run_config}", repr(RUN_CONFIG))


@pytest.fixture
def layout(toy_graph, tmp_path, monkeypatch) -> Layout:
    """A copy of the toy graph's data folder, with a Dagster home."""
    layout = Layout(tmp_path / "data")
    runs_of_other_tests = shutil.ignore_patterns(toy_graph.layout.dagster_home.name)
    shutil.copytree(toy_graph.layout.data, layout.data, ignore=runs_of_other_tests)
    layout.dagster_home.mkdir()
    (layout.dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    monkeypatch.setenv("DAGSTER_HOME", str(layout.dagster_home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return layout


@pytest.mark.parametrize("executor", ["in_process", pytest.param("processes", marks=pytest.mark.slow)])
def test_terminate_while_pretraining_saves_and_the_next_run_goes_on(
    layout, toy_graph, tmp_path, monkeypatch, executor
):
    monkeypatch.setenv("GRISTMILL_EXECUTOR", executor)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    child = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = load_current(toy_graph.layout, "foundation_model").fingerprint
    folder = wait_for_steps(layout, first, child)
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        (run,) = instance.get_runs()
        instance.report_run_canceling(run)  # what the button in the UI does before the signal
    child.send_signal(signal.SIGTERM)
    child.wait(600)
    assert list((folder / "checkpoints").glob("step-*/complete.json"))
    assert not (folder / "record.json").exists()
    client, run_id = new_client(layout), run_id_of(layout, folder.name)
    assert client.get_run(run_id).info.status == "KILLED"
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.CANCELED
        monkeypatch.setenv("GRISTMILL_EXECUTOR", "in_process")
        job = definitions(layout).resolve_job_def("pretrain")
        assets = [dg.AssetKey("foundation_model")]
        again = job.execute_in_process(instance=instance, run_config=RUN_CONFIG, asset_selection=assets)
    assert again.success
    assert load_current(layout, "foundation_model").fingerprint == folder.name
    assert run_id_of(layout, folder.name) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == list(range(1, N_STEPS + 1))


def test_model_that_was_finished_while_its_run_stayed_open_closes_that_run(layout):
    """A kill between the record of the model and the end of its MLflow run must leave neither open nor double."""
    fingerprint = load_current(layout, "foundation_model").fingerprint
    client, run_id = new_client(layout), run_id_of(layout, fingerprint)
    client.update_run(run_id, status="RUNNING")
    (layout.tracking / fingerprint / "run.json").unlink()
    job = definitions(layout).resolve_job_def("pretrain")
    run = job.execute_in_process(
        asset_selection=[dg.AssetKey("foundation_model")], run_config={"loggers": RUN_CONFIG["loggers"]}
    )
    (event,) = run.get_asset_materialization_events()
    assert event.event_specific_data.materialization.metadata["unchanged"].value
    assert run_id_of(layout, fingerprint) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("pretraining").experiment_id
    assert len(client.search_runs([experiment])) == 1


def wait_for_steps(layout: Layout, finished: str, child: subprocess.Popen) -> Path:
    """The folder of the training that `child` does, once enough of its steps are in the curve."""
    pause, deadline = threading.Event(), time.monotonic() + 600
    while time.monotonic() < deadline and child.poll() is None:
        for curve in layout.store.glob("pretrain/*/curve.jsonl"):
            if curve.parent.name != finished and curve.read_bytes().count(b"\n") > INTERRUPTED_AFTER:
                return curve.parent
        pause.wait(0.05)
    raise AssertionError(f"no training came to step {INTERRUPTED_AFTER}; the child ended with {child.poll()}")
