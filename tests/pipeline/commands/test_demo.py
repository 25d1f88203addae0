"""The demo as a person sees it: nothing is built twice, a failure is told in one line and keeps the rest."""

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.store.layout import asset_records


def test_demo_nothing_changed_says_so_and_shows_the_results(toy_graph, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["demo"]) == 0
    told = capsys.readouterr().out
    assert "[12/12]" in told
    assert "Nothing had to be rebuilt: all 12 assets are up to date" in told
    assert "bits_per_byte" in told
    assert "macro_f1" in told
    with dg.DagsterInstance.from_config(str(toy_graph.layout.dagster_home)) as instance:
        (run,) = instance.get_runs()  # the UI shows it
        assert (run.job_name, run.status) == ("demo", dg.DagsterRunStatus.SUCCESS)


def test_demo_failed_source_is_named_and_the_rest_is_kept(toy_layout, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = toy_layout.sources_toml.read_text()
    toy_layout.sources_toml.write_text(settings.replace('path = "pages"', 'path = "broken.zip"', 1))
    (toy_layout.data / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    assert main(["demo"]) == 1
    told = capsys.readouterr().out
    assert "`pages/web` failed: " in told
    assert "broken.zip" in told
    assert "Finished work is kept: 2 assets built, 0 unchanged." in told


def test_demo_missing_file_is_refused_before_anything_runs(toy_layout, monkeypatch, capsys):
    """The other assets were built for minutes before the run ended as failed."""
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    settings = toy_layout.sources_toml.read_text()
    toy_layout.sources_toml.write_text(settings.replace('path = "pages"', 'path = "elsewhere"', 1))
    assert main(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{toy_layout.sources_toml}: [web]: " in line and str(toy_layout.data / "elsewhere") in line
    assert not toy_layout.store.exists()


@pytest.mark.parametrize("setting", ["[corpus]\nspeed = 3\n", "[tokenizer]\nvocab_size = 'many'\n"])
def test_demo_wrong_setting_is_refused_before_anything_runs(toy_layout, setting, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    toy_layout.config_toml.write_text(setting)
    assert main(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(toy_layout.config_toml) in line
    assert not toy_layout.store.exists()


def test_asset_records_hold_each_stage_of_an_asset_once(toy_graph):
    """`clean` counted twice, because both `signals` and `filter` read it."""
    assert [record["stage"] for record in asset_records(toy_graph.layout, "documents")] == [
        "filter",
        "signals",
        "clean",
    ]
