"""MLflow: one run a built model or evaluation, found again by its fingerprint, with one unbroken curve.

In: what a build tells its observer. Out: an MLflow run in the experiment named after the asset's group: parameters,
curve, system metrics, dataset inputs, checkpoints, weights, figures, and registered models.

A build only appends to its journal (pipeline/journal.py). A thread delivers every ten seconds and at every
checkpoint, with one log_batch for up to a thousand points; a server that is away costs the build nothing, and what
could not be delivered waits for the next build or for `gristmill doctor`. Points at or below the last step that
the server has for a metric are not sent again. mlflow is imported when the first event is delivered.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import Timeout

from pipeline.journal import FAILED, FINISHED, RUNNING, Event, Journal, journals, now_ms, this_process
from pipeline.layout import Layout
from pipeline.stages.records import Handle
from pipeline.stages.store import literals

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DELIVER_SECONDS = 10.0
RETRY_SECONDS = 30.0  # after a failure, so that a server that hangs is not asked all the time
MOST_POINTS = 1000  # that MLflow takes at once
MOST_PARAMS = 100
LONGEST_PARAM = 6000  # characters, a limit of MLflow's
LONGEST_DESCRIPTION = 5000  # characters; MLflow takes no tag much longer
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow shows as a run's description, as Markdown
WEIGHTS, COMPLETE = "model.safetensors", "complete.json"  # of a checkpoint; see model/checkpoint.py
log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Tracker:
    """The observer of one build: what a training stage tells it goes to the journal of the build's fingerprint."""

    layout: Layout
    asset: str
    group: str  # name of the MLflow experiment
    run_name: str = ""  # else the name of the asset
    tags: Mapping[str, str] = field(default_factory=dict)
    journal: Journal | None = None
    courier: "Courier | None" = None
    registrations: list[Event] = field(default_factory=list)

    def started(self, fingerprint: str, params: Mapping[str, object], inputs: Sequence[Handle]) -> None:
        """Open the run, or go on with the one that an earlier process began. A second call changes nothing."""
        if self.journal is not None:
            return
        self.journal = Journal(self.layout, fingerprint)
        self.journal.open(
            {
                "name": self.run_name or self.asset,
                "experiment": self.group,
                "params": flat(literals(params)),
                "tags": {
                    **self.tags,
                    "gristmill.asset": self.asset,
                    "gristmill.fingerprint": fingerprint,
                    **{f"gristmill.{key}": str(value) for key, value in this_process().items()},
                },
                "inputs": [
                    {
                        "name": one.stage,
                        "digest": one.digest,
                        "source": str(one.directory),
                        "profile": {"rows": one.rows, "fingerprint": one.fingerprint},
                    }
                    for one in inputs
                ],
            }
        )
        self.courier = Courier(self.layout, self.journal)
        self.courier.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._tell([{"do": "metrics", "step": step, "at": now_ms(), "values": dict(values)}])

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        """Note a checkpoint by path and hash, and have everything up to it delivered."""
        files = json.loads((path / COMPLETE).read_text())["files"]
        entry = {"step": step, "path": str(path), "sha256": files[WEIGHTS]["sha256"], "values": dict(values)}
        self._tell([{"do": "checkpoint", **entry}])
        if self.courier:
            self.courier.hurry()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file, or all files of a folder, with the run."""
        self._tell([{"do": "artifact", "path": str(path), "folder": folder}])

    def describe(self, text: str) -> None:
        """What the page of the run says first, as Markdown; of a long text the lines that MLflow takes."""
        if len(text) > LONGEST_DESCRIPTION:
            text = text[:LONGEST_DESCRIPTION].rpartition("\n")[0]
        self._tell([{"do": "describe", "text": text}])

    def register(self, **event: Any) -> None:
        """Register a model once the run has ended; `event` is made by registry.Candidate."""
        self.registrations.append({"do": "register", **event})

    def close(self, status: str) -> None:
        """End the run and wait until the journal is delivered, or the server was asked in vain once more."""
        if self.journal is None or self.courier is None:
            return
        self.journal.close(status)
        self.journal.append(self.registrations)  # last, so that one that fails keeps nothing else waiting
        self.courier.stop()
        self.journal.lock.release()
        self.journal = self.courier = None

    def _tell(self, events: list[Event]) -> None:
        if self.journal is None:
            raise RuntimeError(f"{self.asset}: nothing can be tracked before `started`")
        self.journal.append(events)


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
        from pipeline.registry import register

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


def tracking_uri(layout: Layout) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file below the data folder."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{layout.mlflow / 'mlflow.db'}"


def new_client(layout: Layout) -> Any:
    """A client that gives up soon: a server that is away must not hold anybody up."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else a line for each of 50 migrations
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(layout)
    return mlflow.MlflowClient(uri, uri)


@contextmanager
def chosen_server(layout: Layout) -> Iterator[Any]:
    """mlflow for the calls that take no client: they ask the server that is set for the whole process."""
    import mlflow

    before = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(tracking_uri(layout))
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes the variable away again


def _experiment(client: Any, layout: Layout, name: str) -> str:
    if experiment := client.get_experiment_by_name(name):
        return experiment.experiment_id
    local = tracking_uri(layout).startswith("sqlite:")
    folder = layout.mlflow / "artifacts" / name
    return client.create_experiment(name, artifact_location=folder.as_uri() if local else None)


def run_id_of(layout: Layout, fingerprint: str) -> str | None:
    """MLflow run of a build, None where none was made or the server has not answered yet."""
    return Journal(layout, fingerprint).state().get("run_id")


def is_finished(layout: Layout, fingerprint: str) -> bool:
    """Whether the journal of a build is closed as finished; what waits for the server in it goes out by itself."""
    return Journal(layout, fingerprint).state().get("status") == FINISHED


def run_url(layout: Layout, fingerprint: str) -> str | None:
    """Page of the run in MLflow's view for model training."""
    state = Journal(layout, fingerprint).state()
    if not state.get("run_id"):
        return None
    uri = tracking_uri(layout)
    server = uri if uri.startswith("http") else os.environ.get("GRISTMILL_MLFLOW_URL", "http://127.0.0.1:5000")
    return (
        f"{server.rstrip('/')}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
        "?workflowType=machine_learning"
    )


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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: joined names, values as text."""
    pairs: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)[:LONGEST_PARAM]}
    return pairs


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)
