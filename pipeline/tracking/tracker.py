"""What a build reports to MLflow, written to the journal first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.store.layout import Layout
from pipeline.store.records import Handle
from pipeline.store.store import literals
from pipeline.tracking.delivery import Courier
from pipeline.tracking.journal import Event, Journal, now_ms, this_process

LONGEST_PARAM = 6000  # characters, a limit of MLflow's
LONGEST_DESCRIPTION = 5000  # characters; MLflow takes no tag much longer
WEIGHTS, COMPLETE = "model.safetensors", "complete.json"  # of a checkpoint; see model/checkpoint.py


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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's parameters: joined names, values as text."""
    pairs: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)[:LONGEST_PARAM]}
    return pairs
