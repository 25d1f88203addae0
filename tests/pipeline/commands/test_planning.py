"""plan: what it says will be rebuilt is what a run then rebuilds, and saying it changes nothing."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.commands.planning import Changes, _reasons, plan
from pipeline.definitions import definitions
from pipeline.store.checksums import SEEN
from pipeline.store.layout import Layout, asset_records
from pipeline.store.records import Shards
from pipeline.store.store import BEGUN, FORMAT, Outcome, Stage

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DOWNSTREAM_OF_TOKENIZER = {
    "tokenizer",
    "token_shards",
    "foundation_model",
    "foundation_evaluation",
    "moods_model",
    "moods_evaluation",
}


@dataclass(frozen=True, slots=True)
class OtherSettings(Layout):
    """The same store under another config.toml, sources.toml and models.toml."""

    folder: Path

    @property
    def config_toml(self) -> Path:
        return self.folder / "config.toml"

    @property
    def sources_toml(self) -> Path:
        return self.folder / "sources.toml"

    @property
    def models_toml(self) -> Path:
        return self.folder / "models.toml"


@pytest.fixture
def other_settings(toy_graph, tmp_path) -> OtherSettings:
    """Copies of the two files, to be changed; `path` in sources.toml made absolute, as the original means it."""
    layout = toy_graph.layout
    shutil.copyfile(layout.config_toml, tmp_path / "config.toml")
    text = layout.sources_toml.read_text()
    (tmp_path / "sources.toml").write_text(text.replace('path = "pages"', f'path = "{layout.data / "pages"}"'))
    return OtherSettings(layout.data, tmp_path)


def rebuilt(assets) -> dict[str, str]:
    """Asset -> all that is said of why."""
    return {
        one.asset: "; ".join(reason for build in one.rebuilt for reason in build.reasons)
        for one in assets
        if one.rebuilt
    }


def outputs(layout: Layout) -> dict[Path, int]:
    """Files and their times, without the cache of what was verified."""
    folders = (layout.store, layout.current, layout.tracking)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != SEEN]
    return {path: path.stat().st_mtime_ns for path in files}


def test_plan_further_model_shares_the_tokens_and_a_changed_table_rebuilds_only_its_own(other_settings):
    tables = '[foundation_model]\nkind = "pretrain"\n\n[little]\nkind = "pretrain"\nfamily = "gpt2"\n'
    other_settings.models_toml.write_text(tables)
    assert rebuilt(plan(other_settings)) == {
        "little": "never built",
        "little_evaluation": "needs little, which is not built yet",
    }
    other_settings.models_toml.write_text(tables.replace('"pretrain"\n', '"pretrain"\nn_kv_heads = 1\n', 1))
    changed = rebuilt(plan(other_settings))
    assert changed.keys() - {"little", "little_evaluation"} == {
        *("foundation_model", "foundation_evaluation", "moods_model", "moods_evaluation")
    }
    assert "n_kv_heads 2 -> 1" in changed["foundation_model"]


def test_plan_nothing_changed_rebuilds_nothing_and_writes_nothing(toy_graph, monkeypatch, capsys):
    before = outputs(toy_graph.layout)
    assert rebuilt(plan(toy_graph.layout)) == {}
    assert outputs(toy_graph.layout) == before
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    assert main(["plan"]) == 0
    assert "assets are up to date" in capsys.readouterr().out


def test_plan_changed_setting_names_it_and_rebuilds_what_is_made_from_it(other_settings):
    text = other_settings.config_toml.read_text()
    other_settings.config_toml.write_text(text.replace("vocab_size = 300", "vocab_size = 310"))
    reasons = rebuilt(plan(other_settings))
    assert set(reasons) == DOWNSTREAM_OF_TOKENIZER
    assert reasons["tokenizer"] == "vocab_size 300 -> 310"
    assert reasons["foundation_model"] == "token_shards is rebuilt; tokenizer is rebuilt"


def test_plan_of_a_longer_training_takes_longer(other_settings):
    text = other_settings.config_toml.read_text()
    other_settings.config_toml.write_text(text.replace("n_steps = 30", "n_steps = 300"))
    (model,) = [one for one in plan(other_settings) if one.asset == "foundation_model"]
    (build,) = model.rebuilt
    assert build.reasons == ("train.n_steps 30 -> 300",)
    assert build.seconds == pytest.approx(10 * build.last["seconds"])
    assert build.n_bytes == build.last["bytes"]
    assert model.n_tokens == 300 * 4 * 32


def test_plan_of_a_build_that_was_killed_goes_on_with_it(other_settings):
    text = other_settings.config_toml.read_text()
    other_settings.config_toml.write_text(text.replace("vocab_size = 300", "vocab_size = 320"))
    (build,) = tokenizer_of(plan(other_settings)).rebuilt
    assert not build.resumes
    folder = other_settings.store / "tokenizer" / build.fingerprint
    folder.mkdir()
    try:
        (folder / BEGUN).write_text(build.fingerprint)
        (build,) = tokenizer_of(plan(other_settings)).rebuilt
    finally:
        shutil.rmtree(folder)
    assert build.resumes


def tokenizer_of(assets):
    return next(one for one in assets if one.asset == "tokenizer")


def test_plan_new_source_was_never_built(other_settings):
    pages = other_settings.data / "pages"
    table = f'[more]\nkind = "files"\npath = "{pages}"\nmembers = ["note-*.md"]\nlicence = "ours"\n'
    other_settings.sources_toml.write_text(other_settings.sources_toml.read_text() + table)
    assets = plan(other_settings)
    reasons = rebuilt(assets)
    assert reasons["pages/more"] == "never built"
    assert "needs pages/more, which is not built yet" in reasons["documents"]
    (new,) = [one for one in assets if one.asset == "pages/more"]
    assert [build.seconds for build in new.rebuilt] == [None]


def test_plan_source_whose_folder_is_gone_says_so_and_fails(other_settings, monkeypatch, capsys):
    text = other_settings.sources_toml.read_text()
    other_settings.sources_toml.write_text(text.replace(str(other_settings.data / "pages"), "/no/such/folder", 1))
    monkeypatch.setattr("pipeline.commands.plan.usable_layout", lambda: other_settings)
    assert main(["plan"]) == 1
    told = capsys.readouterr().out
    assert f"cannot be built: {other_settings.sources_toml}: [web]: source `web`: path /no/such/folder does" in told


def test_plan_as_json_tells_the_stages(other_settings, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.commands.plan.usable_layout", lambda: other_settings)
    assert main(["plan", "--json"]) == 0
    assets = {one["asset"]: one for one in json.loads(capsys.readouterr().out)}
    assert [stage["stage"] for stage in assets["documents"]["stages"]] == ["clean", "signals", "filter"]
    assert assets["corpus"]["documents"] == assets["documents"]["documents"] - 1  # short.txt was dropped
    assert assets["token_shards"]["tokens"] > 0


def test_plan_covers_what_a_run_then_rebuilds(toy_layout):
    """The corpus of a project of its own: built, one page changed, planned, built again."""
    job = definitions(toy_layout).resolve_job_def("build_corpus")
    with dg.DagsterInstance.ephemeral() as instance:
        job.execute_in_process(instance=instance, run_config=QUIET)
        names = {"pages/web", "pages/local-texts", "documents", "corpus", "tokenizer", "token_shards"}
        before = {name: asset_records(toy_layout, name)[0]["fingerprint"] for name in names}
        page = toy_layout.data / "pages" / "note-03.md"
        page.write_text(page.read_text().replace("The ", "A ", 3))
        assets = plan(toy_layout)
        job.execute_in_process(instance=instance, run_config=QUIET)
    after = {name: asset_records(toy_layout, name)[0]["fingerprint"] for name in names}
    made = {name for name in names if before[name] != after[name]}
    planned = set(rebuilt(assets))
    assert made <= planned
    assert "pages/web" not in planned
    assert rebuilt(assets)["documents"].startswith("pages/local-texts is rebuilt")
    (clean,) = [build for one in assets for build in one.rebuilt if build.stage == "clean"]
    assert 0 < clean.share < 1


def test_plan_before_anything_was_built_knows_no_times(toy_layout, monkeypatch, capsys):
    assets = plan(toy_layout)
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    assert "Nothing was built yet: 12 assets would be built." in out
    assert "0:00" not in out
    assert {one.asset for one in assets if one.rebuilt} == {one.asset for one in assets}
    assert all(build.seconds is None for one in assets for build in one.rebuilt)


def test_plan_of_an_evaluation_without_random_init_trains_no_second_model(other_settings):
    def stages():
        (found,) = (one for one in plan(other_settings) if one.asset == "moods_evaluation")
        return [build.stage for build in found.builds]

    assert stages() == ["finetune", "evaluate_task"]
    text = other_settings.config_toml.read_text()
    other_settings.config_toml.write_text(text + "\n[moods_evaluation]\nrandom_init = false\n")
    assert stages() == ["evaluate_task"]


def test_plan_of_outputs_with_older_fingerprints_or_lost_rows_says_why_they_are_built_again():
    stage = Stage(name="grind", version=1, function=lambda *inputs: Outcome(rows=0), handle=Shards)
    last = {"version": 1, "libraries": {}, "config": {}, "inputs": [], "counts": None}
    (reason,) = _reasons(stage, {}, (), last, Changes())
    assert reason == f"fingerprints and digests are computed in a new way: format 1 -> {FORMAT}"
    last |= {"format": FORMAT, "counts": {"rows_in": 9, "kept": 7, "dropped": {"timeout": 2}, "lost": {"timeout": 2}}}
    (reason,) = _reasons(stage, {}, (), last, Changes())
    assert reason == "2 rows that workers could not finish are tried again (timeout 2)"
