"""What left the TOML files leaves results, trace and doctor; the names of assets are those of the graph."""

import json

import pytest
from dagster import AssetKey
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext, DefinitionsLoadType

from pipeline.commands.doctor import OK, Visit, check_outputs
from pipeline.commands.results import newest_results
from pipeline.definitions import definitions, defs
from pipeline.defs.names import asset_name
from pipeline.store.layout import Layout, all_current, save_current
from pipeline.store.records import Report
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tasks.declared import declared_assets, idle_assets
from pipeline.tasks.tasks_toml import read_tasks


def _report(cfg, inputs, work) -> Outcome:
    result = {
        "metric": "accuracy",
        "value": 0.5,
        "low": None,
        "high": None,
        "higher_is_better": True,
        "baselines": {},
    }
    write_text(work.directory / "results.json", json.dumps([result]))
    return Outcome(rows=1)


def evaluated(layout: Layout, asset: str) -> None:
    stage = Stage(name="evaluate_letters", version=1, function=_report, handle=Report)
    save_current(layout, asset, Store(root=layout.store).build(stage, {"asset": asset}).handle)


def test_declared_assets_are_those_of_the_graph(toy_layout):
    graph = definitions(toy_layout).resolve_asset_graph()
    assert declared_assets(toy_layout) == {asset_name(key) for key in graph.get_all_asset_keys()}


def test_declared_task_that_left_the_file_leaves_results_and_doctor(toy_layout):
    """A task taken out of tasks.toml stayed in `gristmill results` and in the demo's last table (own review)."""
    for asset in ("moods_evaluation", "former_evaluation"):
        evaluated(toy_layout, asset)
    assert [one["asset"] for one in newest_results(toy_layout)] == ["moods_evaluation"]
    assert {one["asset"] for one in newest_results(toy_layout, retired=True)} == {
        "moods_evaluation",
        "former_evaluation",
    }
    assert set(all_current(toy_layout, declared_assets(toy_layout))) == {"moods_evaluation"}
    retired, outputs = check_outputs(Visit(layout=toy_layout, mend=False))
    assert retired.state == OK and retired.detail.startswith("former_evaluation: in none of the files any more")
    assert outputs.detail == "1 current, all complete"


@pytest.fixture
def loaded(toy_layout, monkeypatch) -> Layout:
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    return toy_layout


def test_load_of_a_whole_project_succeeds(loaded):
    assert defs().assets


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        ("sources", 'path = "pages"', 'path = "pagse"', r"sources.toml: \[web\]: path .*pagse does not exist"),
        ("tasks", "moods.jsonl", "mods.jsonl", r"tasks.toml: \[moods\]: data: path .*mods.jsonl is not a file"),
        (
            "tasks",
            'label = "mood"',
            'label = "mood"\ntest_data = { path = "later.csv" }',
            r"tasks.toml: \[moods\]: test_data: path .*later.csv is not a file",
        ),
        (
            "tasks",
            'label = "mood"',
            'label = "moood"',
            r"tasks.toml: \[moods\]: .*label is 'moood'.*did you mean `mood`",
        ),
        (
            "tasks",
            'text = "text"',
            'text = "Text"',
            r"tasks.toml: \[moods\]: .*text is 'Text'.*the rows have: mood, text",
        ),
    ],
)
def test_load_of_what_is_not_there_is_refused_and_ends_no_run(loaded, monkeypatch, file, before, after, message):
    """A wrong path or column loaded and failed in the run, after the other assets were built (own trials, A5)."""
    path = {"sources": loaded.sources_toml, "tasks": loaded.tasks_toml}[file]
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        defs()
    step = DefinitionsLoadContext(load_type=DefinitionsLoadType.RECONSTRUCTION)
    monkeypatch.setattr(DefinitionsLoadContext, "_instance", step)
    assert defs().assets  # a step of a run that is under way, which may read other things


def test_load_of_a_missing_folder_names_its_variable(loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"GRISTMILL_DATA names .*gone, which does not exist"):
        defs()


OPEN = f"""
[foundation_model]
kind = "pretrain"
[small]
kind = "open"
folder = "small"
files = {{ "small.gguf" = "{"0" * 64}" }}
[large]
kind = "open"
folder = "large"
files = {{ "large.gguf" = "{"1" * 64}" }}
"""
ON_OPEN = """
[shown]
kind = "classification"
base = "large"
showcase = true
data = { path = "moods.jsonl" }
text = "text"
label = "mood"
"""


def test_task_on_an_open_model_needs_no_corpus_and_the_corpus_not_its_examples(toy_layout):
    """A task from published weights rebuilt the corpus, which those weights have never seen."""
    toy_layout.models_toml.write_text(OPEN)
    before = toy_layout.tasks_toml.read_text()
    toy_layout.tasks_toml.write_text(before + ON_OPEN.replace("showcase = true\n", ""))
    graph = definitions(toy_layout).resolve_asset_graph()
    reads = {
        asset_name(key): {asset_name(one) for one in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert "moods_examples" in reads["corpus"] and "shown_examples" not in reads["corpus"]
    assert "corpus" in reads["moods_evaluation"]
    assert reads["shown_evaluation"] == {"base/large", "shown_model", "shown_examples"}
    prompted = before + ON_OPEN.replace("showcase = true", 'prompted = "small"')
    toy_layout.tasks_toml.write_text(prompted)
    assert set(idle_assets(toy_layout)) == set()
    node = definitions(toy_layout).resolve_asset_graph().get(AssetKey("shown_evaluation"))
    assert {asset_name(one) for one in node.parent_keys} == {*reads["shown_evaluation"], "base/small"}
    toy_layout.tasks_toml.write_text(prompted.replace('"small"', '"foundation_model"'))
    node = definitions(toy_layout).resolve_asset_graph().get(AssetKey("shown_evaluation"))
    assert {asset_name(one) for one in node.parent_keys} == {*reads["shown_evaluation"], "foundation_model", "corpus"}


def test_showcase_is_built_by_its_job_and_by_no_other(toy_layout):
    toy_layout.models_toml.write_text(OPEN)
    toy_layout.tasks_toml.write_text(toy_layout.tasks_toml.read_text() + ON_OPEN)
    graph = definitions(toy_layout)
    shown = {"base/large", "shown_examples", "shown_model", "shown_evaluation"}

    def built(job: str) -> set[str]:
        return {asset_name(key) for key in graph.resolve_job_def(job).asset_layer.executable_asset_keys}

    assert built("showcase") == shown
    assert (
        built("demo")
        == declared_assets(toy_layout) - shown - {"base/small"}
        == built("everything") - {*shown, "base/small"}
    )
    assert not built("finetune") & shown
    assert set(idle_assets(toy_layout)) == {*shown, "base/small"}


def test_showcase_on_a_model_of_ones_own_is_refused(toy_layout):
    """Its examples would have to be kept out of the corpus, but an ordinary run doesn't build them."""
    toy_layout.models_toml.write_text(OPEN)
    toy_layout.tasks_toml.write_text(ON_OPEN.replace('"large"', '"foundation_model"'))
    with pytest.raises(ValueError, match=r"\[shown\]: showcase = true .* 'foundation_model' is trained"):
        read_tasks(toy_layout.tasks_toml)
    toy_layout.tasks_toml.write_text(ON_OPEN.replace("true", "1"))
    with pytest.raises(ValueError, match=r"showcase is 1, expected true or false"):
        read_tasks(toy_layout.tasks_toml)
