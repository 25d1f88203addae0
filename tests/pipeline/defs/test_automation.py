"""Schedules and sensors, each by a tick."""

import datetime

import dagster as dg
import pytest

from pipeline.definitions import definitions
from pipeline.tracking.delivery import dead_runs, end_dead_runs
from pipeline.tracking.journal import Journal
from pipeline.tracking.tracker import Tracker

MONDAY = datetime.datetime(2026, 3, 2, 2, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("name", "job", "cron"), [("nightly_corpus", "build_corpus", "0 2 * * *"), ("weekly_demo", "demo", "0 4 * * 0")]
)
def test_schedule_is_off_at_first_and_asks_for_its_job_at_a_tick(toy_layout, name, job, cron):
    defs = definitions(toy_layout)
    schedule = defs.resolve_schedule_def(name)
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert (schedule.job_name, schedule.cron_schedule) == (job, cron)
    repository = defs.get_repository_def()
    context = dg.build_schedule_context(scheduled_execution_time=MONDAY, repository_def=repository)
    assert len(schedule.evaluate_tick(context).run_requests) == 1


class Watcher:
    """Ticks one sensor, which remembers its cursor as the daemon does."""

    def __init__(self, layout, name: str):
        self.defs = definitions(layout)
        self.sensor = self.defs.resolve_sensor_def(name)
        self.cursor = None

    def requests(self) -> int:
        context = dg.build_sensor_context(cursor=self.cursor, repository_def=self.defs.get_repository_def())
        tick = self.sensor.evaluate_tick(context)
        self.cursor = tick.cursor
        return len(tick.run_requests)


def test_folder_sensor_is_off_and_asks_once_for_every_change_that_has_settled(toy_layout):
    watcher = Watcher(toy_layout, "watch_web")
    assert watcher.sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert [watcher.requests() for _ in range(3)] == [0, 1, 0]
    page = toy_layout.data / "pages" / "new.html"
    page.write_text("<p>new</p>")
    assert [watcher.requests() for _ in range(3)] == [0, 1, 0]
    page.write_text("<p>still being written</p>")
    assert watcher.requests() == 0
    page.write_text("<p>still being written, now finished</p>")
    assert [watcher.requests() for _ in range(3)] == [0, 1, 0]
    page.unlink()
    assert [watcher.requests() for _ in range(3)] == [0, 1, 0]


def test_folder_sensor_folder_that_is_gone_fails_the_tick(toy_layout):
    watcher = Watcher(toy_layout, "watch_web")
    (toy_layout.data / "pages").rename(toy_layout.data / "elsewhere")
    with pytest.raises(Exception, match="pages does not exist"):
        watcher.requests()


@pytest.mark.parametrize(
    ("name", "status"),
    [("close_mlflow_runs_of_failed_runs", "FAILED"), ("close_mlflow_runs_of_cancelled_runs", "KILLED")],
)
def test_run_sensor_closes_the_mlflow_run_that_a_dead_build_left_open(toy_layout, monkeypatch, name, status):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    defs = definitions(toy_layout)
    sensor = defs.resolve_sensor_def(name)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING

    @dg.op
    def fail():
        raise ValueError("as wanted")

    @dg.job
    def failing():
        fail()

    with dg.DagsterInstance.ephemeral() as instance:
        run = failing.execute_in_process(instance=instance, raise_on_error=False)
        tracker = Tracker(layout=toy_layout, asset="a", group="pretraining", tags={"dagster.run_id": run.run_id})
        tracker.started("a" * 32, {}, [])
        tracker.courier.stop()  # the system ends its thread and frees its lock when a process dies
        tracker.journal.lock.release()
        assert dead_runs(toy_layout) == ["a" * 32]
        context = dg.build_run_status_sensor_context(
            sensor_name=name,
            dagster_event=run.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=run.dagster_run,
        )
        sensor(context)
    assert Journal(toy_layout, "a" * 32).state()["status"] == status
    assert end_dead_runs(toy_layout) == []
