"""Sensors: watch the folders of `files` sources (off until switched on), and close MLflow runs of dead builds (on).

Errors of a sensor are not caught, so that the UI shows them; the next tick tries again.
"""

from collections.abc import Mapping

import dagster as dg

from pipeline.corpus.collect.source import Source
from pipeline.store.layout import Layout
from pipeline.tracking.delivery import end_dead_runs
from pipeline.tracking.journal import FAILED, KILLED

LOOK_SECONDS = 30


def sensors(layout: Layout, sources: Mapping[str, Source]) -> list[dg.SensorDefinition]:
    """`sources`: by the asset of their pages."""
    watched = [watch(asset, source) for asset, source in sources.items() if source.is_watched]
    ended = dg.DagsterRunStatus
    closing = [close(layout, "failed", ended.FAILURE, FAILED), close(layout, "cancelled", ended.CANCELED, KILLED)]
    return [*watched, *closing]


def watch(asset: str, source: Source) -> dg.SensorDefinition:
    """Requests `asset`, the pages of a source, when files were added, removed or changed, and are unchanged since the
    last tick.

    Cursor: the digest of the last request, and the digest of the last tick.
    """

    @dg.sensor(
        name=f"watch_{asset.removeprefix('pages/').replace('-', '_')}",
        target=dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))),
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Materialises {asset} when its files change.",
    )
    def watch_source(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        asked, seen = (context.cursor or " ").split(" ")
        now = source.snapshot()
        if now == asked:
            return dg.SensorResult(skip_reason="nothing changed", cursor=f"{asked} {now}")
        if now != seen:
            return dg.SensorResult(skip_reason="files changed; waiting until they settle", cursor=f"{asked} {now}")
        return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=f"{now} {now}")

    return watch_source


def close(layout: Layout, runs: str, ended: dg.DagsterRunStatus, status: str) -> dg.SensorDefinition:
    """A build closes its own MLflow run, unless its process was killed; then this sensor closes it."""

    @dg.run_status_sensor(
        run_status=ended,
        name=f"close_mlflow_runs_of_{runs}_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Marks the MLflow runs of a {runs} Dagster run {status}.",
    )
    def close_runs(context: dg.RunStatusSensorContext) -> None:
        end_dead_runs(layout, status, context.dagster_run.run_id)

    return close_runs
