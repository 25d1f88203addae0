"""A data folder that was copied or moved: MLflow follows it, and nothing is written into the former place."""

import shutil
from pathlib import Path

from pipeline.commands.doctor import BAD, MENDED, OK, Visit, check_mlflow_addresses
from pipeline.store.layout import Layout
from pipeline.store.records import Shards
from pipeline.tracking.journal import FINISHED
from pipeline.tracking.relocation import moved_from, relocate
from pipeline.tracking.server import new_client, run_id_of
from pipeline.tracking.tracker import Tracker


def track(layout: Layout, fingerprint: str) -> None:
    data = Shards(stage="token_shards", directory=layout.store / "t", fingerprint="f" * 32, digest="d" * 32, rows=5)
    picture = layout.tracking / "curve.png"
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(b"png")
    tracker = Tracker(layout=layout, asset="foundation_model", group="pretraining", trains=True)
    tracker.started(fingerprint, {}, [data])
    tracker.artifact(picture)
    tracker.model_file(picture)
    tracker.close(FINISHED)


def files(layout: Layout) -> set[Path]:
    return {path.relative_to(layout.data) for path in layout.mlflow.rglob("*") if path.is_file()}


def copied(layout: Layout, tmp_path: Path) -> Layout:
    track(layout, "a" * 32)
    return Layout(shutil.copytree(layout.data, tmp_path.parent / f"{tmp_path.name} copy"))


def addresses(layout: Layout) -> list[str]:
    client = new_client(layout)
    (experiment,) = client.search_experiments()
    found = [experiment.artifact_location]
    for run in client.search_runs([experiment.experiment_id]):
        found += [run.info.artifact_uri, *(one.dataset.source for one in run.inputs.dataset_inputs)]
    return found + [one.artifact_location for one in client.search_logged_models([experiment.experiment_id])]


def test_copy_is_found_and_corrected_by_the_doctor(layout, tmp_path):
    copy = copied(layout, tmp_path)
    assert [one.state for one in check_mlflow_addresses(Visit(layout=layout, mend=True))] == [OK]
    (finding,) = check_mlflow_addresses(Visit(layout=copy, mend=False))
    assert (finding.state, str(layout.data) in finding.detail) == (BAD, True)
    assert moved_from(copy) == layout.data
    (finding,) = check_mlflow_addresses(Visit(layout=copy, mend=True))
    assert finding.state == MENDED
    assert all(f"{copy.data.as_uri()}/" in address for address in addresses(copy))
    assert relocate(copy) == 0
    assert all(f"{layout.data.as_uri()}/" in address for address in addresses(layout))


def test_run_in_a_copy_writes_nothing_into_the_original(layout, tmp_path):
    copy = copied(layout, tmp_path)
    before, in_copy = files(layout), files(copy)
    track(copy, "b" * 32)
    assert files(layout) == before
    assert [path.name for path in sorted(files(copy) - in_copy)] == ["curve.png", "curve.png"]


def test_events_that_wait_are_delivered_from_the_copy(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    copy = copied(layout, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.rmtree(layout.tracking)
    track(copy, "b" * 32)
    assert run_id_of(copy, "a" * 32) is not None
    found = new_client(copy).list_artifacts(run_id_of(copy, "a" * 32))
    assert "curve.png" in [one.path for one in found]
