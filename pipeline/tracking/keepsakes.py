"""What of a finished build is kept with its MLflow run: weights, curve, results, figures.

In: a tracker and a finished Checkpoint or Report. Out: metrics and artifacts in the tracker's journal. An output
that was found finished, and whose run was closed as finished, is left alone: that makes no second run.
"""

from collections.abc import Sequence

from pipeline.store.outputs import VALUES, best_checkpoint, read_curve, read_results, result_metrics
from pipeline.store.records import Checkpoint, Handle
from pipeline.store.store import Built
from pipeline.tracking.pictures import write_curve
from pipeline.tracking.registry import Candidate
from pipeline.tracking.server import is_finished
from pipeline.tracking.tracker import Tracker

WEIGHTS = "model.safetensors"


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
