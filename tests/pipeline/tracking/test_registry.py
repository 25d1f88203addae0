"""One version a model, and the champion rule. Works on a copy of the toy graph's MLflow folder."""

import ast
import json
import shutil
import sys
from itertools import count
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from packaging.requirements import Requirement

from pipeline.commands.doctor import Visit, check_champions
from pipeline.serving.generate import predictor_in
from pipeline.store.layout import Layout, load_current
from pipeline.store.outputs import read_results
from pipeline.store.shards import read_table, shard_paths, write_table
from pipeline.tasks.classification import Classifier
from pipeline.tracking.logged_models import model_id_of
from pipeline.tracking.packaging import artifacts_of
from pipeline.tracking.registry import CHAMPION, Candidate, register
from pipeline.tracking.server import new_client, run_id_of
from tests.pipeline.tracking.served import load_registered

NAME, OTHER = "gristmill-moods", "b" * 32


@pytest.fixture
def client(toy_graph, tmp_path):
    copy = Layout(tmp_path / "data")
    shutil.copytree(toy_graph.layout.mlflow, copy.mlflow)
    for folder in toy_graph.layout.store.glob("*/*"):
        (copy.store / folder.parent.name).mkdir(parents=True, exist_ok=True)
        (copy.store / folder.parent.name / folder.name).symlink_to(folder)
    model = load_current(toy_graph.layout, "moods_model")
    (copy.store / model.stage / OTHER).symlink_to(model.directory)  # another model that answers alike
    return new_client(copy), copy


def event_of(toy_graph, **changes) -> dict:
    model, examples, report = (load_current(toy_graph.layout, f"moods_{part}") for part in _PARTS)
    event = Candidate(task="moods", kind="classification", model=model, examples=examples).event(
        read_results(report.directory)
    )
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
    assert registered(toy_graph, client, fingerprint=OTHER, metrics=worse) == (2, 1)


def test_register_an_equally_good_model_makes_it_champion(toy_graph, client):
    assert registered(toy_graph, client, fingerprint=OTHER) == (2, 2)


def test_register_on_other_examples_judges_the_champion_on_them_again(toy_graph, client):
    """The champion's recorded score is lowered first: only a new judgement can still defend it."""
    mlflow, _ = client
    mlflow.set_model_version_tag(NAME, "1", "gristmill.macro_f1", "0.0")
    below = {"accuracy": 0.5, "macro_f1": 0.5}
    assert registered(toy_graph, client, fingerprint=OTHER, metrics=below, examples="other") == (2, 1)


def split_anew(toy_graph, layout: Layout, n_of_training: int, n_of_test: int) -> dict:
    """Another split of the same rows: its test rows are so many that the champion was trained on, and so many that it
    was not. Returns what changes in the event."""
    examples = load_current(toy_graph.layout, "moods_examples")
    table = pa.concat_tables([read_table(path) for path in shard_paths(examples.directory)])
    numbers = {"train": count(), "validation": count(), "test": count()}
    most = {"train": n_of_training, "validation": 0, "test": n_of_test}
    split = ["test" if next(numbers[one]) < most[one] else "train" for one in table["split"].to_pylist()]
    place = table.column_names.index("split")
    folder = layout.store / "examples" / ("c" * 32)
    write_table(folder / "examples.parquet", table.set_column(place, table.schema.field("split"), pa.array(split)))
    shutil.copy(examples.directory / "record.json", folder)
    return {"examples": "other", "examples_fingerprint": folder.name}


def test_champion_is_judged_on_no_example_that_it_was_trained_on(toy_graph, client):
    """After a new split the old champion was judged on its own training rows, and an honest model could not replace
    what it remembered (talmolab/sleap-nn#602, aiqm/torchani#443)."""
    mlflow, layout = client
    changes = split_anew(toy_graph, layout, n_of_training=30, n_of_test=3)
    worse = {"accuracy": 0.1, "macro_f1": 0.1}
    assert registered(toy_graph, client, fingerprint=OTHER, metrics=worse, **changes) == (2, 2)
    why = mlflow.get_model_version(NAME, "2").tags["gristmill.compared"]
    assert "only 3 of the 33 test examples, which version 1 was not trained on, are too few" in why


def test_champion_and_new_model_are_judged_on_the_same_unseen_examples(toy_graph, client):
    mlflow, layout = client
    changes = split_anew(toy_graph, layout, n_of_training=30, n_of_test=10)
    worse = {"accuracy": 0.1, "macro_f1": 0.1}  # on all examples; on the unseen ones it is the same model
    assert registered(toy_graph, client, fingerprint=OTHER, metrics=worse, **changes) == (2, 2)
    why = mlflow.get_model_version(NAME, "2").tags["gristmill.compared"]
    assert "on 10 of the 40 test examples, which version 1 was not trained on" in why


def test_champion_without_its_files_is_replaced(toy_graph, client):
    """Each later registration of the task failed with the words "No such artifact" and was tried for ever
    (mlflow/mlflow#3144)."""
    mlflow, layout = client
    shutil.rmtree(layout.mlflow / "artifacts")
    changes = {"metrics": {"accuracy": 0.1, "macro_f1": 0.1}, "examples": "other"}
    assert registered(toy_graph, client, fingerprint=OTHER, **changes) == (2, 2)
    assert "cannot be judged" in mlflow.get_model_version(NAME, "2").tags["gristmill.compared"]


def test_registered_model_holds_no_text_of_the_user_and_its_weights_once(toy_graph):
    layout = toy_graph.layout
    model_id = model_id_of(layout, load_current(layout, "moods_model").fingerprint)
    (folder,) = layout.mlflow.glob(f"artifacts/*/models/{model_id}/artifacts")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert [name for name in names if name.endswith(".safetensors")] == ["model.safetensors"]
    example = json.loads((folder / "input_example.json").read_text("utf-8"))
    assert example["data"] == [["A first text."], ["A second, longer text."]]
    assert str(layout.data) not in (folder / "MLmodel").read_text("utf-8")


def test_register_shows_version_and_metrics_on_the_logged_model(toy_graph):
    client = new_client(toy_graph.layout)
    fingerprint = load_current(toy_graph.layout, "moods_model").fingerprint
    model = client.get_logged_model(model_id_of(toy_graph.layout, fingerprint))
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": 1}]
    examples = load_current(toy_graph.layout, "moods_examples")
    metrics = {metric.key: metric for metric in model.metrics}
    for result in read_results(load_current(toy_graph.layout, "moods_evaluation").directory):
        metric = metrics[result["metric"]]
        assert metric.value == result["value"]
        assert (metric.dataset_name, metric.dataset_digest) == ("moods_examples", examples.digest)


def imported(package: Path) -> set[str]:
    """The distributions that the code of a registered model imports. Its tokenizer may need `tokenizers`, which was
    not among the requirements: a model on an imported base could not be served elsewhere (own review)."""
    nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    names = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "model"}


def test_register_requirements_are_those_of_the_package_index(toy_graph, tmp_path):
    there, _ = artifacts_of(new_client(toy_graph.layout), toy_graph.layout, NAME, "1", str(tmp_path))
    found = [Requirement(line) for line in (there / "requirements.txt").read_text().splitlines()]
    versions = {one.name: next(iter(one.specifier)).version for one in found}
    of_some = {"gguf", "bm25s", "usearch"}  # files of that format; assistants, whose predictor names them
    assert {"mlflow", "pandas", *imported(there)} - of_some == set(versions)
    assert not [version for version in versions.values() if "+" in version]


OLD = """
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

class TextClassifier(PythonModel):
    def predict(self, context, model_input, params=None):
        from pipeline.stages.generate import classify_text
        return classify_text(context.artifacts["model"], model_input)

set_model(TextClassifier())
"""


def register_old_style(client, layout, toy_graph, folder) -> str:
    """A version as it was made when the code of a model imported this repository."""
    import mlflow

    (folder / "old.py").write_text(OLD)
    model = load_current(toy_graph.layout, "moods_model")
    run_id = run_id_of(toy_graph.layout, model.fingerprint)
    mlflow.pyfunc.save_model(
        str(folder / "old"),
        python_model=str(folder / "old.py"),
        artifacts={"model": str(model.directory)},
        pip_requirements=["mlflow"],
    )
    old = client.create_logged_model(client.get_run(run_id).info.experiment_id, "old", run_id)
    client.log_model_artifacts(old.model_id, str(folder / "old"))
    tags = client.get_model_version(NAME, "1").tags
    made = client.create_model_version(NAME, old.artifact_location, run_id, tags, model_id=old.model_id)
    client.set_registered_model_alias(NAME, CHAMPION, made.version)
    return made.version


def test_doctor_registers_a_champion_again_whose_code_imports_the_repository(toy_graph, client, tmp_path):
    mlflow_client, layout = client
    assert [one.state for one in check_champions(Visit(layout=layout, mend=True))] == ["ok"]
    old = register_old_style(mlflow_client, layout, toy_graph, tmp_path)
    (seen,) = check_champions(Visit(layout=layout, mend=False))
    assert seen.state == "bad" and f"{NAME} {old}" in seen.check
    (mended,) = check_champions(Visit(layout=layout, mend=True))
    champion = mlflow_client.get_model_version_by_alias(NAME, CHAMPION)
    assert mended.state == "mended" and f"version {champion.version}" in mended.detail
    assert int(champion.version) == int(old) + 1
    assert champion.tags == mlflow_client.get_model_version(NAME, "1").tags
    model = load_registered(layout, NAME, tmp_path / "loaded")
    texts = [{"text": "a happy golden day"}, {"text": "a grey and lonely one"}]
    own = predictor_in(Classifier, load_current(toy_graph.layout, "moods_model").directory).answer(texts)
    assert list(model.predict(pd.DataFrame(texts))["label"]) == [one["label"] for one in own]
    assert [one.state for one in check_champions(Visit(layout=layout, mend=True))] == ["ok"]


def test_register_leaves_the_run_as_it_was(toy_graph, client):
    mlflow, _ = client
    run_id = run_id_of(toy_graph.layout, load_current(toy_graph.layout, "moods_evaluation").fingerprint)
    before = mlflow.get_run(run_id).info
    registered(toy_graph, client, fingerprint=OTHER)
    after = mlflow.get_run(run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)
