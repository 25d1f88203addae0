"""What MLflow refuses for good is set aside, and the rest of the run goes on; a server that is away is waited for."""

import errno

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2 as codes

from pipeline.commands.doctor import OK, WARNING, Visit, check_mlflow_runs
from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint
from pipeline.tracking.delivery import send_pending
from pipeline.tracking.journal import FINISHED, Journal
from pipeline.tracking.refusals import AWAY, LOGIN, REFUSED, failure_of, reason_of
from pipeline.tracking.server import new_client, run_id_of
from pipeline.tracking.tracker import Tracker

FINGERPRINT = "0123456789abcdef" * 2


def begun(layout: Layout, **fields) -> Tracker:
    tracker = Tracker(layout=layout, asset="moods_model", group="fine_tuning", **fields)
    tracker.started(FINGERPRINT, {"labels": {"C#": 1}}, [])
    return tracker


def run_of(layout: Layout):
    return new_client(layout).get_run(run_id_of(layout, FINGERPRINT))


def answer(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (MlflowException("bad name", error_code=codes.INVALID_PARAMETER_VALUE), REFUSED),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}), REFUSED),
        (RestException({"error_code": "RESOURCE_ALREADY_EXISTS", "message": "there"}), REFUSED),
        (MlflowException("API request to endpoint /x failed with error code 413 != 200."), REFUSED),
        (answer(400), REFUSED),
        (ValueError("not a number"), REFUSED),
        (KeyError("kind"), REFUSED),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), LOGIN),
        (answer(401), LOGIN),
        (MlflowException("API request to http://host failed with exception refused"), AWAY),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "busy"}), AWAY),
        (RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}), AWAY),
        (MlflowException("API request to endpoint /x failed with error code 502 != 200."), AWAY),
        (answer(503), AWAY),
        (answer(429), AWAY),
        (requests.ConnectionError("refused"), AWAY),
        (TimeoutError("slow"), AWAY),
        (OSError(errno.ENOSPC, "disk full"), AWAY),
        (RuntimeError("anything else"), AWAY),
    ],
)
def test_failure_is_a_refusal_a_bad_login_or_an_outage(error, meaning):
    assert failure_of(error) == meaning


def test_labels_with_signs_are_tracked_and_the_run_is_closed(layout):
    tracker = begun(layout)
    tracker.metrics(0, {"accuracy": 1.0, "f1_C++": 0.5, "f1_C#": 0.75, "f1_R&D": 1.0})
    tracker.close(FINISHED)
    run = run_of(layout)
    assert run.data.metrics == {"accuracy": 1.0, "f1_C:2B:2B": 0.5, "f1_C:23": 0.75, "f1_R:26D": 1.0}
    assert run.data.params == {"labels.C:23": "1"}
    assert run.info.status == FINISHED


def test_event_that_mlflow_refuses_is_set_aside_and_the_rest_goes_on(layout, caplog):
    """One metric that MLflow refuses kept all later events from ever being sent, the end of the run and the
    registration among them, and the doctor asked "is the server running?" (mlflow/mlflow#9425)."""
    tracker = begun(layout)
    tracker.metrics(1, {"loss": 2.0, "broken": "no number"})
    tracker.metrics(2, {"loss": 1.0, "broken": "no number"})
    tracker.close(FINISHED)
    run, journal = run_of(layout), Journal(layout, FINGERPRINT)
    assert (run.info.status, run.data.metrics) == (FINISHED, {"loss": 1.0})
    assert journal.pending() == [] and send_pending(layout) == {}
    assert [event["values"] for event, _ in journal.refused()] == 2 * [{"broken": "no number"}]
    assert caplog.text.count("MLflow refuses a part of the run") == 1
    for mend in (False, True, True):  # tried again by each visit, and kept
        runs, refused = check_mlflow_runs(Visit(layout=layout, mend=mend))
        assert (runs.state, refused.state) == (OK, WARNING)
        assert "refuses 2 events" in refused.detail and "server" not in refused.detail


def test_refused_event_that_is_accepted_later_is_recorded_by_the_doctor(layout):
    begun(layout).close(FINISHED)
    Journal(layout, FINGERPRINT).set_aside({"do": "metrics", "step": 1, "at": 1, "values": {"late": 3.0}}, "refused")
    assert [one.state for one in check_mlflow_runs(Visit(layout=layout, mend=True))] == [OK]
    assert run_of(layout).data.metrics == {"late": 3.0}
    assert Journal(layout, FINGERPRINT).is_delivered()


@pytest.mark.parametrize("trains", [True, False])
def test_deleted_experiment_is_restored_before_a_build(layout, trains, caplog):
    """The events of a build waited for ever, and the doctor asked whether the server was up
    (mlflow/mlflow#2690, mlflow/mlflow#6445)."""
    begun(layout, trains=trains).close(FINISHED)
    client = new_client(layout)
    client.delete_experiment(run_of(layout).info.experiment_id)
    tracker = begun(layout, trains=trains)
    tracker.metrics(1, {"loss": 1.0})
    tracker.close(FINISHED)
    assert run_of(layout).data.metrics == {"loss": 1.0}
    assert client.get_experiment_by_name("fine_tuning").lifecycle_stage == "active"
    assert "'fine_tuning' was deleted in MLflow; it was restored" in caplog.text
    assert Journal(layout, FINGERPRINT).is_delivered()


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_run_deleted_during_a_build_loses_no_event(layout, deleted):
    tracker = begun(layout)
    tracker.courier.stop()  # everything is delivered: what follows waits for the next delivery
    client, run = new_client(layout), run_of(layout).info
    if deleted == "run":
        client.delete_run(run.run_id)
    else:
        client.delete_experiment(run.experiment_id)
    tracker.metrics(1, {"loss": 1.0})
    tracker.journal.close(FINISHED)
    tracker.courier.delivery.send()
    tracker.journal.lock.release()
    assert run_of(layout).data.metrics == {"loss": 1.0}
    assert (run_of(layout).info.status, run_of(layout).info.lifecycle_stage) == (FINISHED, "active")
    assert Journal(layout, FINGERPRINT).is_delivered()


def test_doctor_tells_a_server_that_is_away_from_a_login_that_is_wrong(layout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:correct-horse-9@127.0.0.1:9")
    begun(layout).close(FINISHED)
    for mend in (True, False):
        _, away = check_mlflow_runs(Visit(layout=layout, mend=mend))
        assert away.state == WARNING and "start that server" in away.detail and "correct-horse" not in away.detail
    Journal(layout, FINGERPRINT).update(failure=[LOGIN, "401"])
    _, login = check_mlflow_runs(Visit(layout=layout, mend=False))
    assert "MLFLOW_TRACKING_PASSWORD" in login.detail


def test_reason_of_a_connection_that_failed_is_its_cause():
    words = "API request to http://host:9/api/x failed with exception HTTPConnectionPool(host='host', port=9): Max"
    refused = f'{words} retries exceeded (Caused by NewConnectionError("[Errno 111] Connection refused"))'
    assert reason_of(MlflowException(refused)) == "Connection refused"
    slow = "API request to http://host/x failed with timeout exception Read timed out. (read timeout=8)."
    assert reason_of(MlflowException(slow)) == "it did not answer in time"
    assert reason_of(MlflowException("the database is locked\nmore")) == "MlflowException: the database is locked"


def test_model_that_another_server_recorded_is_no_fault_of_the_build(layout):
    """After a change of MLFLOW_TRACKING_URI the journal of the training names a model that the new server lacks."""
    begun(layout, trains=True).close(FINISHED)
    Journal(layout, FINGERPRINT).update(models={"final": "m-0123456789abcdef0123456789abcdef"})
    model = Checkpoint(stage="finetune", directory=layout.store, fingerprint=FINGERPRINT, digest="d" * 32, rows=1)
    tracker = Tracker(layout=layout, asset="moods_evaluation", group="evaluation")
    tracker.started("e" * 32, {}, [model])
    tracker.scores(0, {"accuracy": 1.0}, model, None)
    tracker.close(FINISHED)
    assert new_client(layout).get_run(run_id_of(layout, "e" * 32)).data.metrics == {"accuracy": 1.0}
    assert Journal(layout, "e" * 32).is_delivered()
