"""A second kind of task is one file: it appears in the graph, trains, is judged, registered, and answers.

letters_kind.py has other columns, another head, loss, metric and signature than classification. Nothing but the table
of kinds is told about it.
"""

import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.commands.results import mistakes_of, newest_results
from pipeline.definitions import definitions
from pipeline.store.layout import Layout, load_current
from pipeline.store.store import read_record
from pipeline.tasks.kind import kind_named, kind_of
from pipeline.tasks.kinds import KINDS, Entry
from pipeline.tracking.server import new_client, run_id_of
from tests.pipeline.tracking.served import load_registered

FILE = Path(__file__).with_name("letters_kind.py")
TASK = """
[letters]
kind = "letters"
base = "foundation_model"
data = { path = "letters.jsonl" }
phrase = "said"
size = "n"

[letters.finetune]
epochs = 6
rows = 8
"""


@pytest.fixture(scope="module")
def letters(toy_graph, tmp_path_factory):
    """The toy graph with one task more, of which only the three new assets are materialised."""
    spec = importlib.util.spec_from_file_location("letters_kind", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "letters_kind", module)
        spec.loader.exec_module(module)
        patch.setitem(KINDS, "letters", Entry("letters_kind", "count"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data = tmp_path_factory.mktemp("letters") / "data"
        shutil.copytree(toy_graph.layout.data, data, ignore=shutil.ignore_patterns("artifacts", "pages"))
        patch.setenv("GRISTMILL_DATA", str(data))
        layout = Layout(data)
        shutil.copytree(toy_graph.layout.data / "pages", data / "pages")
        layout.tasks_toml.write_text(layout.tasks_toml.read_text() + TASK)
        (data / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
        defs = definitions(layout)
        assets = [dg.AssetKey(f"letters_{part}") for part in ("examples", "model", "evaluation")]
        with dg.DagsterInstance.ephemeral(str(data)) as instance:
            result = defs.resolve_job_def("demo").execute_in_process(instance=instance, asset_selection=assets)
        yield SimpleNamespace(layout=layout, result=result, module=module)


def rows() -> list[dict[str, object]]:
    rng = random.Random(3)
    texts = ["".join(rng.choices("abcdefghij ", k=rng.randint(2, 28))).strip() or "a" for _ in range(160)]
    return [*({"said": text, "n": len(text)} for text in texts), {"said": "no number", "n": None}]


def test_kind_of_one_file_appears_trains_and_beats_its_baseline(letters):
    assert letters.result.success
    results = {one["metric"]: one for one in newest_results(letters.layout) if one["asset"] == "letters_evaluation"}
    error = results["mean_absolute_error"]
    assert error["value"] < error["baselines"]["mean_size"] and not error["higher_is_better"]
    assert set(error["baselines"]) == {"mean_size", "random_init"}
    examples = read_record(load_current(letters.layout, "letters_examples").directory)
    assert examples["counts"]["dropped"]["no_number"] == 1
    checks = {one.check_name: one.passed for one in letters.result.get_asset_check_evaluations()}
    assert checks["beats_mean_size"] and checks["no_leak"] and checks["finite_loss"]


def test_kind_is_registered_with_its_own_signature_and_answers_through_mlflow(letters, tmp_path):
    import pandas as pd

    client = new_client(letters.layout)
    version = client.get_model_version_by_alias("gristmill-letters", "champion")
    assert float(version.tags["gristmill.mean_absolute_error"]) > 0
    model = load_registered(letters.layout, "gristmill-letters", tmp_path)
    assert model.metadata.get_input_schema().input_names() == ["phrase"]
    (answer,) = model.predict(pd.DataFrame({"phrase": ["abcdefgh"]}))["letters"]
    folder = load_current(letters.layout, "letters_model").directory
    (expected,) = letters.module.LetterCounter(folder).answer([{"phrase": "abcdefgh"}])
    assert answer == pytest.approx(expected["letters"], abs=1e-4)


def test_kind_answers_on_the_command_line_with_its_own_verb(letters, capsys):
    assert main(["count", "letters", "abcdefgh", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["letters"]
    assert main(["classify", "letters", "abcdefgh"]) == 2
    assert "use `gristmill count`" in capsys.readouterr().err


def test_kind_mistakes_are_shown_on_the_command_line(letters, capsys):
    assert main(["results", "--mistakes", "letters"]) == 0
    assert "1. expected **" in capsys.readouterr().out


def test_kind_mistakes_are_quoted_in_the_folder_alone(letters):
    """Texts of the user's examples neither go to MLflow, nor into what Dagster keeps."""
    report = load_current(letters.layout, "letters_evaluation")
    mistakes = (report.directory / "mistakes.md").read_text()
    assert "\n1. expected **" in mistakes and mistakes_of(letters.layout, "letters") == mistakes
    run = run_id_of(letters.layout, report.fingerprint)
    sent = {Path(one.path).name for one in new_client(letters.layout).list_artifacts(run, "evaluation")}
    assert {"report.md", "results.json"} <= sent and not any("mistakes" in name for name in sent)
    (event,) = letters.result.asset_materializations_for_node("letters_evaluation")
    assert event.metadata["mistakes"] == dg.MetadataValue.path(str(report.directory / "mistakes.md"))
    assert "Compared with the baselines" in event.metadata["report"].value
    with pytest.raises(ValueError, match=r"'moods2' was not evaluated; run `gristmill run \+moods2_evaluation`"):
        mistakes_of(letters.layout, "moods2")


def test_kind_steps_of_its_training_can_be_traced(letters, capsys):
    assert main(["trace", "--step", "letters_model", "1"]) == 0
    assert "8 examples" in capsys.readouterr().out


def test_kind_of_an_output_is_known_from_its_record(letters):
    for task, kind in (("moods", "classification"), ("letters", "letters")):
        for part in ("examples", "model", "evaluation"):
            record = read_record(load_current(letters.layout, f"{task}_{part}").directory)
            assert kind_of(record) is kind_named(kind)
    with pytest.raises(ValueError, match="kind of task 'gone-1'"):
        kind_of({"stage": "finetune", "fingerprint": "f", "variant": "gone-1"})


def test_kind_random_init_is_a_child_of_the_model_it_is_compared_with(letters):
    client = new_client(letters.layout)
    parent = run_id_of(letters.layout, load_current(letters.layout, "letters_model").fingerprint)
    experiment = client.get_experiment_by_name("fine_tuning").experiment_id
    (child,) = client.search_runs([experiment], "attributes.run_name = 'letters_random_init'")
    assert child.data.tags["mlflow.parentRunId"] == parent
