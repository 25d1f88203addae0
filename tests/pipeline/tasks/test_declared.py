"""What left the TOML files leaves results, trace and doctor; the names of assets are those of the graph."""

import json

from pipeline.commands.doctor import OK, Visit, check_outputs
from pipeline.commands.results import newest_results
from pipeline.definitions import definitions
from pipeline.defs.names import asset_name
from pipeline.store.layout import Layout, all_current, save_current
from pipeline.store.records import Report
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tasks.declared import declared_assets


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
