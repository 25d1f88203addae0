"""Pools hold over all runs, what a dead run held is freed, and a step whose process was killed starts again."""

import subprocess
import sys
import uuid

import dagster as dg
import pytest

from pipeline.defs.instance import prepare_dagster_home
from pipeline.defs.mill_asset import CORES
from pipeline.defs.run_process import PID_TAG, STARTED_TAG, process_tags, run_here
from pipeline.store.layout import Layout


@pytest.fixture
def instance(tmp_path):
    """With the settings that the project ships."""
    layout = Layout(tmp_path)
    prepare_dagster_home(layout)
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        yield instance


def pooled(work) -> dg.JobDefinition:
    @dg.op(pool=CORES)
    def grind() -> None:
        work()

    @dg.job
    def grinding():
        grind()

    return grinding


def test_pool_that_another_run_fills_is_waited_for(instance):
    happened = []
    job, run_id = pooled(lambda: happened.append("works")), str(uuid.uuid4())
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default(CORES)
    other = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=process_tags())
    assert storage.claim_concurrency_slot(CORES, other.run_id, "grind").is_claimed

    def end_the_other(event) -> None:
        if "blocked by limit for pool" in event.user_message:
            happened.append("waits")
            storage.free_concurrency_slots_for_run(other.run_id)

    instance.add_event_listener(run_id, end_the_other)
    assert run_here(job, instance, run_id=run_id).success
    assert happened == ["waits", "works"]


def test_pool_place_of_a_run_whose_process_died_is_free_again(instance):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    job = pooled(lambda: None)
    tags = {**process_tags(), PID_TAG: str(process.pid), STARTED_TAG: "0.0"}
    dead = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default(CORES)
    assert storage.claim_concurrency_slot(CORES, dead.run_id, "grind").is_claimed
    assert run_here(job, instance).success


def test_run_here_belongs_to_the_code_location_of_the_ui(instance):
    run_id = run_here(pooled(lambda: None), instance).run_id
    run = instance.get_run_by_id(run_id)
    assert run.remote_job_origin.repository_origin.get_label() == "__repository__@gristmill"
    assert run.tags.items() >= process_tags().items()
    assert run.tags[".dagster/repository"] == "__repository__@gristmill"


KILLED = """
import os, signal
from pathlib import Path
import dagster as dg
from pipeline.defs import executor

executor.PRELOADED.clear()  # the test needs no torch
executor.AGAIN = dg.RetryPolicy(max_retries=1)

def attempts(name):
    with (Path(os.environ["DAGSTER_HOME"]) / name).open("a") as file:
        file.write("x")
        return file.tell()

@dg.op
def killed_once():
    if attempts("killed_once") == 1:
        os.kill(os.getpid(), signal.SIGKILL)

@dg.op
def mistaken():
    attempts("mistaken")
    raise ValueError("as wanted")

@dg.job(executor_def=executor.executor())
def grinding():
    killed_once()
    mistaken()

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
        dg.execute_job(dg.reconstructable(grinding), instance)
"""


def test_step_that_was_killed_starts_again_and_one_that_failed_does_not(instance, tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(Layout(tmp_path).dagster_home))
    monkeypatch.delenv("GRISTMILL_EXECUTOR", raising=False)
    program = tmp_path / "grinding.py"
    program.write_text(KILLED)
    subprocess.run([sys.executable, str(program)], check=True, capture_output=True, timeout=200)
    attempts = {name: (Layout(tmp_path).dagster_home / name).read_text() for name in ("killed_once", "mistaken")}
    assert attempts == {"killed_once": "xx", "mistaken": "x"}
    (run,) = instance.get_runs()
    assert run.tags.keys() >= process_tags().keys()
    steps = instance.get_run_step_stats(run.run_id)
    assert {step.step_key: step.status.value for step in steps} == {"killed_once": "SUCCESS", "mistaken": "FAILURE"}
