"""A prompted model in the graph: judged beside the tuned model of the same data, registered, and asked by command."""

import json
import shutil
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.commands.results import newest_results
from pipeline.definitions import definitions
from pipeline.store.layout import Layout, load_current
from pipeline.tasks.prompting import PromptedClassifier
from pipeline.tracking.packaging import imports_repository, served_code
from pipeline.tracking.server import new_client
from tests.pipeline.tracking.served import load_registered


@pytest.fixture(scope="module")
def prompted(toy_graph, tmp_path_factory):
    """The toy graph with one task more, on the data of its own one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data = tmp_path_factory.mktemp("prompted") / "data"
        shutil.copytree(toy_graph.layout.data, data, ignore=shutil.ignore_patterns("artifacts"))
        patch.setenv("GRISTMILL_DATA", str(data))
        layout = Layout(data)
        tasks = layout.tasks_toml.read_text()
        first = tasks[tasks.index("[moods]") :].split("\n[")[0]
        table = first.replace("[moods]", "[asked]").replace('"classification"', '"prompting"')
        layout.tasks_toml.write_text(f"{tasks}\n{table}\n[asked.finetune]\nshots = 2\n")
        defs = definitions(layout)
        assets = [dg.AssetKey(f"asked_{part}") for part in ("examples", "model", "evaluation")]
        with dg.DagsterInstance.ephemeral(str(data)) as instance:
            result = defs.resolve_job_def("demo").execute_in_process(instance=instance, asset_selection=assets)
        yield SimpleNamespace(layout=layout, result=result)


def test_prompted_model_is_judged_like_the_tuned_one_of_the_same_examples(prompted):
    assert prompted.result.success
    results = {one["asset"]: one for one in newest_results(prompted.layout) if one["metric"] == "macro_f1"}
    asked, tuned = results["asked_evaluation"], results["moods_evaluation"]
    assert {"majority", "tfidf_logistic"} <= set(asked["baselines"]) <= set(tuned["baselines"])
    assert asked["baselines"]["tfidf_logistic"] == tuned["baselines"]["tfidf_logistic"]
    assert "2 shots, scoring corrected" in asked["note"]
    checks = {one.check_name: one.passed for one in prompted.result.get_asset_check_evaluations()}
    assert "whole_texts" in checks and "finite_loss" not in checks
    model, base = (
        load_current(prompted.layout, name).directory / "model.safetensors"
        for name in ("asked_model", "foundation_model")
    )
    assert model.samefile(base)


def test_examples_of_the_same_data_are_built_once_for_both_kinds(prompted):
    asked, tuned = (load_current(prompted.layout, f"{task}_examples") for task in ("asked", "moods"))
    assert asked == tuned


def test_prompted_model_is_registered_and_answers_through_mlflow(prompted, tmp_path):
    import pandas as pd

    assert not imports_repository(served_code(PromptedClassifier))
    version = new_client(prompted.layout).get_model_version_by_alias("gristmill-asked", "champion")
    assert float(version.tags["gristmill.macro_f1"]) >= 0
    model = load_registered(prompted.layout, "gristmill-asked", tmp_path)
    texts = ["what a fine day", "a sad story", ""]
    answers = model.predict(pd.DataFrame({"text": texts}))
    folder = load_current(prompted.layout, "asked_model").directory
    expected = PromptedClassifier(folder).answer([{"text": text} for text in texts])
    assert answers["label"].tolist() == [one["label"] for one in expected]
    assert answers["probability"].tolist() == pytest.approx([one["probability"] for one in expected], abs=1e-4)


def test_prompted_model_answers_on_the_command_line(prompted, capsys):
    assert main(["classify", "asked", "what a fine day", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"label", "probability"}


def test_prompted_model_is_exported_as_the_decoder_that_it_is(prompted, tmp_path, capsys):
    assert main(["export", "asked_model", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "config.json").exists()


def test_steps_of_a_prompted_model_cannot_be_traced(prompted, capsys):
    assert main(["trace", "--step", "asked_model", "1"]) == 2
    assert "was not trained here" in capsys.readouterr().err
