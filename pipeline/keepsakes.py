"""What of a finished build is kept with its MLflow run: weights, curve, results, figures.

In: a tracker and a finished Checkpoint or Report. Out: metrics and artifacts in the tracker's journal. An output
that was found finished, and whose run was closed as finished, is left alone: that makes no second run.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.config import BEST
from pipeline.pictures import write_curve
from pipeline.registry import Candidate
from pipeline.stages.records import Checkpoint, Handle
from pipeline.stages.store import Built
from pipeline.tracking import Tracker, is_finished

WEIGHTS, VALUES = "model.safetensors", "values.json"


def keep_results(
    tracker: Tracker, built: Built, inputs: Sequence[Handle], candidate: Candidate | None = None
) -> None:
    """`candidate` is the model that a Report judges, where it is to be registered."""
    handle = built.handle
    if built.unchanged and is_finished(tracker.layout, handle.fingerprint):
        return
    tracker.started(handle.fingerprint, built.record["config"], inputs)
    if isinstance(handle, Checkpoint):
        _keep_model(tracker, handle, built.record["measures"])
    else:
        results = read_results(handle.directory)
        tracker.metrics(0, {**built.record["measures"], **dict(result_metrics(results))})
        tracker.artifact(handle.directory, "evaluation" if handle.stage.startswith("evaluate") else "report")
        tracker.describe((handle.directory / "report.md").read_text())
        if candidate is not None:
            tracker.register(**candidate.event(results, (handle.directory / "report.md").read_text()))


def _keep_model(tracker: Tracker, handle: Checkpoint, measures: dict[str, float]) -> None:
    """The optimiser's state stays out: it is twice the weights, and only a resume here needs it."""
    tracker.metrics(handle.rows, measures)
    for name in (WEIGHTS, "config.json", "tokenizer"):
        tracker.artifact(handle.directory / name, "model/tokenizer" if name == "tokenizer" else "model")
    if (best := best_checkpoint(handle.directory)) is not None:
        tracker.artifact(best / WEIGHTS, "best")
        tracker.artifact(best / VALUES, "best")
    if curve := read_curve(handle.directory):
        tracker.artifact(write_curve(tracker.layout.tracking / handle.fingerprint / "curve.png", curve))


def best_checkpoint(directory: Path) -> Path | None:
    """The kept checkpoint with the lowest validation value, None where none was validated."""
    valued = [
        (values[BEST], path.parent)
        for path in sorted((directory / "checkpoints").glob(f"*/{VALUES}"))
        if BEST in (values := json.loads(path.read_text()))
    ]
    return min(valued)[1] if valued else None


def read_curve(directory: Path) -> list[dict[str, float]]:
    """The lines of curve.jsonl: `step`, and values of that step."""
    path = directory / "curve.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_results(directory: Path) -> list[dict[str, Any]]:
    """results.json of a Report: metric, value, low, high, higher_is_better, baselines."""
    return json.loads((directory / "results.json").read_text())


def result_metrics(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Each result under its own name, its interval as <name>.low and .high, each baseline as <name>.<baseline>."""
    for result in results:
        values = {"": result["value"], ".low": result["low"], ".high": result["high"]}
        values |= {f".{name}": value for name, value in result["baselines"].items()}
        yield from ((result["metric"] + suffix, value) for suffix, value in values.items() if value is not None)
