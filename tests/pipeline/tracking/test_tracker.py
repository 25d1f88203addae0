import os
import socket
from collections.abc import Collection
from pathlib import Path

import pytest

from pipeline.store.layout import Layout
from pipeline.store.records import Shards
from pipeline.tracking.delivery import Delivery, dead_runs, end_dead_runs, send_pending
from pipeline.tracking.journal import FAILED, FINISHED, KILLED, Journal
from pipeline.tracking.server import new_client, run_id_of, run_url
from pipeline.tracking.tracker import Tracker
from tests.children import python

FINGERPRINT = "0123456789abcdef" * 2
MLFLOW = "http://127.0.0.1:5001"
INPUT = Shards(stage="tokenize", directory=Path("/corpus"), fingerprint="f" * 32, digest="d" * 32, rows=5)


def track(layout: Layout, steps: range, status: str, params: dict | None = None) -> None:
    tracker = Tracker(layout=layout, asset="foundation_model", group="pretraining", tags={"dagster.run_id": "run-1"})
    tracker.started(FINGERPRINT, params or {"n_layers": 2, "train": {"rows": 8, "clip": None}}, [INPUT])
    for step in steps:
        tracker.metrics(step, {"loss": 1 / step, "learning_rate": 0.1})
    tracker.close(status)


def only_run(layout: Layout):
    client = new_client(layout)
    runs = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    assert len(runs) == 1
    return runs[0]


def curve(layout: Layout, metric: str = "loss") -> list[tuple[int, float]]:
    history = new_client(layout).get_metric_history(only_run(layout).info.run_id, metric)
    return [(point.step, point.value) for point in history]


def test_tracker_finished_run_has_params_inputs_tags_and_its_curve(layout):
    track(layout, range(1, 21), FINISHED)
    run = only_run(layout)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"n_layers": "2", "train.rows": "8", "train.clip": "None"}
    assert run.data.tags["gristmill.fingerprint"] == FINGERPRINT
    assert run.data.tags["dagster.run_id"] == "run-1"
    assert run.data.tags["gristmill.pid"] == str(os.getpid())
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("tokenize", INPUT.digest)
    assert curve(layout) == [(step, 1 / step) for step in range(1, 21)]
    assert run_id_of(layout, FINGERPRINT) == run.info.run_id
    assert run_url(layout, FINGERPRINT, MLFLOW).endswith(f"/runs/{run.info.run_id}?workflowType=machine_learning")


def test_tracker_resumed_build_goes_on_in_the_same_run_and_repeats_no_step(layout):
    track(layout, range(1, 21), KILLED)
    assert only_run(layout).info.status == "KILLED"
    track(layout, range(11, 31), FINISHED)
    assert only_run(layout).info.status == "FINISHED"
    assert [step for step, _ in curve(layout)] == list(range(1, 31))


def test_tracker_lost_notes_find_the_run_again_by_its_fingerprint(layout):
    track(layout, range(1, 6), KILLED)
    (layout.tracking / FINGERPRINT / "run.json").unlink()
    track(layout, range(4, 9), FINISHED)
    assert [step for step, _ in curve(layout)] == list(range(1, 9))


def test_tracker_server_away_costs_no_points(layout, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    track(layout, range(1, 21), FINISHED)
    assert run_id_of(layout, FINGERPRINT) is None
    assert run_url(layout, FINGERPRINT, MLFLOW) is None
    assert len(Journal(layout, FINGERPRINT).pending()) == 21
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_pending(layout) == {}
    run = only_run(layout).info
    assert run.status == "FINISHED"
    assert run.start_time <= run.end_time  # of the build, not of its delivery
    assert [step for step, _ in curve(layout)] == list(range(1, 21))


def test_tracker_next_build_sends_what_an_earlier_one_could_not(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    track(layout, range(1, 6), FINISHED)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    other = Tracker(layout=layout, asset="another", group="pretraining")
    other.started("e" * 32, {}, [])
    other.close(FINISHED)
    assert run_id_of(layout, FINGERPRINT) is not None
    assert not Journal(layout, FINGERPRINT).pending()


def test_tracker_second_delivery_of_the_same_events_changes_nothing(layout):
    track(layout, range(1, 6), FINISHED)
    journal = Journal(layout, FINGERPRINT)
    journal.append([{"do": "metrics", "step": step, "at": 0, "values": {"loss": 9.0}} for step in range(1, 6)])
    send_pending(layout)
    assert curve(layout) == [(step, 1 / step) for step in range(1, 6)]


DYING = """
import os, sys
from pathlib import Path
from pipeline.store.layout import Layout
from pipeline.tracking.tracker import Tracker
tracker = Tracker(layout=Layout(Path(sys.argv[1])), asset="foundation_model", group="pretraining",
                  tags={"dagster.run_id": "run-1"})
tracker.started(sys.argv[2], {}, [])
for step in range(1, 11):
    tracker.metrics(step, {"loss": 1 / step})
with open(Path(sys.argv[1]) / "tracking" / sys.argv[2] / "pending.jsonl", "a") as torn:
    torn.write('{"do": "metr')
os._exit(9)
"""


def die_while_training(layout: Layout) -> None:
    assert python("-c", DYING, str(layout.data), FINGERPRINT).returncode == 9


def test_dead_runs_process_killed_is_found_and_closed_as_failed(layout):
    die_while_training(layout)
    assert dead_runs(layout) == [FINGERPRINT]
    assert end_dead_runs(layout, dagster_run_id="another run") == []
    assert end_dead_runs(layout, FAILED, "run-1") == [FINGERPRINT]
    assert dead_runs(layout) == []
    assert only_run(layout).info.status == "FAILED"


def test_tracker_after_a_kill_goes_on_behind_a_torn_line(layout):
    die_while_training(layout)
    track(layout, range(6, 16), FINISHED)
    assert [step for step, _ in curve(layout)] == list(range(1, 16))


def test_end_dead_runs_leaves_a_build_that_begins_meanwhile(layout):
    """It used to look under the lock and write without it, and closed a rerun that had begun in between."""
    die_while_training(layout)
    rerun = Journal(layout, FINGERPRINT)

    class Overtaken(Journal):
        def is_open_here(self, closed_hosts: Collection[str] = ()) -> bool:
            found = super().is_open_here(closed_hosts)
            if not rerun.lock.is_locked:
                rerun.open(self.state()["start"])
            return found

    assert not Overtaken(layout, FINGERPRINT).close_abandoned(FAILED)
    assert rerun.state()["status"] == "RUNNING"
    rerun.lock.release()


def test_journal_close_loses_no_registration_to_a_delivery_at_the_same_time(layout):
    """The status used to change before the registration was written, so that a delivery removed its file."""
    delivered = []

    class Delivered(Journal):
        def update(self, **changes) -> None:
            super().update(**changes)
            if changes.get("status") == FINISHED:
                delivered.extend(event["do"] for _, event in self.pending())

    journal = Delivered(layout, FINGERPRINT)
    journal.open({})
    journal.close(FINISHED, registrations=[{"do": "register"}])
    assert delivered == ["end", "register"]
    journal.lock.release()


def test_journal_that_another_process_keeps_is_said_in_a_sentence(layout, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.journal.OPEN_SECONDS", 0.01)
    first = Journal(layout, FINGERPRINT)
    first.open({})
    with pytest.raises(TimeoutError, match=r"another process has held .* for 0.01 seconds.*run this again"):
        Journal(layout, FINGERPRINT).open({})
    first.lock.release()


def test_delivery_load_of_the_machine_goes_on_behind_the_last_step(layout):
    start = {"name": "flour", "experiment": "pretraining", "trains": True, "params": {}, "description": ""}
    start |= {"datasets": [], "models": [], "tags": {"gristmill.fingerprint": FINGERPRINT}}
    for _ in range(2):
        journal = Journal(layout, FINGERPRINT)
        journal.open(start)
        delivery = Delivery(layout, journal)
        delivery.send()
        delivery.sample_machine()
        delivery.sample_machine()
        journal.close(KILLED)
        delivery.send()
        journal.lock.release()
    assert [step for step, _ in curve(layout, "system/cpu_utilization_percentage")] == [0, 1, 2, 3]
    assert all(0 < value <= 100 for _, value in curve(layout, "system/system_memory_usage_percentage"))


def test_dead_runs_running_build_is_left_alone(layout):
    tracker = Tracker(layout=layout, asset="foundation_model", group="pretraining")
    tracker.started(FINGERPRINT, {}, [])
    assert dead_runs(layout) == []
    tracker.close(FINISHED)


def test_tracker_server_that_never_answers_does_not_hold_up_the_build(layout, monkeypatch):
    """The build only appends to a file; the thread that delivers may wait for as long as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tracker = Tracker(layout=layout, asset="foundation_model", group="pretraining")
        tracker.started(FINGERPRINT, {}, [])
        with deaf.accept()[0]:  # the thread waits for an answer now
            for step in range(1, 1001):
                tracker.metrics(step, {"loss": 1 / step})
            assert len(Journal(layout, FINGERPRINT).pending()) == 1000
    tracker.close(KILLED)
