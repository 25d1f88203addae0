"""Reports a build to MLflow: every call appends an event to the journal of the build.

In: the calls of an observer (pipeline/store/store.py), and artifacts for the run. Out: a journal, and a thread
(pipeline/tracking/delivery.py) that delivers it to the server during the build.
"""

import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Handle
from pipeline.store.store import code_commit, literals
from pipeline.tracking.datasets import asset_of, datasets
from pipeline.tracking.delivery import Courier
from pipeline.tracking.journal import Event, Journal, now_ms, this_process
from pipeline.tracking.names import LONGEST_DESCRIPTION, LONGEST_TAG, accepted_name, cut_value

WEIGHTS, COMPLETE = "model.safetensors", "complete.json"  # of a checkpoint; see model/training/checkpoint.py


@dataclass(kw_only=True, slots=True)
class Tracker:
    """The observer of one build, which is one MLflow run; a training makes a LoggedModel of the same name."""

    layout: Layout
    asset: str
    group: str  # name of the MLflow experiment
    run_name: str = ""  # if empty, the last part of the name of the asset
    trains: bool = False  # whether the build trains a model; otherwise it evaluates models or data
    description: str = ""  # Markdown at the top of the page of the run
    parent: str = ""  # fingerprint of the build whose run this one is a child of
    tags: Mapping[str, str] = field(default_factory=dict)
    journal: Journal | None = None
    courier: "Courier | None" = None
    registrations: list[Event] = field(default_factory=list)
    ended_at: int | None = None  # milliseconds since 1970; None = when the tracker is closed

    def started(
        self,
        fingerprint: str,
        params: Mapping[str, object],
        inputs: Sequence[Handle],
        times: tuple[int, int] | None = None,
    ) -> None:
        """Open the run, or continue the one that an earlier process began. A second call has no effect.

        `times` are start and end of a build that has already ended, in milliseconds since 1970.
        """
        if self.journal is not None:
            return
        begun_at, self.ended_at = times or (None, None)
        self.journal = Journal(self.layout, fingerprint)
        self.journal.open(
            {
                "name": self.run_name or self.asset.rpartition("/")[2],  # MLflow refuses models with / in their names
                "experiment": self._experiment(),
                "trains": self.trains,
                "parent": self.parent,
                "params": flat(literals(params)),
                "tags": {
                    **dict(source_tags(f"gristmill {self.tags.get('gristmill.stage', self.asset)}")),
                    **self.tags,
                    "gristmill.asset": self.asset,
                    "gristmill.fingerprint": fingerprint,
                    **{f"gristmill.{key}": str(value) for key, value in this_process().items()},
                },
                "description": shortened(self.description),
                "datasets": datasets(self.layout, inputs),
                "models": [one.fingerprint for one in inputs if isinstance(one, Checkpoint)],
            },
            begun_at,
        )
        self.courier = Courier(self.layout, self.journal)
        self.courier.start()

    def _experiment(self) -> str:
        """The group of the parent, because MLflow shows children only below a run of the same experiment."""
        start = Journal(self.layout, self.parent).state().get("start", {}) if self.parent else {}
        return start.get("experiment", self.group)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log points of the curves of this run."""
        self._note({"do": "metrics", "step": step, "at": now_ms(), "values": dict(values)})

    def scores(self, step: int, values: Mapping[str, float], model: Checkpoint, data: Handle | None) -> None:
        """Log metrics of a model, measured on `data`, which the page of the model shows too."""
        self._note(
            {
                "do": "scores",
                "step": step,
                "at": self.ended_at or now_ms(),
                "values": dict(values),
                "model": model.fingerprint,
                "datasets": [] if data is None else [{"name": asset_of(self.layout, data), "digest": data.digest}],
            }
        )

    def params(self, values: Mapping[str, object]) -> None:
        """Log constants that are only known now, as parameters of the run and of its model, if any."""
        self._note({"do": "params", "values": flat(literals(values))})

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None:
        """Log a checkpoint by path and hash, and start delivery of all events up to it."""
        files = json.loads((path / COMPLETE).read_text("utf-8"))["files"]
        about = {"path": self._relative(path), "sha256": files[WEIGHTS]["sha256"], "values": dict(values)}
        self._note({"do": "checkpoint", "step": step, "at": now_ms(), **about})
        if self.courier:
            self.courier.hurry()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files of a folder, as artifacts of the run."""
        self._note({"do": "artifact", "path": self._relative(path), "folder": folder})

    def model_file(self, path: Path, folder: str = "", step: int | None = None) -> None:
        """Log a file, or all files of a folder, as artifacts of the model of this build, or of its checkpoint of
        `step`."""
        self._note({"do": "model_file", "path": self._relative(path), "folder": folder, "step": step})

    def tag(self, values: Mapping[str, str]) -> None:
        """Set tags of the run that are only known now."""
        for key, value in values.items():
            self._note({"do": "tag", "key": accepted_name(key), "value": cut_value(value, LONGEST_TAG)})

    def describe(self, text: str) -> None:
        """Set the description at the top of the page of the run, as Markdown."""
        self._note({"do": "describe", "text": shortened(text)})

    def register(self, **event: Any) -> None:
        """Register a fine-tuned model when the run has ended; `event` comes from registry.Candidate."""
        self.registrations.append({"do": "register", **event})

    def publish(self, model: Checkpoint, scores: Mapping[str, float], description: str) -> None:
        """Register a foundation model when the run has ended."""
        name = f"gristmill-{asset_of(self.layout, model)}"
        tags = {f"gristmill.{metric}": str(value) for metric, value in scores.items()}
        event = {"name": name, "model": model.fingerprint, "tags": tags, "description": shortened(description)}
        self.registrations.append({"do": "publish", **event})

    def close(self, status: str) -> None:
        """End the run, and wait until the journal is delivered or one more attempt has failed."""
        if self.journal is None or self.courier is None:
            return
        self.journal.close(status, self.ended_at, self.registrations)
        self.courier.stop()
        self.journal.lock.release()
        self.journal = self.courier = None

    def _relative(self, path: Path) -> str:
        """The path relative to the data folder, which may be moved before the event is delivered."""
        return str(path.relative_to(self.layout.data) if path.is_relative_to(self.layout.data) else path)

    def _note(self, event: Event) -> None:
        if self.journal is None:
            raise RuntimeError(f"{self.asset}: nothing can be reported before `started`")
        self.journal.append([event])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: joined names, values as text."""
    pairs: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return pairs


def shortened(text: str) -> str:
    """The first lines of a long text, up to the length of a description in MLflow."""
    return text if len(text) <= LONGEST_DESCRIPTION else text[:LONGEST_DESCRIPTION].rpartition("\n")[0]


def source_tags(source: str) -> Iterator[tuple[str, str]]:
    """The tags with which MLflow shows source, commit and user of a run."""
    yield "mlflow.source.name", source
    yield "mlflow.source.type", "LOCAL"
    if commit := code_commit():
        yield "mlflow.source.git.commit", commit
    with suppress(KeyError, OSError):  # the user has no name, as in some containers
        yield "mlflow.user", getpass.getuser()
