"""MLflow: one run a built model or evaluation, found again by its fingerprint, with one unbroken curve.

In: what a build tells its observer. Out: an MLflow run in the experiment named after the asset's group: parameters,
curve, system metrics, dataset inputs, checkpoints, weights, figures, and registered models.

A build only appends to its journal (pipeline/tracking/journal.py). A thread delivers every ten seconds and at every
checkpoint, with one log_batch for up to a thousand points; a server that is away costs the build nothing, and what
could not be delivered waits for the next build or for `gristmill doctor`. Points at or below the last step that
the server has for a metric are not sent again. mlflow is imported when the first event is delivered.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import Timeout

from pipeline.store.layout import Layout
from pipeline.tracking.journal import FAILED, RUNNING, Event, Journal, journals, now_ms
from pipeline.tracking.server import new_client, tracking_uri

DELIVER_SECONDS = 10.0
RETRY_SECONDS = 30.0  # after a failure, so that a server that hangs is not asked all the time
MOST_POINTS = 1000  # that MLflow takes at once
MOST_PARAMS = 100
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as a run's description, as Markdown
log = logging.getLogger(__name__)


class Courier(threading.Thread):
    """Delivers a journal while the build goes on, and measures the machine meanwhile."""

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
            send_pending(self.layout)  # what earlier builds could not deliver

    def _measured(self) -> bool:
        """Whether the state of the machine could be read; a build goes on without it."""
        try:
            self.delivery.sample_machine()
            return True
        except Exception as error:  # of MLflow's monitors, whatever this machine does to them
            log.warning("no system metrics: %s: %s", type(error).__name__, error)
            return False


def _delivered(delivery: "Delivery") -> bool:
    """Whether everything that waits has reached the server. A build goes on without it in any case."""
    try:
        delivery.send()
        return True
    except Exception as error:  # whatever goes wrong at or on the way to the server: the journal keeps it all
        first_line = (str(error).splitlines() or [""])[0]
        log.warning(
            "MLflow at %s did not take the journal in %s (%s: %s); it is kept and sent later",
            tracking_uri(delivery.layout),
            delivery.journal.folder,
            type(error).__name__,
            first_line,
        )
        return False


class Delivery:
    """Brings one journal to the server, each event in its turn."""

    def __init__(self, layout: Layout, journal: Journal):
        self.layout = layout
        self.journal = journal
        self.client: Any = None
        self.run_id = ""
        self.last_steps: dict[str, int] = {}  # metric -> last step that the server has
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
        if self.journal.state()["status"] != RUNNING:
            self.journal.forget_delivered()

    def sample_machine(self) -> None:
        """Append load and memory of this machine, under the names by which MLflow's page knows them."""
        if self.machine is None:
            self.machine = Machine(self.last_steps)
        self.journal.append([{"do": "metrics", "at": now_ms(), **self.machine.sample()}])

    def _attach(self) -> None:
        """Find or make the run, log what is not there yet, and learn how far its curves have come."""
        client, state = new_client(self.layout), self.journal.state()
        start = state["start"]
        experiment_id = _experiment(client, self.layout, start["experiment"])
        run = self._find_run(client, experiment_id)
        if run is None:
            run = client.create_run(experiment_id, state["begun_at"], start["tags"], start["name"])
            log.info("MLflow run %s for %s", run.info.run_id, start["name"])
        self.run_id = run.info.run_id
        self._log_start(client, run, start)
        self.last_steps = {
            name: max(point.step for point in client.get_metric_history(self.run_id, name))
            for name in run.data.metrics
        }
        self.journal.update(run_id=self.run_id, experiment_id=experiment_id)
        self.client = client

    def _find_run(self, client: Any, experiment_id: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        if known := self.journal.state().get("run_id"):
            with suppress(MlflowException):  # its database was deleted or replaced
                run = client.get_run(known)
                return run if run.info.lifecycle_stage == "active" else None
        wanted = f"tags.`gristmill.fingerprint` = '{self.journal.fingerprint}'"
        return next(iter(client.search_runs([experiment_id], wanted, max_results=1)), None)

    def _log_start(self, client: Any, run: Any, start: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        new = [Param(key, value) for key, value in start["params"].items() if key not in run.data.params]
        tags = [RunTag(key, value) for key, value in start["tags"].items()]
        for first in range(0, max(len(new), 1), MOST_PARAMS):
            client.log_batch(self.run_id, params=new[first : first + MOST_PARAMS], tags=tags)
        if self.journal.state()["status"] == RUNNING and run.info.status != RUNNING:
            client.update_run(self.run_id, status=RUNNING)  # it goes on
        if start["inputs"] and not run.inputs.dataset_inputs:
            inputs = [
                DatasetInput(
                    Dataset(
                        name=one["name"],
                        digest=one["digest"],
                        source_type="local",
                        source=_json({"uri": Path(one["source"]).as_uri()}),
                        profile=_json(one["profile"]),
                    ),
                    tags=[InputTag("mlflow.data.context", start["experiment"])],
                )
                for one in start["inputs"]
            ]
            client.log_inputs(self.run_id, inputs)

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        points, last_steps = [], dict(self.last_steps)
        for event in events:
            for name, value in event["values"].items():
                if event["step"] > last_steps.get(name, -1):
                    last_steps[name] = event["step"]
                    points.append(Metric(name, value, event["at"], event["step"]))
        for first in range(0, len(points), MOST_POINTS):
            batch = points[first : first + MOST_POINTS]
            self.client.log_batch(self.run_id, metrics=batch)
            self.last_steps.update({point.key: point.step for point in batch})

    def _checkpoint(self, event: Event) -> None:
        """All checkpoints so far as one table."""
        entries = {entry["step"]: entry for entry in self.journal.state().get("checkpoints", [])}
        entries[event["step"]] = {key: value for key, value in event.items() if key != "do"}
        in_order = [entries[step] for step in sorted(entries)]
        self.journal.update(checkpoints=in_order)
        self.client.log_text(self.run_id, _json(in_order), "checkpoints.json")

    def _artifact(self, event: Event) -> None:
        path = Path(event["path"])
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), event["folder"] or None)
        elif path.exists():
            self.client.log_artifact(self.run_id, str(path), event["folder"] or None)
        else:
            log.warning("%s was removed before MLflow could take it", path)

    def _describe(self, event: Event) -> None:
        self.client.set_tag(self.run_id, DESCRIPTION, event["text"])

    def _register(self, event: Event) -> None:
        from pipeline.tracking.registry import register

        register(self.client, self.layout, self.run_id, event)

    def _end(self, event: Event) -> None:
        self.client.set_terminated(self.run_id, event["status"], event["at"])


class Machine:
    """MLflow's own monitors: processor, memory, disk, network, and GPUs where NVIDIA's library is installed."""

    def __init__(self, last_steps: Mapping[str, int]):
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no device
            self.monitors.append(GPUMonitor())
        self.step = max((step for name, step in last_steps.items() if name.startswith("system/")), default=-1)

    def sample(self) -> dict[str, Any]:
        self.step += 1
        values = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return {"step": self.step, "values": values}


def _experiment(client: Any, layout: Layout, name: str) -> str:
    if experiment := client.get_experiment_by_name(name):
        return experiment.experiment_id
    local = tracking_uri(layout).startswith("sqlite:")
    folder = layout.mlflow / "artifacts" / name
    return client.create_experiment(name, artifact_location=folder.as_uri() if local else None)


def send_pending(layout: Layout) -> dict[str, int]:
    """Deliver what builds could not deliver. Returns fingerprint -> events that still wait."""
    waiting = {}
    for journal in journals(layout):
        with suppress(Timeout), journal.lock.acquire(timeout=0):  # of a build that runs: it delivers by itself
            if journal.pending() and not _delivered(Delivery(layout, journal)):
                waiting[journal.fingerprint] = len(journal.pending())
    return waiting


def dead_runs(layout: Layout) -> list[str]:
    """Fingerprints of tracked builds that are open though nobody works on them."""
    return [journal.fingerprint for journal in journals(layout) if journal.is_abandoned()]


def end_dead_runs(layout: Layout, status: str = FAILED, dagster_run_id: str | None = None) -> list[str]:
    """Close the runs of dead builds (of one Dagster run, if given) and deliver. Returns their fingerprints."""
    ended = []
    for journal in journals(layout):
        mine = dagster_run_id in (None, journal.state()["start"]["tags"].get("dagster.run_id"))
        if mine and journal.is_abandoned():
            journal.close(status)
            ended.append(journal.fingerprint)
    if ended:
        send_pending(layout)
    return ended


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)
