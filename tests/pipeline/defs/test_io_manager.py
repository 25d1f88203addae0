"""Two runs at once each read what they made themselves, and a retry what the run before it made."""

import dagster as dg
import pytest

from pipeline.defs.resources import HandleFiles
from pipeline.defs.run_process import forget_outputs_of_past_runs
from pipeline.store.errors import CorruptShard
from pipeline.store.layout import Layout, load_current
from pipeline.store.records import Shards
from pipeline.store.run_handles import held_by_runs, load_of_runs, runs_with_handles, save_of_run
from pipeline.store.store import Outcome, Stage, Store


def _nothing(cfg, inputs, work) -> Outcome:
    return Outcome(rows=0)


STAGE = Stage(name="mill", version=1, function=_nothing, handle=Shards)


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        yield instance


def graph(layout: Layout, between=lambda: None) -> list:
    """Assets grain -> wait -> flour; grain is built from the setting `name`, and flour returns what it read."""

    @dg.asset(config_schema={"name": str})
    def grain(context) -> Shards:
        name = context.op_execution_context.op_config["name"]
        return Store(root=layout.store).build(STAGE, {"name": name}).handle

    @dg.asset(deps=[grain], io_manager_key="plain")
    def wait() -> None:
        between()

    @dg.asset(deps=[wait], io_manager_key="plain")
    def flour(grain: Shards) -> str:
        return grain.fingerprint

    return [grain, wait, flour]


def milled(layout: Layout, instance, name: str | None, between=lambda: None, **options):
    resources = {"io_manager": HandleFiles(data_folder=str(layout.data)), "plain": dg.mem_io_manager}
    config = {"ops": {"grain": {"config": {"name": name}}}} if name else {}
    return dg.materialize(
        graph(layout, between), instance=instance, resources=resources, run_config=config, **options
    )


def test_io_manager_two_runs_at_once_each_read_their_own_output(layout, instance):
    """Run A's corpus was made from the documents of run B, which ended in between (own review, proven)."""
    inner = []
    outer = milled(layout, instance, "a", between=lambda: inner.append(milled(layout, instance, "b")))
    of_a, of_b = (run.output_for_node("grain").fingerprint for run in (outer, inner[0]))
    assert of_a != of_b
    assert (outer.output_for_node("flour"), inner[0].output_for_node("flour")) == (of_a, of_b)
    assert load_current(layout, "grain").fingerprint == of_b  # the newest, for whoever builds a part later


def test_io_manager_forgets_a_run_that_succeeded_and_keeps_one_that_may_be_retried(layout, instance):
    def fail() -> None:
        raise ValueError("the mill stands still")

    failed = milled(layout, instance, "a", between=fail, raise_on_error=False)
    succeeded = milled(layout, instance, "b")
    assert {path.parent for path in held_by_runs(layout)} == {layout.store / "mill"}
    forget_outputs_of_past_runs(layout, instance)
    assert runs_with_handles(layout) == [failed.run_id]
    assert load_of_runs(layout, [succeeded.run_id, failed.run_id], "grain") == failed.output_for_node("grain")


def test_io_manager_reads_the_newest_output_of_assets_that_the_run_does_not_build(layout, instance):
    before = milled(layout, instance, "a").output_for_node("grain")
    later = milled(layout, instance, None, selection=["wait", "flour"])
    assert later.output_for_node("flour") == before.fingerprint


@pytest.mark.parametrize("run_id", ["../x", "", "a/b"])
def test_run_handles_take_no_path_for_an_id(layout, run_id):
    with pytest.raises(ValueError, match="is not the id of a run"):
        load_of_runs(layout, [run_id], "grain")


def test_run_handles_damaged_file_names_the_cure(layout):
    save_of_run(layout, "r1", "grain", Store(root=layout.store).build(STAGE, {"name": "a"}).handle)
    (path,) = layout.run_handles.rglob("*.json")
    path.write_text('{"asset": "gr')
    with pytest.raises(CorruptShard, match=r"r1/grain.json is damaged .*delete it"):
        load_of_runs(layout, ["r1"], "grain")
    assert list(held_by_runs(layout)) == []
