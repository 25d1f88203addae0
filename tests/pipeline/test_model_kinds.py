"""The toy graph with every kind of model: an encoder from scratch, an imported decoder, and both trained further."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.commands.estimate import FLOPS_PER_PARAMETER, LORA_SHARE, estimate
from pipeline.commands.planning import plan
from pipeline.commands.run import Watch, report_lines
from pipeline.definitions import definitions
from pipeline.evaluation.laws import MOST_FORGOTTEN
from pipeline.store.layout import Layout, all_entries, load_current
from pipeline.store.outputs import read_results
from pipeline.store.progress import Display
from pipeline.store.record_file import read_record
from pipeline.training.bases import read_origin
from pipeline.training.model_files import useful
from pipeline.training.open_config import sha256_of

TABLES = """
[foundation_model]
kind = "pretrain"

[little_bert]
kind = "pretrain"
n_layers = 2
d_model = 32
n_heads = 2
seq_len = 32
rows = 4
n_steps = 6
n_validation_batches = 1

[imported]
kind = "open"
folder = "elsewhere"
licence = "MIT"
files = {FILES}

[reader]
kind = "continue"
base = "imported"
domain = ["web"]
general = ["local-texts"]
n_steps = 4
rows = 4
seq_len = 32
lora_rank = 2
n_validation_batches = 1

[encoder_reader]
kind = "continue"
base = "little_bert"
domain = ["web"]
n_steps = 4
rows = 4
seq_len = 32
lora_rank = 2
n_validation_batches = 1
"""
SETTINGS = """
[little_bert]
family = "bert"

[moods_evaluation]
random_init = false
"""
NEW = (
    *("base/imported", "token_shards/imported", "reader", "reader_evaluation"),
    *("little_bert", "little_bert_evaluation", "encoder_reader", "encoder_reader_evaluation"),
    *("moods_model", "moods_evaluation"),
)
RUNS = {  # of MLflow: name -> experiment
    "imported": "base_models",
    "reader": "pretraining",
    "little_bert": "pretraining",
    "encoder_reader": "pretraining",
    "encoder_reader_evaluation": "evaluation",
    "reader_evaluation": "evaluation",
    "little_bert_evaluation": "evaluation",
}


@pytest.fixture(scope="module")
def grown(toy_graph, tmp_path_factory):
    """The folder `elsewhere` is the exported foundation model, as if somebody else had published it."""
    data = tmp_path_factory.mktemp("grown") / "data"
    shutil.copytree(toy_graph.layout.data, data, ignore=shutil.ignore_patterns("artifacts", "pages"))
    layout = Layout(data)
    for file, name in (
        (layout.sources_toml, "pages"),
        (layout.tasks_toml, "moods.jsonl"),
    ):  # the same files as before
        file.write_text(file.read_text().replace(f'path = "{name}"', f'path = "{toy_graph.layout.data / name}"'))
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral(str(data)) as instance:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GRISTMILL_DATA", str(data))
        assert main(["export", "foundation_model", str(data / "elsewhere")]) == 0
        names = useful([path.name for path in (data / "elsewhere").iterdir()])
        files = ", ".join(f'"{name}" = "{sha256_of(data / "elsewhere" / name)}"' for name in names)
        layout.models_toml.write_text(TABLES.replace("{FILES}", f"{{ {files} }}"))
        tasks = layout.tasks_toml.read_text().replace('base = "foundation_model"', 'base = "little_bert"')
        layout.tasks_toml.write_text(tasks)
        layout.config_toml.write_text(layout.config_toml.read_text() + SETTINGS)
        before = {entry["asset"]: entry["folder"] for entry in all_entries(layout)}
        job = definitions(layout).resolve_job_def("demo")
        keys = [dg.AssetKey(name.split("/")) for name in NEW]
        result = job.execute_in_process(instance=instance, asset_selection=keys)
        yield SimpleNamespace(layout=layout, result=result, before=before)


def inputs_of(layout: Layout, asset: str) -> list[str]:
    """The assets whose outputs an output was made from."""
    names = {entry["folder"]: entry["asset"] for entry in all_entries(layout)}
    record = read_record(load_current(layout, asset).directory)
    assert record is not None
    return [names[f"{one['stage']}/{one['fingerprint']}"] for one in record["inputs"]]


def test_every_kind_of_model_is_built_and_the_second_time_nothing_is(grown):
    assert grown.result.success
    assert {one.asset for one in plan(grown.layout) if one.rebuilt} == set()


@pytest.fixture
def changed_tables(grown):
    """Writes models.toml with a replacement, and restores it afterwards."""
    path = grown.layout.models_toml
    text = path.read_text()

    def change(old: str, new: str) -> None:
        assert old in text
        path.write_text(text.replace(old, new, 1))

    yield change
    path.write_text(text)


def test_plan_with_another_base_rebuilds_the_tokens_that_its_tokenizer_makes(grown, changed_tables):
    (sha256,) = re.findall(r'"config.json" = "(\w{64})"', grown.layout.models_toml.read_text())
    changed_tables(sha256, "0" * 64)
    reasons = {one.asset: one.rebuilt[0].reasons for one in plan(grown.layout) if one.rebuilt}
    assert reasons.keys() == {"base/imported", "token_shards/imported", "reader", "reader_evaluation"}
    assert reasons["token_shards/imported"] == ("base/imported is rebuilt",)
    assert reasons["reader"] == ("base/imported is rebuilt", "token_shards/imported is rebuilt")


def test_plan_and_estimate_of_a_longer_continued_training_count_its_steps(grown, changed_tables):
    changed_tables("n_steps = 4", "n_steps = 4_000_000")
    planned = plan(grown.layout)
    (reader,) = (one for one in planned if one.asset == "reader")
    (build,) = reader.rebuilt
    assert build.reasons == ("train.n_steps 4 -> 4000000",)
    assert build.seconds == pytest.approx(1e6 * build.last["seconds"])
    assert reader.n_tokens == 4_000_000 * 4 * 32
    work = estimate(planned, {"reader"})
    assert work is not None and work.unknown == ()
    n_parameters = build.last["measures"]["parameters"]
    assert work.flops == pytest.approx(LORA_SHARE * FLOPS_PER_PARAMETER * n_parameters * reader.n_tokens)


def test_imported_model_has_parameters_and_neither_rows_nor_steps(grown):
    values = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in grown.result.get_asset_materialization_events()
    }
    assert "parameters" in values["base/imported"] and "steps" not in values["base/imported"]
    assert values["reader"]["steps"].value == "4"
    watch = Watch(display=Display(io.StringIO()), layout=grown.layout, assets_of={})
    watch.finished_before.clear()
    n_parameters = read_origin(load_current(grown.layout, "base/imported").directory).parameters
    assert watch._outcome("base/imported").startswith(f"{n_parameters:,} parameters, ")
    (line,) = (line for line in report_lines(grown.layout, watch, 1.0) if line.startswith("base/imported "))
    assert len(line.split()) == 2  # its name and the seconds


def test_checks_of_a_model_go_by_what_its_evaluation_measured(grown):
    """The family of little_bert is in config.toml, and that of an open model in its files alone."""
    judged = {
        (one.asset_key.to_user_string(), one.check_name): one.metadata["limit"].value
        for one in grown.result.get_asset_check_evaluations()
    }
    for asset, check, metric, baseline in (
        ("little_bert_evaluation", "beats_baseline", "masked_perplexity", "unigram"),
        ("encoder_reader_evaluation", "beats_base", "domain_masked_perplexity", "base"),
        ("reader_evaluation", "beats_base", "domain_bits_per_byte", "base"),
    ):
        results = {one["metric"]: one for one in read_results(load_current(grown.layout, asset).directory)}
        assert judged[asset, check] == results[metric]["baselines"][baseline]
    assert judged["encoder_reader_evaluation", "forgets_little"] == MOST_FORGOTTEN


def test_models_share_tokens_and_are_made_from_what_their_tables_say(grown):
    """Nothing that two models need is computed twice: the token shards are those of the toy graph."""
    after = {entry["asset"]: entry["folder"] for entry in all_entries(grown.layout)}
    shared = ("corpus", "tokenizer", "token_shards", "foundation_model", "moods_examples")
    assert {name: after[name] for name in shared} == {name: grown.before[name] for name in shared}
    assert inputs_of(grown.layout, "little_bert") == ["token_shards", "tokenizer"]
    assert inputs_of(grown.layout, "foundation_model") == ["token_shards", "tokenizer"]
    assert inputs_of(grown.layout, "token_shards/imported") == ["corpus", "base/imported"]
    assert inputs_of(grown.layout, "reader") == ["base/imported", "token_shards/imported"]
    assert inputs_of(grown.layout, "reader_evaluation") == ["reader", "token_shards/imported", "base/imported"]
    assert inputs_of(grown.layout, "encoder_reader") == ["little_bert", "token_shards"]
    assert inputs_of(grown.layout, "moods_model") == ["little_bert", "moods_examples"]


def test_each_model_has_one_run_in_its_experiment_that_names_its_base(grown):
    from pipeline.tracking.server import new_client

    client, found = new_client(grown.layout), {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            if run.info.run_name in RUNS:
                assert run.info.run_name not in found
                assert run.info.status == "FINISHED"
                found[run.info.run_name] = experiment.name, run.data.tags
    assert {name: experiment for name, (experiment, _) in found.items()} == RUNS
    origin = read_origin(load_current(grown.layout, "base/imported").directory)
    for name in ("imported", "reader", "reader_evaluation"):
        tags = found[name][1]
        assert (tags["gristmill.base"], tags["gristmill.base.licence"]) == ("base/imported", "MIT")
        assert origin.files["model.safetensors"] in tags["gristmill.base.sha256"]
    assert "gristmill.base" not in found["little_bert"][1]
    registered = {model.name for model in client.search_registered_models()}
    assert {"gristmill-reader", "gristmill-little_bert"} <= registered


@pytest.fixture
def commands(grown, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(grown.layout.data))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return grown


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        ("base/imported", "Qwen3ForCausalLM"),
        ("reader", "Qwen3ForCausalLM"),
        ("little_bert", "BertForMaskedLM"),
        ("moods_model", "BertForSequenceClassification"),
    ],
)
def test_export_of_each_kind_of_model(commands, model, architecture, tmp_path):
    assert main(["export", model, str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("| base: licence | MIT |" in card) == (model in ("base/imported", "reader"))


def test_generate_continues_texts_with_any_decoder_and_refuses_an_encoder_in_one_line(commands, capsys):
    for model in ("base/imported", "reader"):
        assert main(["generate", "The ", "--model", model, "--tokens", "3"]) == 0
    assert main(["generate", "The ", "--model", "little_bert"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "masked language model" in line and "decoder" in line


@pytest.mark.parametrize(
    ("model", "tokens", "metric"),
    [
        ("base/imported", "token_shards/imported", "bits per byte"),
        ("reader", "token_shards/imported", "bits per byte"),
        ("little_bert", "token_shards", "masked accuracy"),
        ("encoder_reader", "token_shards", "masked accuracy"),
    ],
)
def test_evaluate_of_each_kind_of_model(commands, model, tokens, metric, tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["evaluate", model, tokens, "--out", str(out), "--set", "n_samples=0"]) == 0
    assert metric in capsys.readouterr().out and read_results(out)


def test_trace_names_every_model_that_read_a_document(commands, capsys):
    assert main(["trace", "story-01.html", "--json"]) == 0
    (page,) = json.loads(capsys.readouterr().out)["pages"]
    tokens = load_current(commands.layout, "token_shards/imported").directory
    models = {one["fingerprint"]: one for one in page["models"]}
    reader = models[load_current(commands.layout, "reader").fingerprint]
    assert reader["tokens"] == str(tokens)
    assert load_current(commands.layout, "little_bert").fingerprint in models


def test_forget_names_the_shards_and_the_models_that_the_next_run_rebuilds(commands, capsys):
    """It ended with an IndexError, because the assets of sources have names of their own."""
    assert main(["forget", "--dry-run", "--reason", "x", "story-01.html"]) == 0
    rebuilt = capsys.readouterr().out.partition("The next run rebuilds:")[2]
    assert {"pages/web", "documents", "token_shards", "token_shards/imported"} <= set(rebuilt.split())
    (models,) = [line for line in rebuilt.splitlines() if line.endswith("if the corpus changes")]
    assert {"reader", "little_bert"} <= set(models.replace(",", "").split()) and "base/imported" not in models


def test_gc_keeps_the_base_that_a_model_needs(commands, capsys):
    base = load_current(commands.layout, "base/imported").directory
    assert main(["gc", "--yes"]) == 0
    assert (base / "model.safetensors").exists()
    assert str(base.relative_to(commands.layout.data)) not in capsys.readouterr().out


def test_results_and_settings_know_the_models(commands, capsys):
    assert main(["results", "--json"]) == 0
    assert {"reader_evaluation", "little_bert_evaluation", "encoder_reader_evaluation"} <= {
        one["asset"] for one in json.loads(capsys.readouterr().out)
    }
    assert main(["settings", "reader", "--json"]) == 0
    values = {one["setting"]: one.get("value") for one in json.loads(capsys.readouterr().out)}
    assert (values["n_steps"], values["domain"]) == (4, ["web"])
