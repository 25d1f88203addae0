"""The whole toy graph, built twice in this process."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from pipeline.definitions import definitions
from pipeline.defs.names import asset_name
from pipeline.serving.generate import predictor_in
from pipeline.store.layout import all_current
from pipeline.store.outputs import read_results
from pipeline.tasks.classification import Classifier
from pipeline.tracking.logged_models import model_id_of
from pipeline.tracking.server import new_client, run_id_of

ASSETS = {
    "pages/web",
    "pages/local-texts",
    "documents",
    "corpus",
    "corpus_report",
    "tokenizer",
    "token_shards",
    "foundation_model",
    "foundation_evaluation",
    "moods_examples",
    "moods_model",
    "moods_evaluation",
}
TRACKED = [
    *("corpus_report", "foundation_evaluation", "foundation_model", "moods_evaluation", "moods_model"),
    "moods_random_init",
]
REPORT_AND_TOKENS = {"corpus_report", "tokenizer", "token_shards"}
# thirty steps of a toy are not enough for the first; its context of 32 tokens cuts texts
MAY_FAIL = {"beats_baseline", "whole_texts"}


def metadata_of(run: dg.ExecuteInProcessResult) -> dict[str, dict]:
    """Asset -> metadata of its materialisation in `run`."""
    return {
        asset_name(event.asset_key): {
            name: value.value for name, value in event.event_specific_data.materialization.metadata.items()
        }
        for event in run.get_asset_materialization_events()
    }


def test_graph_every_asset_is_materialised_and_every_check_of_a_law_passes(toy_graph):
    assert set(metadata_of(toy_graph.first)) == ASSETS
    failed = {check.check_name for check in toy_graph.first.get_asset_check_evaluations() if not check.passed}
    assert failed <= MAY_FAIL
    asked = Counter(asset_name(check.asset_key) for check in toy_graph.first.get_asset_check_evaluations())
    assert set(asked) == ASSETS


def test_graph_second_run_builds_nothing(toy_graph, second_run):
    metadata = metadata_of(second_run)
    assert set(metadata) == ASSETS
    assert all(of_asset["unchanged"] for of_asset in metadata.values())
    assert not any(of_asset["seconds"] for of_asset in metadata.values())
    assert not any(of_asset["unchanged"] for of_asset in metadata_of(toy_graph.first).values())


def test_graph_metadata_reconciles_rows_and_shows_pictures(toy_graph):
    metadata = metadata_of(toy_graph.first)
    for asset in ("pages/web", "pages/local-texts", "documents", "corpus", "token_shards", "moods_examples"):
        told = metadata[asset]
        assert told["rows_in"] == told["rows_out"] + told["rows_dropped"]
        assert told["dagster/row_count"] == told["rows_out"] > 0
        assert told["rows_per_second"] > 0
    documents = metadata["documents"]
    assert documents["rows_in"] == metadata["pages/web"]["rows_out"] + metadata["pages/local-texts"]["rows_out"]
    assert "| dropped: too_few_words |" in documents["rows"]
    assert metadata["corpus"]["rows_dropped"] == 2
    assert documents["length_histogram"].startswith("![words per document](data:image/png;base64,")
    assert metadata["foundation_model"]["loss_curve"].startswith("![loss by step](data:image/png;base64,")
    assert "bits per byte" in metadata["foundation_evaluation"]["report"]
    card = metadata["corpus_report"]["data_card"]
    assert card.count("](data:image/png;base64,") >= 6 and "](figures/" not in card


def test_graph_digest_is_data_version_and_the_handle_is_what_is_kept(toy_graph, second_run):
    handles = all_current(toy_graph.layout)
    for event in second_run.get_asset_materialization_events():
        handle = handles[asset_name(event.asset_key)]
        tags = event.event_specific_data.materialization.tags
        assert tags["dagster/data_version"] == handle.digest
        assert tags["dagster/code_version"]


def test_graph_groups_kinds_and_descriptions_are_there_and_nothing_is_partitioned(toy_graph):
    graph = definitions(toy_graph.layout).resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    assert {node.group_name for node in nodes} == {"corpus", "pretraining", "fine_tuning", "evaluation"}
    for node in nodes:
        assert node.description and node.kinds and node.partitions_def is None and node.freshness_policy


def test_graph_owner_of_the_project_owns_every_asset(toy_layout):
    toy_layout.config_toml.write_text('[project]\nowner = "team:millers"\n')
    graph = definitions(toy_layout).resolve_asset_graph()
    assert {owner for key in graph.get_all_asset_keys() for owner in graph.get(key).owners} == {"team:millers"}
    for bad in ('owner = "millers"', 'owners = ["team:millers"]', "owner = 3"):
        toy_layout.config_toml.write_text(f"[project]\n{bad}\n")
        with pytest.raises(ValueError, match=r"\[project\] is .*expected one line like owner"):
            definitions(toy_layout)


def test_graph_jobs_hold_their_part(toy_graph):
    defs = definitions(toy_graph.layout)
    parts = {
        name: {asset_name(key) for key in defs.resolve_job_def(name).asset_layer.selected_asset_keys}
        for name in ("demo", "build_corpus", "pretrain", "finetune")
    }
    assert parts["demo"] == ASSETS
    examples = "moods_examples"  # which the corpus must not hold
    assert parts["build_corpus"] == {
        "pages/web",
        "pages/local-texts",
        "documents",
        "corpus",
        *REPORT_AND_TOKENS,
        examples,
    }
    assert parts["pretrain"] == {"foundation_model", "foundation_evaluation"}
    assert parts["finetune"] == {"moods_examples", "moods_model", "moods_evaluation"}


def test_graph_no_name_is_asset_group_and_job_at_once(toy_graph):
    defs = definitions(toy_graph.layout)
    graph = defs.resolve_asset_graph()
    assets = {asset_name(key) for key in graph.get_all_asset_keys()}
    groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
    jobs = {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert jobs == {"build_corpus", "demo", "everything", "finetune", "pretrain"}
    assert not jobs & (assets | groups)


def test_graph_every_step_is_named_as_its_asset(toy_graph):
    for step in definitions(toy_graph.layout).resolve_asset_graph().assets_defs:
        if step.keys:
            assert step.node_def.name == asset_name(step.key).replace("/", "__").replace("-", "_")


@pytest.mark.parametrize(
    ("step", "config", "message"),
    [
        ("foundation_model", {"n_stepz": 3}, "n_stepz"),
        ("foundation_model", {"n_steps": "many"}, "n_steps"),
        ("foundation_model", {"n_steps": 0}, "n_steps is 0, expected a whole number of at least 1"),
        ("documents", {"filter": {"min_words": -1}}, "min_words is -1"),
        ("moods_examples", {"test_fraction": 2.0}, r"test_fraction is 2.0, expected a number above 0 and below 1"),
    ],
)
def test_graph_launch_with_a_bad_value_creates_no_run(toy_graph, step, config, message):
    before = toy_graph.instance.get_runs_count()
    job = definitions(toy_graph.layout).resolve_job_def("demo")
    with pytest.raises((dg.DagsterInvalidConfigError, ValueError), match=message):
        job.execute_in_process(instance=toy_graph.instance, run_config={"ops": {step: {"config": config}}})
    assert toy_graph.instance.get_runs_count() == before


def test_mlflow_has_one_finished_run_a_model_and_evaluation(toy_graph):
    client = new_client(toy_graph.layout)
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    assert set(experiments.values()) == {"corpus", "pretraining", "fine_tuning", "evaluation"}  # and no "Default"
    runs = client.search_runs(list(experiments))
    assert sorted(run.info.run_name for run in runs) == TRACKED
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["dagster.run_id"] for run in runs} == {toy_graph.first.run_id}
    handles = all_current(toy_graph.layout)
    for asset in ("corpus_report", "foundation_model", "foundation_evaluation", "moods_model", "moods_evaluation"):
        run = client.get_run(run_id_of(toy_graph.layout, handles[asset].fingerprint))
        assert run.data.tags["gristmill.asset"] == asset
        assert run.data.params and run.inputs.dataset_inputs


def test_mlflow_curve_has_every_step_once_and_the_weights_are_in_the_model(toy_graph):
    client = new_client(toy_graph.layout)
    fingerprint = all_current(toy_graph.layout)["foundation_model"].fingerprint
    run_id, model_id = run_id_of(toy_graph.layout, fingerprint), model_id_of(toy_graph.layout, fingerprint)
    for name in ("loss", "tokens_per_second"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == list(range(1, 31))
    assert "curve.png" in [file.path for file in client.list_artifacts(run_id)]
    files = {file.path for file in client.list_logged_model_artifacts(model_id)}
    assert files >= {"config.json", "model.safetensors", "tokenizer", "MLmodel"}  # MLflow can serve it
    assert not files & {"optimizer.safetensors", "checkpoints", "curve.jsonl"}


def test_mlflow_shows_the_foundation_model_registered_and_scored(toy_graph):
    client, current = new_client(toy_graph.layout), all_current(toy_graph.layout)
    model = client.get_logged_model(model_id_of(toy_graph.layout, current["foundation_model"].fingerprint))
    assert (model.name, str(model.status)) == ("foundation_model", "READY")
    (results, _) = read_results(current["foundation_evaluation"].directory)
    scores = {one.key: (one.value, one.dataset_name, one.dataset_digest) for one in model.metrics}
    assert scores["bits_per_byte"] == (results["value"], "token_shards", current["token_shards"].digest)
    assert not [name for name in scores if name.endswith("bigram")]  # a baseline's is not the model's
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "gristmill-foundation_model", "version": 1}]
    assert client.get_model_version("gristmill-foundation_model", "1").source == model.artifact_location


def test_mlflow_run_of_a_training_names_its_data_constants_source_and_purpose(toy_graph):
    current = all_current(toy_graph.layout)
    run_id = run_id_of(toy_graph.layout, current["foundation_model"].fingerprint)
    run = new_client(toy_graph.layout).get_run(run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("token_shards", current["token_shards"].digest)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    assert [one["name"] for one in json.loads(data.dataset.schema)["mlflow_colspec"]] == [
        "document_id",
        "n_bytes",
        "tokens",
        "source",
    ]
    assert json.loads(data.dataset.profile)["train_tokens"] > 1000
    constants = {"flops", "parameters", "epochs", "tokens", "n_steps"}
    assert constants <= set(run.data.params) and not constants & set(run.data.metrics)
    assert run.data.tags["mlflow.source.name"] == "gristmill pretrain"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
    assert run.data.tags["mlflow.note.content"].startswith("A Transformer pretrained on the train split")


def test_mlflow_evaluation_has_the_numbers_of_results_json(toy_graph):
    report = all_current(toy_graph.layout)["moods_evaluation"]
    metrics = new_client(toy_graph.layout).get_run(run_id_of(toy_graph.layout, report.fingerprint)).data.metrics
    for result in json.loads((report.directory / "results.json").read_text()):
        assert metrics[result["metric"]] == result["value"]
        assert metrics[f"{result['metric']}.random_init"] == result["baselines"]["random_init"]


def test_mlflow_corpus_report_holds_the_data_card_and_begins_with_its_first_page(toy_graph, tmp_path):
    client = new_client(toy_graph.layout)
    report = all_current(toy_graph.layout)["corpus_report"]
    run = client.get_run(run_id_of(toy_graph.layout, report.fingerprint))
    assert run.data.tags["mlflow.note.content"] == (report.directory / "report.md").read_text()
    files = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
    assert {"report/data_card.md", "report/tables.json", "report/figures"} <= files
    card = Path(client.download_artifacts(run.info.run_id, "report/data_card.html", str(tmp_path))).read_text()
    assert card.count('<img src="data:image/png;base64,') == len(list(report.directory.glob("figures/*.png")))
    assert "<table>" in card
    assert run.data.metrics["unaccounted_documents"] == 0
    assert run.data.metrics["documents"] == all_current(toy_graph.layout)["corpus"].rows


LOAD = """
import importlib.util, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
assert not importlib.util.find_spec("pipeline") and not importlib.util.find_spec("model")
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/gristmill-moods@champion")
print(model.predict(pandas.DataFrame({"text": sys.argv[2:]})).to_json(orient="values"))
"""


def test_mlflow_registered_model_answers_where_this_repository_cannot_be_imported(toy_graph, tmp_path):
    assert len(new_client(toy_graph.layout).search_model_versions("name='gristmill-moods'")) == 1
    texts = [
        "the happy brder of ning and the golden lecker with toat",
        "the grey ping of meck and the lonely hal with bin",
    ]
    uri = f"sqlite:///{toy_graph.layout.mlflow / 'mlflow.db'}"
    output = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, uri, *texts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    answers = json.loads(output.splitlines()[-1])
    model = predictor_in(Classifier, all_current(toy_graph.layout)["moods_model"].directory)
    expected = model.answer([{"text": text} for text in texts])
    assert [label for label, _ in answers] == [one["label"] for one in expected]
    assert [p for _, p in answers] == pytest.approx([one["probability"] for one in expected], abs=1e-5)
