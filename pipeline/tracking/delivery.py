"""Delivers the journals of builds to the MLflow server, during the build or later.

In: a journal (pipeline/tracking/journal.py). Out: one run per fingerprint in the experiment named after the asset's
group, with one unbroken curve: parameters, metrics, datasets, models, checkpoints, figures, system metrics.

A thread delivers every ten seconds and at every checkpoint, with one log_batch for up to a thousand points. A server
that is down does not delay the build: undelivered events wait for the next build or for `gristmill doctor`. What the
server refuses for good (refusals.py) is set aside with the reason, and the rest goes on. Points at or below the last
step that the server has for a metric are not sent again. mlflow is imported when the first event is delivered.
"""

import logging
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

from filelock import Timeout

from pipeline.store.layout import Layout
from pipeline.tracking.datasets import dataset_inputs
from pipeline.tracking.experiments import DESCRIPTION, experiment_id_of, restore_experiment
from pipeline.tracking.journal import FAILED, RUNNING, Event, Journal, journals, now_ms
from pipeline.tracking.logged_models import FINAL, RunModels, model_id_of, publish
from pipeline.tracking.names import LONGEST_PARAM, LONGEST_TAG, accepted_name, accepted_values
from pipeline.tracking.outage import is_awaited, note_answer, note_failure
from pipeline.tracking.refusals import AWAY, LOGIN, REFUSED, failure_of, is_missing, reason_of, send_all
from pipeline.tracking.server import new_client, shown_uri, tracking_uri

DELIVER_SECONDS = 10.0
RETRY_SECONDS = 30.0  # after a failure, so that a server that does not respond is not asked all the time
MOST_POINTS = 1000  # MLflow's limit per request
MOST_PARAMS = 100
WORDS = {  # what a failure means for a whole journal
    AWAY: "cannot record it now",
    LOGIN: "refuses the login",
    REFUSED: "refuses the run",
}
log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """Events of a journal that could not be delivered, and why."""

    n_events: int
    failure: str  # see refusals.py
    reason: str


class RunLost(Exception):
    """Somebody deleted the run, or its experiment, while events were delivered to it."""


class Courier(threading.Thread):
    """Delivers a journal during the build, and measures system metrics meanwhile."""

    def __init__(self, layout: Layout, journal: Journal):
        super().__init__(name=f"mlflow-{journal.fingerprint[:8]}", daemon=True)
        self.delivery = Delivery(layout, journal)
        self.layout = layout
        self.wake = threading.Event()
        self.stopping = threading.Event()

    def hurry(self) -> None:
        self.wake.set()

    def stop(self) -> None:
        self.stopping.set()
        self.wake.set()
        self.join()

    def run(self) -> None:
        next_sample = time.monotonic() + DELIVER_SECONDS
        while True:
            last = self.stopping.is_set()
            answered = not is_awaited(self.layout) and _delivered(self.delivery)
            if last:
                break
            self.wake.wait(DELIVER_SECONDS if answered else RETRY_SECONDS)
            self.wake.clear()
            if time.monotonic() >= next_sample and not self.stopping.is_set():
                next_sample = time.monotonic() + (DELIVER_SECONDS if self._measured() else math.inf)
        if answered:
            send_pending(self.layout)  # of earlier builds

    def _measured(self) -> bool:
        """Whether system metrics could be measured; a build continues without them."""
        try:
            self.delivery.sample_machine()
            return True
        except Exception as error:  # MLflow's monitors may raise anything, depending on the machine
            log.warning("no system metrics: %s", reason_of(error))
            return False


def _delivered(delivery: "Delivery") -> bool:
    """Whether all waiting events have reached the server. A build continues in any case."""
    layout, journal, begun = delivery.layout, delivery.journal, time.monotonic()
    try:
        delivery.send()
    except Exception as error:  # any error of the server or the network: the journal keeps all events
        failure, reason = failure_of(error), reason_of(error)
        if failure == AWAY:
            note_failure(layout, time.monotonic() - begun)
        journal.update(failure=[failure, reason])
        log.warning(
            "MLflow at %s %s (%s); the journal in %s is kept and sent later",
            *(shown_uri(layout), WORDS[failure], reason, journal.folder),
        )
        return False
    note_answer(layout)
    if "failure" in journal.state():
        journal.update(failure=None)
    return True


class Delivery:
    """Delivers one journal to the server, event by event."""

    def __init__(self, layout: Layout, journal: Journal):
        self.layout = layout
        self.journal = journal
        self.client: Any = None
        self.run_id = ""
        self.params: set[str] = set()  # names of the parameters that the server has
        self.last: dict[str, tuple[int, int]] = {}  # metric -> step and time of the last point that the server has
        self.models: Any = None  # only for a training
        self.machine: Any = None

    def send(self) -> None:
        if self.client is None:
            self._attach()
        for kind, group in groupby(self.journal.pending(), key=lambda item: item[1]["do"]):
            pending = list(group)
            for part in [pending] if kind == "metrics" else [[one] for one in pending]:
                self._deliver([event for _, event in part])
                self.journal.delivered(part[-1][0])
        self.journal.forget_delivered()

    def _deliver(self, events: Sequence[Event]) -> None:
        """Deliver events of one kind, several if they are metrics; to another run if somebody deleted this one."""
        try:
            self._attempt(events)
        except RunLost:
            self.client = None
            self._attach()
            self._attempt(events)

    def _attempt(self, events: Sequence[Event]) -> None:
        kind = events[0]["do"]
        try:
            if kind == "metrics":
                self._metrics(events)
            else:
                getattr(self, f"_{kind}")(events[0])
        except RunLost:
            raise
        except Exception as error:
            self._set_aside(events, error)

    def _set_aside(self, events: Sequence[Event], error: Exception) -> None:
        """Keep events that the server refuses for good; raises any other error, and RunLost."""
        if failure_of(error) != REFUSED:
            raise error
        if self._is_lost():
            raise RunLost(self.run_id) from error
        reason = reason_of(error)
        is_new = [self.journal.set_aside(event, reason) for event in events]
        if any(is_new):
            log.warning(
                "MLflow refuses a part of the run %r (%s); that part is missing there and is kept in %s, the rest is"
                " recorded",
                *(self.journal.state()["start"]["name"], reason, self.journal.folder),
            )

    def _is_lost(self) -> bool:
        """Whether somebody deleted the run, or its experiment, since this process found it."""
        try:
            return self.client.get_run(self.run_id).info.lifecycle_stage != "active"
        except Exception as error:
            if failure_of(error) != REFUSED:
                raise
            return True

    def sample_machine(self) -> None:
        """Append load and memory of this machine, under the names that MLflow's page expects."""
        if self.machine is None:
            self.machine = Machine(self.run_id, tracking_uri(self.layout), self.last)
        self.journal.append([{"do": "metrics", "at": now_ms(), **self.machine.sample()}])

    def _attach(self) -> None:
        """Find or create the run, log what it lacks, and read the last step of each of its curves."""
        client, state = new_client(self.layout), self.journal.state()
        start = state["start"]
        experiment_id = experiment_id_of(client, self.layout, start["experiment"])
        run = self._find_run(client, experiment_id)
        if run is None:
            tags = accepted_values(start["tags"], LONGEST_TAG)
            run = client.create_run(experiment_id, state["begun_at"], tags, start["name"])
            log.info("MLflow run %s for %s", run.info.run_id, start["name"])
        self.run_id, self.params = run.info.run_id, set(run.data.params)
        for name in run.data.metrics:
            points = client.get_metric_history(self.run_id, name)
            self.last[name] = max((point.step, point.timestamp) for point in points)
        self.journal.update(run_id=self.run_id, experiment_id=experiment_id)
        self.models = RunModels(client, self.layout, self.journal, run) if start["trains"] else None
        self.client = client
        try:
            self._log_start(run, start)
        except BaseException:
            self.client = None  # so that everything is tried again
            raise

    def _find_run(self, client: Any, experiment_id: str) -> Any | None:
        if known := self.journal.state().get("run_id"):
            try:
                run = client.get_run(known)
                return run if run.info.lifecycle_stage == "active" else None
            except Exception as error:
                if not is_missing(error):  # otherwise the database was deleted or replaced
                    raise
        wanted = f"tags.`gristmill.fingerprint` = '{self.journal.fingerprint}'"
        return next(iter(client.search_runs([experiment_id], wanted, max_results=1)), None)

    def _log_start(self, run: Any, start: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        description = {DESCRIPTION: start["description"]} if start["description"] else {}
        parent = Journal(self.layout, start["parent"]).state().get("run_id") if start.get("parent") else None
        child = {"mlflow.parentRunId": parent} if parent else {}
        values = accepted_values(description | run.data.tags | start["tags"] | child, LONGEST_TAG)
        send_all(
            [RunTag(key, value) for key, value in values.items()],
            lambda tags: self.client.log_batch(self.run_id, tags=tags),
            lambda tag, error: self._set_aside([{"do": "tag", "key": tag.key, "value": tag.value}], error),
        )
        self._params({"values": start["params"]})
        if self.journal.state()["status"] == RUNNING and run.info.status != RUNNING:
            self.client.update_run(self.run_id, status=RUNNING)  # it continues
        if not (run.inputs.dataset_inputs or run.inputs.model_inputs):
            self._attempt([{"do": "inputs"}])
        if self.models:
            self._attempt([{"do": "model"}])

    def _tag(self, event: Event) -> None:
        self.client.set_tag(self.run_id, event["key"], event["value"])

    def _inputs(self, event: Event) -> None:
        """Log the datasets and models that the build reads."""
        from mlflow.entities import LoggedModelInput

        start = self.journal.state()["start"]
        models = [self._model_id(fingerprint) for fingerprint in start["models"]]
        self.client.log_inputs(
            self.run_id,
            dataset_inputs(self.layout, start["datasets"], "training" if start["trains"] else "evaluation"),
            [LoggedModelInput(model_id) for model_id in models if model_id],
        )

    def _model(self, event: Event) -> None:
        """Create the model of a training, or continue it."""
        if self.models:
            self.models.begin(self.journal.state()["start"])

    def _params(self, event: Event) -> None:
        """Log the parameters that the server does not have; it accepts no second value."""
        from mlflow.entities import Param

        values = accepted_values(event["values"], LONGEST_PARAM)
        new = [Param(key, value) for key, value in values.items() if key not in self.params]
        for first in range(0, len(new), MOST_PARAMS):
            batch = new[first : first + MOST_PARAMS]
            send_all(
                batch,
                lambda params: self.client.log_batch(self.run_id, params=params),
                lambda param, error: self._set_aside([{"do": "params", "values": {param.key: param.value}}], error),
            )
            self.params |= {param.key for param in batch}
        if new and self.models and (model := self.models.get(FINAL)) is not None:
            known = model.params or {}
            self.client.log_model_params(model.model_id, {p.key: p.value for p in new if p.key not in known})

    def _metrics(self, events: Sequence[Event], **of: str | None) -> None:
        """New points; `of` names the model and the dataset that they belong to, if any.

        Points that the run already has keep their time, by which MLflow recognises them.
        """
        from mlflow.entities import Metric

        points, last = [], dict(self.last)
        for event in events:
            for original, value in event["values"].items():
                name = accepted_name(original)
                step, at = last.get(name, (-1, 0))
                if event["step"] > step:
                    last[name] = event["step"], event["at"]
                    points.append(Metric(name, value, event["at"], event["step"], **of))
                elif of and event["step"] == step:
                    points.append(Metric(name, value, at, step, **of))
        for first in range(0, len(points), MOST_POINTS):
            batch = points[first : first + MOST_POINTS]
            of_names = [[point for point in batch if point.key == name] for name in {p.key: 0 for p in batch}]
            send_all(
                of_names,
                lambda curves: self.client.log_batch(self.run_id, metrics=[p for one in curves for p in one]),
                self._refuse_points,
            )
            self.last.update({point.key: (point.step, point.timestamp) for point in batch})

    def _refuse_points(self, points: Sequence[Any], error: Exception) -> None:
        whole = [(one.step, one.timestamp, {one.key: one.value}) for one in points]
        self._set_aside([{"do": "metrics", "step": step, "at": at, "values": one} for step, at, one in whole], error)

    def _scores(self, event: Event) -> None:
        model_id = self._model_id(event["model"])
        self._metrics([event], model_id=model_id, **_measured_on(event["datasets"]))

    def _checkpoint(self, event: Event) -> None:
        if self.models:
            described = self.journal.state()["start"]["datasets"]
            self._metrics([event], model_id=self.models.checkpoint(event), **_measured_on(described))

    def _artifact(self, event: Event) -> None:
        path = self.layout.data / event["path"]
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), event["folder"] or None)
        elif path.exists():
            self.client.log_artifact(self.run_id, str(path), event["folder"] or None)
        else:
            log.warning("%s was removed before MLflow could store it", path)

    def _model_file(self, event: Event) -> None:
        path = self.layout.data / event["path"]
        model = self.models.get(FINAL if event["step"] is None else str(event["step"])) if self.models else None
        if model is None or not path.exists():
            log.warning("%s was removed before MLflow could store it", path)
        elif path.is_dir():
            self.client.log_model_artifacts(model.model_id, str(path), event["folder"] or None)
        else:
            self.client.log_model_artifact(model.model_id, str(path), event["folder"] or None)

    def _describe(self, event: Event) -> None:
        self.client.set_tag(self.run_id, DESCRIPTION, event["text"])

    def _register(self, event: Event) -> None:
        from pipeline.tracking.registry import register

        self._model_id(event["fingerprint"])
        register(self.client, self.layout, self.run_id, event)

    def _publish(self, event: Event) -> None:
        if (model_id := self._model_id(event["model"])) is None:
            log.warning("%s is not registered, because MLflow does not have the model", event["name"])
        else:
            publish(self.client, self.layout, model_id, event)

    def _end(self, event: Event) -> None:
        if self.models:
            self.models.end(event["status"])
        self.client.set_terminated(self.run_id, event["status"], event["at"])

    def _model_id(self, fingerprint: str) -> str | None:
        """LoggedModel of a training, whose own journal is delivered first if it waits."""
        if fingerprint != self.journal.fingerprint and not model_id_of(self.layout, fingerprint):
            journal = Journal(self.layout, fingerprint)
            if journal.pending():
                with suppress(Timeout), journal.lock.acquire(timeout=0):
                    Delivery(self.layout, journal).send()
        if not (model_id := model_id_of(self.layout, fingerprint)):
            return None
        try:
            restore_experiment(self.client, self.client.get_logged_model(model_id).experiment_id)
        except Exception as error:
            if not is_missing(error):  # otherwise it was recorded by another server, or deleted
                raise
            return None
        return model_id


class Machine:
    """Measures processor, memory, disk, network and GPUs by MLflow's monitors, for the journal.

    The monitor's own thread is not started: it sends to the server by itself, and ends when the server is down.
    """

    def __init__(self, run_id: str, uri: str, last: Mapping[str, tuple[int, int]]):
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
        self.step = max((step for name, (step, _) in last.items() if name.startswith("system/")), default=-1)

    def sample(self) -> dict[str, Any]:
        self.step += 1
        self.monitor.collect_metrics()
        values = {f"system/{name}": float(value) for name, value in self.monitor.aggregate_metrics().items()}
        for one in self.monitor.monitors:
            one.clear_metrics()
        return {"step": self.step, "values": values}


def _measured_on(described: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The MLflow dataset of a metric; none if the event has no description."""
    return (
        {"dataset_name": one["name"], "dataset_digest": one["digest"]} if (one := next(iter(described), None)) else {}
    )


def send_pending(layout: Layout, *, retry_refused: bool = False) -> dict[str, Waiting]:
    """Deliver what builds could not deliver, and what was refused, if asked for. Returns what still waits."""
    waiting: dict[str, Waiting] = {}
    for journal in journals(layout):
        with suppress(Timeout), journal.lock.acquire(timeout=0):  # a running build delivers by itself
            if retry_refused:
                journal.try_refused_again()
            if not journal.pending():
                continue
            is_away = any(one.failure == AWAY for one in waiting.values())
            if is_away or not _delivered(Delivery(layout, journal)):
                first = next(iter(waiting.values()), None) if is_away else None
                found = _waiting(journal)
                waiting[journal.fingerprint] = found if first is None else first._replace(n_events=found.n_events)
    return waiting


def waiting_events(layout: Layout) -> dict[str, Waiting]:
    """Fingerprint -> what waits of a closed build, and why, without an attempt to deliver it."""
    return {
        journal.fingerprint: _waiting(journal)
        for journal in journals(layout)
        if journal.state()["status"] != RUNNING and journal.pending()
    }


def _waiting(journal: Journal) -> Waiting:
    failure, reason = journal.state().get("failure") or (AWAY, "the server did not answer")
    return Waiting(len(journal.pending()), failure, reason)


def dead_runs(layout: Layout, closed_hosts: Collection[str] = ()) -> list[str]:
    """Fingerprints of tracked builds that are open although no process works on them."""
    return [journal.fingerprint for journal in journals(layout) if journal.is_abandoned(closed_hosts)]


def end_dead_runs(
    layout: Layout, status: str = FAILED, dagster_run_id: str | None = None, closed_hosts: Collection[str] = ()
) -> list[str]:
    """Close the runs of dead builds (of one Dagster run, if given) and deliver. Returns their fingerprints."""
    ended = []
    for journal in journals(layout):
        mine = dagster_run_id in (None, journal.state()["start"]["tags"].get("dagster.run_id"))
        if mine and journal.close_abandoned(status, closed_hosts):
            ended.append(journal.fingerprint)
    if ended:
        send_pending(layout)
    return ended
