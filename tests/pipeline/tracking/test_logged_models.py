"""A training makes one LoggedModel, and one per checkpoint, whatever happens; evaluations are credited to it."""

import json
from pathlib import Path

import pytest

from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Shards
from pipeline.tracking.journal import FAILED, FINISHED, KILLED
from pipeline.tracking.logged_models import model_id_of
from pipeline.tracking.server import new_client, run_id_of
from pipeline.tracking.tracker import Tracker

TRAINING, EVALUATION = "0123456789abcdef" * 2, "fedcba9876543210" * 2
TOKENS = Shards(stage="token_shards", directory=Path("/tokens"), fingerprint="f" * 32, digest="d" * 32, rows=5)
MODEL = Checkpoint(stage="pretrain", directory=Path("/model"), fingerprint=TRAINING, digest="e" * 32, rows=30)


def training(layout: Layout, **fields) -> Tracker:
    tracker = Tracker(layout=layout, asset="foundation_model", group="pretraining", trains=True, **fields)
    tracker.started(TRAINING, {"n_layers": 2}, [TOKENS])
    return tracker


def write_checkpoint(layout: Layout, step: int) -> Path:
    folder = layout.store / "pretrain" / TRAINING / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"sha256": f"hash-{step}"}}
    (folder / "complete.json").write_text(json.dumps({"files": files}))
    return folder


def models(layout: Layout) -> dict:
    client = new_client(layout)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return {one.name: one for one in client.search_logged_models(experiments)}


def scores_of(model) -> dict:
    return {(one.key, one.step): (one.value, one.dataset_name) for one in model.metrics}


def evaluate(layout: Layout, times: tuple[int, int] | None = None) -> None:
    tracker = Tracker(layout=layout, asset="foundation_evaluation", group="evaluation")
    tracker.started(EVALUATION, {}, [MODEL, TOKENS], times)
    tracker.scores(0, {"bits_per_byte": 2.5}, MODEL, TOKENS)
    tracker.metrics(0, {"bits_per_byte.bigram": 2.9})
    tracker.publish(MODEL, {"bits_per_byte": 2.5}, "# Its evaluation")
    tracker.close(FINISHED)


@pytest.mark.parametrize(("status", "shown"), [(FINISHED, "READY"), (FAILED, "FAILED"), (KILLED, "FAILED")])
def test_training_ends_with_one_model_that_says_how_it_ended(layout, status, shown):
    training(layout).close(status)
    (model,) = models(layout).values()
    assert (model.name, str(model.status), model.source_run_id) == (
        "foundation_model",
        shown,
        run_id_of(layout, TRAINING),
    )
    assert model.params == {"n_layers": "2"}
    assert model.tags["mlflow.user"]


def test_training_that_goes_on_keeps_its_model(layout):
    training(layout).close(KILLED)
    before = model_id_of(layout, TRAINING)
    tracker = training(layout)
    tracker.params({"flops": 7})
    tracker.close(FINISHED)
    (model,) = models(layout).values()
    assert (model.model_id, str(model.status)) == (before, "READY")
    assert model.params == {"n_layers": "2", "flops": "7"}


def test_training_whose_notes_were_lost_finds_its_model_again(layout):
    training(layout).close(KILLED)
    before = model_id_of(layout, TRAINING)
    (layout.tracking / TRAINING / "run.json").unlink()
    training(layout).close(FINISHED)
    assert model_id_of(layout, TRAINING) == before
    assert list(models(layout)) == ["foundation_model"]
    run = new_client(layout).get_run(run_id_of(layout, TRAINING))
    assert [one.model_id for one in run.outputs.model_outputs] == [before]


def test_checkpoints_on_disk_are_models_with_path_hash_and_values(layout):
    tracker = training(layout)
    for step in (10, 20, 30):
        path = write_checkpoint(layout, step)
        if step == 30:
            (path.with_name("step-10") / "complete.json").unlink()
            path.with_name("step-10").rmdir()
        tracker.metrics(step, {"loss": 1.0, "validation_loss": 1 / step})
        tracker.checkpoint(path, step, {"validation_loss": 1 / step})
    tracker.close(FINISHED)
    found = models(layout)
    assert set(found) == {"foundation_model", "foundation_model-step-20", "foundation_model-step-30"}
    twenty = found["foundation_model-step-20"]
    assert twenty.tags["gristmill.path"] == f"store/pretrain/{TRAINING}/checkpoints/step-20"
    assert twenty.tags["gristmill.sha256"] == "hash-20"
    assert scores_of(twenty) == {("validation_loss", 20): (0.05, "token_shards")}
    history = new_client(layout).get_metric_history(run_id_of(layout, TRAINING), "validation_loss")
    assert [point.step for point in history] == [10, 20, 30]  # each of them once


def test_evaluation_is_credited_to_a_model_that_the_server_did_not_know_yet(layout, monkeypatch):
    """Both builds ended while the server was away; the evaluation is delivered first."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    training(layout).close(FINISHED)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    evaluate(layout)
    (model,) = models(layout).values()
    assert scores_of(model) == {("bits_per_byte", 0): (2.5, "token_shards")}
    run = new_client(layout).get_run(run_id_of(layout, EVALUATION))
    assert run.data.metrics == {"bits_per_byte": 2.5, "bits_per_byte.bigram": 2.9}
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["token_shards"]
    assert [one.model_id for one in run.inputs.model_inputs] == [model.model_id]


def test_evaluation_registers_a_foundation_model_once(layout):
    training(layout).close(FINISHED)
    for _ in range(2):
        evaluate(layout)
    client = new_client(layout)
    assert (
        len(client.search_model_versions("name='gristmill-pretrain'")) == 1
    )  # of no asset, so named after its stage
    version = client.get_model_version("gristmill-pretrain", "1")
    (model,) = models(layout).values()
    assert (version.source, version.run_id) == (model.artifact_location, run_id_of(layout, TRAINING))
    assert version.tags["gristmill.bits_per_byte"] == "2.5"
    assert version.description == "# Its evaluation"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "gristmill-pretrain", "version": 1}]


def test_run_of_a_build_that_has_ended_lasted_as_long_as_the_build(layout):
    training(layout).close(FINISHED)
    evaluate(layout, (1_000_000, 1_270_000))
    run = new_client(layout).get_run(run_id_of(layout, EVALUATION)).info
    assert (run.start_time, run.end_time) == (1_000_000, 1_270_000)
