"""foundation_model on two devices: two processes of torchrun (gloo), Dagster Pipes and MLflow around them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import pytest

from model.training.curve import read_curve
from pipeline.definitions import definitions
from pipeline.store.layout import Layout, load_current
from pipeline.store.store import read_record
from pipeline.tracking.server import new_client, run_id_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # with the toy graph, on a busy machine
N_STEPS = 400
PROGRAM = """
import os
import dagster as dg
from pipeline.definitions import definitions
from pipeline.store.layout import layout_from_environment

def pretrain():
    return definitions(layout_from_environment()).resolve_job_def("pretrain")

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
        assets = [dg.AssetKey("foundation_model")]
        dg.execute_job(dg.reconstructable(pretrain), instance, run_config={run_config}, asset_selection=assets)
"""


def run_config(**settings) -> dict:
    return {
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        "ops": {"foundation_model": {"config": {"devices": 2, **settings}}},
    }


@pytest.fixture
def layout(toy_graph, tmp_path, monkeypatch) -> Layout:
    """A copy of the toy graph's data folder, with a Dagster home."""
    layout = Layout(tmp_path / "data")
    shutil.copytree(
        toy_graph.layout.data, layout.data, ignore=shutil.ignore_patterns(toy_graph.layout.dagster_home.name)
    )
    layout.dagster_home.mkdir()
    (layout.dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    monkeypatch.setenv("DAGSTER_HOME", str(layout.dagster_home))
    monkeypatch.setenv("GRISTMILL_EXECUTOR", "in_process")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return layout


def materialised(layout: Layout, instance: dg.DagsterInstance, raise_on_error: bool = True, **settings):
    job = definitions(layout).resolve_job_def("pretrain")
    return job.execute_in_process(
        instance=instance,
        run_config=run_config(**settings),
        asset_selection=[dg.AssetKey("foundation_model")],
        raise_on_error=raise_on_error,
    )


def logged(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def mlflow_steps(layout: Layout, fingerprint: str, metric: str) -> list[int]:
    run_id = run_id_of(layout, fingerprint)
    return [point.step for point in new_client(layout).get_metric_history(run_id, metric)]


def test_two_devices_give_the_record_the_curve_and_the_log_of_one(layout, toy_graph):
    one = load_current(toy_graph.layout, "foundation_model")
    shutil.rmtree(layout.store / "pretrain")
    shutil.rmtree(layout.tracking / one.fingerprint)
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        run = materialised(layout, instance)
        log = logged(instance, run.run_id)
    two = load_current(layout, "foundation_model")
    assert two.fingerprint == one.fingerprint
    record, expected = read_record(two.directory), read_record(one.directory)
    assert record["config"] == expected["config"] and record["files"].keys() == expected["files"].keys()
    curves = [[line for line in read_curve(m.directory) if "loss" in line] for m in (two, one)]
    assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(*curves, strict=True)]
    assert max(differences) < 1e-3
    (event,) = run.get_asset_materialization_events()
    assert (
        event.event_specific_data.materialization.metadata["parameters"].value
        == f"{record['measures']['parameters']:,}"
    )
    assert "training in 2 processes" in log and "trained to step 30" in log
    assert mlflow_steps(layout, two.fingerprint, "loss") == list(range(1, 31))
    assert mlflow_steps(layout, two.fingerprint, "validation_bits_per_byte") == [10, 20, 30]


def test_two_devices_terminated_save_and_the_next_run_goes_on(layout, toy_graph, tmp_path):
    folder = interrupted(layout, toy_graph, tmp_path, signal.SIGTERM)
    client, run_id = new_client(layout), run_id_of(layout, folder.name)
    assert client.get_run(run_id).info.status == "KILLED"
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.CANCELED
        (checkpoint,) = sorted((folder / "checkpoints").glob("step-*/complete.json"))[-1:]
        saved = int(checkpoint.parent.name.removeprefix("step-"))
        assert mlflow_steps(layout, folder.name, "loss") == list(range(1, saved + 1))
        assert materialised(layout, instance, n_steps=N_STEPS).success
    assert run_id_of(layout, folder.name) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert mlflow_steps(layout, folder.name, "loss") == list(range(1, N_STEPS + 1))


def test_two_devices_whose_parent_is_killed_end_and_the_next_run_leaves_no_gap(layout, toy_graph, tmp_path):
    folder = interrupted(layout, toy_graph, tmp_path, signal.SIGKILL)
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        assert materialised(layout, instance, n_steps=N_STEPS, devices=1).success
    assert load_current(layout, "foundation_model").fingerprint == folder.name
    assert mlflow_steps(layout, folder.name, "loss") == list(range(1, N_STEPS + 1))
    assert [line["step"] for line in read_curve(folder) if "loss" in line] == list(range(1, N_STEPS + 1))


def test_two_devices_that_diverge_fail_with_the_words_of_the_training(layout):
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        run = materialised(layout, instance, raise_on_error=False, muon_lr=1e30, adamw_lr=1e30, n_steps=20)
        (failure,) = [event for event in run.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert "not finite" in (error.cause or error).message
    assert "Lower the learning rates" in (error.cause or error).message


def interrupted(layout: Layout, toy_graph, tmp_path: Path, number: signal.Signals) -> Path:
    """The folder of a training on two devices whose Dagster run got a signal in the middle."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{run_config}", repr(run_config(n_steps=N_STEPS))))
    finished = load_current(toy_graph.layout, "foundation_model").fingerprint
    with subprocess.Popen([sys.executable, str(program)], env=os.environ, stderr=subprocess.DEVNULL) as child:
        folder = folder_after_steps(layout, finished, child, n_steps=30)
        if number is signal.SIGTERM:
            with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
                (run,) = instance.get_runs()
                instance.report_run_canceling(run)  # what the button in the UI does before the signal
        child.send_signal(number)
        child.wait(120)
    assert not (folder / "record.json").exists()
    return folder


def folder_after_steps(layout: Layout, finished: str, child: subprocess.Popen, n_steps: int) -> Path:
    while child.poll() is None:
        for events in layout.store.glob("pretrain/*/.events.jsonl"):
            if events.parent.name != finished and events.read_bytes().count(b'"loss"') > n_steps:
                return events.parent
        threading.Event().wait(0.05)
    raise AssertionError(f"no training came to step {n_steps}; the child ended with {child.poll()}")
