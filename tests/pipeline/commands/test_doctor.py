"""The doctor closes what a killed process left open, in Dagster and in MLflow, and leaves the rest alone."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from pipeline.cli import main
from pipeline.commands.doctor import check_settings, examine
from pipeline.commands.doctor_files import check_disk, check_outputs
from pipeline.commands.findings import BAD, MENDED, OK, WARNING, Visit
from pipeline.defs.instance import prepare_dagster_home
from pipeline.defs.run_process import HOST_TAG, process_tags
from pipeline.store.layout import Layout, save_current
from pipeline.store.records import Shards
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tracking.journal import Journal
from pipeline.tracking.server import new_client, run_id_of

FINGERPRINT = "f" * 32
GRINDS_FOR_EVER = """
import sys
from pathlib import Path
import dagster as dg
from pipeline.store.layout import Layout
from pipeline.defs.run_process import run_here
from pipeline.tracking.tracker import Tracker

layout = Layout(Path(sys.argv[1]))

@dg.op
def grind():
    Tracker(layout=layout, asset="flour", group="pretraining").started("FINGERPRINT", {"stones": 2}, [])
    print("grinding", flush=True)
    sys.stdin.read()

@dg.job
def grinding():
    grind()

with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
    run_here(grinding, instance)
""".replace("FINGERPRINT", FINGERPRINT)


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Layout:
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Layout(tmp_path)


def _states(layout: Layout, *, mend: bool) -> dict[str, str]:
    """State of every finding about runs, by the first two words of its check."""
    findings = examine(Visit(layout=layout, mend=mend, ports=(0, 0)))
    return {" ".join(finding.check.split()[:2]): finding.state for finding in findings if "run" in finding.check}


def _dagster_status(layout: Layout) -> dg.DagsterRunStatus:
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        (run,) = instance.get_runs()
        return run.status


def test_doctor_killed_process_closes_its_runs_in_dagster_and_mlflow(layout):
    prepare_dagster_home(layout)
    with subprocess.Popen(
        [sys.executable, "-c", GRINDS_FOR_EVER, str(layout.data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"grinding\n"
        alive = _states(layout, mend=True)
        process.send_signal(signal.SIGKILL)
    assert alive == {"Dagster runs": OK, "MLflow runs": OK}
    assert _dagster_status(layout) == dg.DagsterRunStatus.STARTED

    assert _states(layout, mend=False) == {"Dagster run": BAD, "MLflow run": BAD}
    assert _dagster_status(layout) == dg.DagsterRunStatus.STARTED
    assert _states(layout, mend=True) == {"Dagster run": MENDED, "MLflow run": MENDED}
    assert _dagster_status(layout) == dg.DagsterRunStatus.FAILURE
    assert Journal(layout, FINGERPRINT).state()["status"] == "FAILED"
    run = new_client(layout).get_run(run_id_of(layout, FINGERPRINT))
    assert run.info.status == "FAILED"
    assert _states(layout, mend=True) == {"Dagster runs": OK, "MLflow runs": OK}


def test_doctor_run_of_another_host_is_named_and_closed_when_that_is_gone(layout):
    """Runs of a container that was killed stayed open, and doctor said "none hangs"
    (Netflix/metaflow#1112, NovaSky-AI/SkyRL#1516, dagster-io/dagster#3705)."""
    prepare_dagster_home(layout)

    @dg.job
    def grinding(): ...

    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        tags = {**process_tags(), HOST_TAG: "box-a"}
        instance.create_run_for_job(grinding, status=dg.DagsterRunStatus.STARTED, tags=tags)
    journal = Journal(layout, FINGERPRINT)
    journal.folder.mkdir(parents=True)
    journal.update(start={"name": "flour", "tags": {}}, status="RUNNING", host="box-a", begun_at=1)
    assert _states(layout, mend=True) == {"Dagster run": WARNING, "MLflow run": WARNING}
    told = [one.detail for one in examine(Visit(layout=layout, mend=True, ports=(0, 0))) if "box-a" in one.detail]
    assert len(told) == 2 and all("doctor --closed-host box-a` closes its runs" in detail for detail in told)

    journal.lock.acquire()  # it works in another container of this machine
    assert _states(layout, mend=True)["MLflow runs"] == OK
    journal.lock.release()
    list(examine(Visit(layout=layout, mend=True, ports=(0, 0), closed_hosts=("box-b",))))
    assert _dagster_status(layout) == dg.DagsterRunStatus.STARTED
    list(examine(Visit(layout=layout, mend=True, ports=(0, 0), closed_hosts=("box-a",))))
    assert _dagster_status(layout) == dg.DagsterRunStatus.FAILURE
    assert Journal(layout, FINGERPRINT).state()["status"] == "FAILED"
    assert _states(layout, mend=True) == {"Dagster runs": OK, "MLflow runs": OK}


@pytest.mark.parametrize(("seconds", "state"), [(10, WARNING), (600, MENDED)])
def test_doctor_run_that_was_killed_before_it_recorded_itself_is_closed(layout, seconds, state):
    """A run whose process was killed within its first second stayed STARTED for ever (own reliability trials)."""
    prepare_dagster_home(layout)

    @dg.job
    def grinding(): ...

    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        run = instance.create_run_for_job(grinding)
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            gone.wait()
        started = dg.DagsterEvent(
            event_type_value="PIPELINE_START", job_name="grinding", message="started", pid=gone.pid
        )
        instance.report_dagster_event(started, run.run_id, timestamp=time.time() - seconds)
    assert _states(layout, mend=True)["Dagster run"] == state


def test_doctor_queued_run_without_a_daemon_is_told(layout):
    prepare_dagster_home(layout)

    @dg.job
    def waiting(): ...

    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("mill"), "mill").get_job_origin("waiting")
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        instance.create_run_for_job(waiting, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
    findings = {finding.check: finding for finding in examine(Visit(layout=layout, mend=True, ports=(0, 0)))}
    assert findings["Dagster queue"].state == WARNING
    assert "1 QUEUED" in findings["Dagster queue"].detail


@dataclass(frozen=True, kw_only=True, slots=True)
class FlourConfig:
    sacks: int = 1


def _write_flour(cfg, inputs, work) -> Outcome:
    write_text(work.directory / "flour.txt", "flour" * cfg.sacks)
    return Outcome(rows=cfg.sacks)


FLOUR = Stage(name="grind", version=1, function=_write_flour, handle=Shards)


def test_doctor_output_that_lost_bytes_is_named_and_exits_1(layout, capsys):
    handle = Store(root=layout.store).build(FLOUR, FlourConfig()).handle
    save_current(layout, "flour", handle)
    visit = Visit(layout=layout, mend=True)
    assert [finding.state for finding in check_outputs(visit)] == [OK]
    (handle.directory / "flour.txt").write_text("fl")
    (finding,) = check_outputs(visit)
    assert (finding.check, finding.state) == ("output flour", BAD)
    assert "2 bytes, expected 5 bytes" in finding.detail
    assert main(["doctor", "--no-mend"]) == 1
    assert "output flour" in capsys.readouterr().out


def test_doctor_settings_mistake_names_file_and_table(layout):
    write_text(layout.sources_toml, '[rye]\nkind = "files"\npath = "rye"\nlicence = "mine"\n')
    write_text(layout.tasks_toml, "")
    write_text(layout.data / "rye" / "field.txt", "Rye.")
    (finding,) = check_settings(Visit(layout=layout, mend=True))
    assert (finding.state, finding.detail) == (OK, "a graph of 8 assets")
    write_text(layout.tasks_toml, '[tickets]\nkind = "clasification"\n')
    (finding,) = check_settings(Visit(layout=layout, mend=True))
    assert finding.state == BAD
    assert f"{layout.tasks_toml}: [tickets]: kind is 'clasification'" in finding.detail


def test_doctor_names_the_file_that_a_source_lacks(layout):
    """`settings ok`, although the folder of the source was missing."""
    write_text(layout.sources_toml, '[rye]\nkind = "files"\npath = "rye"\nlicence = "mine"\n')
    (source,) = check_settings(Visit(layout=layout, mend=True))
    assert source.state == BAD
    assert f"{layout.sources_toml}: [rye]: " in source.detail and "does not exist" in source.detail


def test_doctor_names_the_column_that_the_data_of_a_task_lacks(layout):
    write_text(layout.sources_toml, '[rye]\nkind = "files"\npath = "grains.csv"\nlicence = "mine"\n')
    table = 'kind = "classification"\nbase = "foundation_model"\ntext = "text"\nlabel = "lable"\n'
    write_text(layout.tasks_toml, f'[grains]\n{table}data = {{ path = "grains.csv" }}\n')
    write_text(layout.data / "grains.csv", "text,label\nshort,rye\nlong,oats\n")
    (task,) = check_settings(Visit(layout=layout, mend=True))
    assert task.state == BAD
    assert f"{layout.tasks_toml}: [grains]: " in task.detail
    assert "label is 'lable', but no row has that; the rows have: label, text; did you mean `label`?" in task.detail


def test_doctor_data_folder_that_cannot_be_written_to_is_bad():
    """Of a read-only folder doctor said "disk ok" (own trials, D)."""
    disk = list(check_disk(Visit(layout=Layout(Path("/proc/self")), mend=False)))
    assert disk[0].state == BAD and "cannot be written to" in disk[0].detail
