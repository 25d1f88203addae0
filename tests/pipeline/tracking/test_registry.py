"""One version a model, and the champion rule. Works on a copy of the toy graph's MLflow folder."""

import shutil

import pytest

from pipeline.store.layout import Layout, load_current
from pipeline.store.outputs import read_results
from pipeline.tracking.registry import CHAMPION, Candidate, register
from pipeline.tracking.server import new_client, run_id_of

NAME = "gristmill-moods"


@pytest.fixture
def client(toy_graph, tmp_path):
    copy = Layout(tmp_path)
    shutil.copytree(toy_graph.layout.mlflow, copy.mlflow)
    return new_client(copy), copy


def event_of(toy_graph, **changes) -> dict:
    model, examples, report = (load_current(toy_graph.layout, f"moods_{part}") for part in _PARTS)
    event = Candidate(task="moods", model=model, examples=examples).event(read_results(report.directory))
    return event | changes


_PARTS = ("model", "examples", "evaluation")


def registered(toy_graph, client, **changes) -> tuple[int, int]:
    """How many versions there are, and which is the champion, after one more registration."""
    client, layout = client
    run_id = run_id_of(toy_graph.layout, load_current(toy_graph.layout, "moods_evaluation").fingerprint)
    register(client, layout, run_id, event_of(toy_graph, **changes))
    versions = client.search_model_versions(f"name='{NAME}'")
    return len(versions), int(client.get_model_version_by_alias(NAME, CHAMPION).version)


def test_register_the_same_model_again_makes_no_second_version(toy_graph, client):
    assert registered(toy_graph, client) == (1, 1)
    assert "Confusion matrix" in client[0].get_model_version(NAME, "1").description


def test_register_a_worse_model_keeps_the_champion(toy_graph, client):
    worse = {"accuracy": 0.1, "macro_f1": 0.1}
    assert registered(toy_graph, client, fingerprint="b" * 32, metrics=worse) == (2, 1)


def test_register_an_equally_good_model_makes_it_champion(toy_graph, client):
    assert registered(toy_graph, client, fingerprint="b" * 32) == (2, 2)


def test_register_on_other_examples_judges_the_champion_on_them_again(toy_graph, client):
    """The champion's recorded score is lowered first: only a new judgement can still defend it."""
    mlflow, _ = client
    mlflow.set_model_version_tag(NAME, "1", "gristmill.macro_f1", "0.0")
    below = {"accuracy": 0.5, "macro_f1": 0.5}
    assert registered(toy_graph, client, fingerprint="b" * 32, metrics=below, examples="other") == (2, 1)


def test_register_leaves_the_run_as_it_was(toy_graph, client):
    mlflow, _ = client
    run_id = run_id_of(toy_graph.layout, load_current(toy_graph.layout, "moods_evaluation").fingerprint)
    before = mlflow.get_run(run_id).info
    registered(toy_graph, client, fingerprint="b" * 32)
    after = mlflow.get_run(run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)
