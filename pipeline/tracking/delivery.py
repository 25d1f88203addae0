"""Delivers the journals of builds to the MLflow server, during the build or later.

In: a journal (pipeline/tracking/journal.py). Out: one run per fingerprint in the experiment named after the asset's
group, with one unbroken curve: parameters, metrics, datasets, models, checkpoints, figures, system metrics.

A thread delivers every ten seconds and at every checkpoint, with one log_batch for up to a thousand points. A server
that is down does not delay the build: undelivered events wait for the next build or for `gristmill doctor`. Points at
or below the last step that the server has for a metric are not sent again. mlflow is imported when the first event is
delivered.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from filelock import Timeout

from pipeline.store.layout import Layout
from pipeline.tracking.datasets import dataset_inputs
from pipeline.tracking.experiments import DESCRIPTION, experiment_id_of
from pipeline.tracking.journal import FAILED, RUNNING, Event, Journal, journals, now_ms
from pipeline.tracking.logged_models import FINAL, RunModels, model_id_of, publish
from pipeline.tracking.server import new_client, tracking_uri

DELIVER_SECONDS = 10.0
RETRY_SECONDS = 30.0  # after a failure, so that a server that does not respond is not asked all the time
MOST_POINTS = 1000  # MLflow's limit per request
MOST_PARAMS = 100
log = logging.getLogger(__name__)


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
            answered = _delivered(self.delivery)
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
            log.warning("no system metrics: %s: %s", type(error).__name__, error)
            return False


def _delivered(delivery: "Delivery") -> bool:
    """Whether all waiting events have reached the server. A build continues in any case."""
    try:
        delivery.send()
        return True
    except Exception as error:  # any error of the server or the network: the journal keeps all events
        first_line = (str(error).splitlines() or [""])[0]
        log.warning(
            "MLflow at %s did not accept the journal in %s (%s: %s); it is kept and sent later",
            tracking_uri(delivery.layout),
            delivery.journal.folder,
            type(error).__name__,
            first_line,
        )
        return False


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
            events = list(group)
            if kind == "metrics":
                self._metrics([event for _, event in events])
                self.journal.delivered(events[-1][0])
                continue
            for position, event in events:
                getattr(self, f"_{kind}")(event)
                self.journal.delivered(position)
        self.journal.forget_delivered()

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
            run = client.create_run(experiment_id, state["begun_at"], start["tags"], start["name"])
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
        from mlflow.exceptions import MlflowException

        if known := self.journal.state().get("run_id"):
            with suppress(MlflowException):  # the database was deleted or replaced
                run = client.get_run(known)
                return run if run.info.lifecycle_stage == "active" else None
        wanted = f"tags.`gristmill.fingerprint` = '{self.journal.fingerprint}'"
        return next(iter(client.search_runs([experiment_id], wanted, max_results=1)), None)

    def _log_start(self, run: Any, start: Mapping[str, Any]) -> None:
        from mlflow.entities import LoggedModelInput, RunTag

        description = {DESCRIPTION: start["description"]} if start["description"] else {}
        parent = Journal(self.layout, start["parent"]).state().get("run_id") if start.get("parent") else None
        child = {"mlflow.parentRunId": parent} if parent else {}
        tags = [RunTag(key, value) for key, value in (description | run.data.tags | start["tags"] | child).items()]
        self.client.log_batch(self.run_id, tags=tags)
        self._params({"values": start["params"]})
        if self.journal.state()["status"] == RUNNING and run.info.status != RUNNING:
            self.client.update_run(self.run_id, status=RUNNING)  # it continues
        if not (run.inputs.dataset_inputs or run.inputs.model_inputs):
            context = "training" if start["trains"] else "evaluation"
            models = [self._model_id(fingerprint) for fingerprint in start["models"]]
            self.client.log_inputs(
                self.run_id,
                dataset_inputs(self.layout, start["datasets"], context),
                [LoggedModelInput(model_id) for model_id in models if model_id],
            )
        if self.models:
            self.models.begin(start)

    def _params(self, event: Event) -> None:
        """Log the parameters that the server does not have; it accepts no second value."""
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in event["values"].items() if key not in self.params]
        for first in range(0, len(new), MOST_PARAMS):
            batch = new[first : first + MOST_PARAMS]
            self.client.log_batch(self.run_id, params=batch)
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
            for name, value in event["values"].items():
                step, at = last.get(name, (-1, 0))
                if event["step"] > step:
                    last[name] = event["step"], event["at"]
                    points.append(Metric(name, value, event["at"], event["step"], **of))
                elif of and event["step"] == step:
                    points.append(Metric(name, value, at, step, **of))
        for first in range(0, len(points), MOST_POINTS):
            batch = points[first : first + MOST_POINTS]
            self.client.log_batch(self.run_id, metrics=batch)
            self.last.update({point.key: (point.step, point.timestamp) for point in batch})

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
        return model_id_of(self.layout, fingerprint)


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


def send_pending(layout: Layout) -> dict[str, int]:
    """Deliver what builds could not deliver. Returns fingerprint -> events that still wait."""
    waiting = {}
    for journal in journals(layout):
        with suppress(Timeout), journal.lock.acquire(timeout=0):  # a running build delivers by itself
            if journal.pending() and not _delivered(Delivery(layout, journal)):
                waiting[journal.fingerprint] = len(journal.pending())
    return waiting


def dead_runs(layout: Layout) -> list[str]:
    """Fingerprints of tracked builds that are open although no process works on them."""
    return [journal.fingerprint for journal in journals(layout) if journal.is_abandoned()]


def end_dead_runs(layout: Layout, status: str = FAILED, dagster_run_id: str | None = None) -> list[str]:
    """Close the runs of dead builds (of one Dagster run, if given) and deliver. Returns their fingerprints."""
    ended = []
    for journal in journals(layout):
        mine = dagster_run_id in (None, journal.state()["start"]["tags"].get("dagster.run_id"))
        if mine and journal.close_abandoned(status):
            ended.append(journal.fingerprint)
    if ended:
        send_pending(layout)
    return ended
