"""A table of several labels in the graph: trained, checked, registered, and answering in the shell and in MLflow."""

import json
import shutil
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.definitions import definitions
from pipeline.store.layout import Layout, load_current
from pipeline.tracking.server import new_client
from tests.pipeline.tasks.test_multi_label_classification import LABELS, rows_of
from tests.pipeline.tracking.served import load_registered

TASK = """
[letters]
kind = "multi_label_classification"
base = "foundation_model"
data = { path = "letters.csv" }
text = "said"
label_columns = ["has_a", "has_b", "has_c"]

[letters.finetune]
epochs = 8
rows = 8
muon_lr = 0.02
adamw_lr = 0.01
"""


@pytest.fixture(scope="module")
def letters(toy_graph, tmp_path_factory):
    """The toy graph with one task more, of which only the three new assets are materialised."""
    data = tmp_path_factory.mktemp("several") / "data"
    shutil.copytree(toy_graph.layout.data, data, ignore=shutil.ignore_patterns("artifacts"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GRISTMILL_DATA", str(data))
        layout = Layout(data)
        layout.tasks_toml.write_text(layout.tasks_toml.read_text() + TASK)
        header = ["said", *LABELS]
        rows = [[one["text"], *(str(int(label in one["label"])) for label in LABELS)] for one in rows_of(200)]
        (data / "letters.csv").write_text("".join(",".join(row) + "\n" for row in [header, *rows]))
        assets = [dg.AssetKey(f"letters_{part}") for part in ("examples", "model", "evaluation")]
        with dg.DagsterInstance.ephemeral(str(data)) as instance:
            job = definitions(layout).resolve_job_def("demo")
            result = job.execute_in_process(instance=instance, asset_selection=assets)
        yield SimpleNamespace(layout=layout, result=result)


def test_task_of_several_labels_trains_and_passes_its_checks(letters):
    assert letters.result.success
    checks = {one.check_name: one.passed for one in letters.result.get_asset_check_evaluations()}
    assert checks["beats_majority"] and checks["no_leak"] and checks["finite_loss"]
    thresholds = json.loads((load_current(letters.layout, "letters_model").directory / "config.json").read_text())
    assert set(thresholds["thresholds"]) == {*LABELS}


def test_task_of_several_labels_answers_alike_on_the_command_line_and_in_mlflow(letters, tmp_path, capsys):
    import pandas as pd

    texts = ["ddeabc eefabc", "dde eef"]
    answers = []
    for text in texts:
        assert main(["classify", "letters", text, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert new_client(letters.layout).get_model_version_by_alias("gristmill-letters", "champion")
    model = load_registered(letters.layout, "gristmill-letters", tmp_path)
    table = model.predict(pd.DataFrame({"text": texts}))
    for answer, labels, probabilities in zip(answers, table["labels"], table["probabilities"], strict=True):
        assert list(labels) == answer["labels"]
        assert list(probabilities) == pytest.approx(answer["probabilities"], abs=1e-4)
    assert {*answers[0]["labels"]} <= {*LABELS}
