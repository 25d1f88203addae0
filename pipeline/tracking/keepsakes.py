"""Logs a finished build to MLflow: weights, scores, constants, tables and figures, and the base of a model.

In: a tracker and a finished Checkpoint or Report. Out: events in the tracker's journal. If an output was
found finished and its run is closed as finished, nothing is logged, so there is no second run.
"""

import calendar
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.store.chain import MODELS
from pipeline.store.outputs import VALUES, best_checkpoint, read_curve, read_results, result_metrics
from pipeline.store.records import Checkpoint, Columns, Handle, Report, Shards
from pipeline.store.store import Built
from pipeline.tracking.datasets import asset_of
from pipeline.tracking.pictures import html_page, write_curve
from pipeline.tracking.registry import Candidate
from pipeline.tracking.server import is_finished
from pipeline.tracking.tracker import Tracker
from pipeline.training.bases import origins_of, read_origin

WEIGHTS = "model.safetensors"
MISTAKES = "mistakes.md"  # of a report: texts of the user's examples, for a server of many people
SPEED = "tokens_per_second"  # a measure, the median of the curve of the same name
CONSTANTS = ("tokens", "epochs", "parameters", "flops", "train_examples")  # depend only on settings and data


def keep_results(
    tracker: Tracker, built: Built, inputs: Sequence[Handle], candidate: Candidate | None = None
) -> None:
    """`candidate` is the model that a Report evaluates, if it is to be registered."""
    handle = built.handle
    if built.unchanged and is_finished(tracker.layout, handle.fingerprint):
        return
    tracker.started(handle.fingerprint, built.record["config"], inputs, times_of(built.record))
    for folder, origin in origins_of([handle, *inputs]).items():
        name = tracker.asset if folder.directory == handle.directory else asset_of(tracker.layout, folder)
        facts = {f"gristmill.base.{key}": value for key, value in origin.facts().items()}
        tracker.tag({"gristmill.base": name, **facts})
    data = next((one for one in inputs if isinstance(one, Shards | Columns)), None)
    if isinstance(handle, Checkpoint):
        _keep_model(tracker, handle, built.record["measures"], data)
        return
    model = next((one for one in inputs if isinstance(one, Checkpoint)), None)
    _keep_report(tracker, handle, built.record["measures"], model, data)
    results, report = read_results(handle.directory), (handle.directory / "report.md").read_text("utf-8")
    if candidate is not None:
        tracker.register(**candidate.event(results, report))
    elif model is not None and model.stage in MODELS:
        tracker.publish(model, {result["metric"]: result["value"] for result in results}, report)


def times_of(record: Mapping[str, Any]) -> tuple[int, int]:
    """Start and end of a build, in milliseconds since 1970."""
    end = calendar.timegm(time.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%SZ"))
    return round(1000 * (end - record["seconds"])), 1000 * end


def _keep_model(tracker: Tracker, model: Checkpoint, measures: Mapping[str, float], data: Handle | None) -> None:
    """Log a model without its optimiser state, which is twice as large and only needed for a resume on this disk."""
    constants = {name: measures[name] for name in CONSTANTS if name in measures}
    tracker.params(constants)
    measured = {name: value for name, value in measures.items() if name not in (*constants, SPEED)}
    tracker.scores(model.rows, measured, model, data)
    weights = [] if read_origin(model.directory) else [WEIGHTS]  # those made elsewhere can be had there again
    for name in (*weights, "config.json", "tokenizer"):
        tracker.model_file(model.directory / name, "tokenizer" if name == "tokenizer" else "")
    best = best_checkpoint(model.directory)
    if best is not None and (step := int(best.name.rpartition("-")[2])) != model.rows:  # else: the final model
        for name in (WEIGHTS, VALUES):
            tracker.model_file(best / name, step=step)
    if curve := read_curve(model.directory):
        tracker.artifact(write_curve(tracker.layout.tracking / model.fingerprint / "curve.png", curve))


def _keep_report(
    tracker: Tracker, report: Report, measures: Mapping[str, float], model: Checkpoint | None, data: Handle | None
) -> None:
    """Log the scores of the model for the model; scores of baselines are logged for the run only."""
    scores = {**measures, **dict(result_metrics(read_results(report.directory)))}
    if model is not None:
        own = {name: value for name, value in scores.items() if "." not in name or name.endswith((".low", ".high"))}
        tracker.scores(0, own, model, data)
        scores = {name: value for name, value in scores.items() if name not in own}
    tracker.metrics(0, scores)
    folder = Path("report" if model is None else "evaluation")
    for path in sorted(report.directory.rglob("*")):
        if path.is_file() and path.name != MISTAKES and not path.name.startswith("."):  # hidden: the store's own
            place = path.relative_to(report.directory).parent
            tracker.artifact(path, str(folder / place))
    for path in sorted(set(report.directory.glob("*.md")) - {report.directory / MISTAKES}):
        page = html_page(path, tracker.layout.tracking / report.fingerprint / f"{path.stem}.html")
        tracker.artifact(page, str(folder))
    tracker.describe((report.directory / "report.md").read_text("utf-8"))
