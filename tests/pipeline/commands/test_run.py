"""run: a part of the graph by the names of its assets; warnings and errors are told apart; a mistake is one line."""

import dagster as dg
import pytest

from pipeline.cli import main
from pipeline.commands.run import Watch, selected
from pipeline.definitions import definitions
from pipeline.store.layout import all_current
from pipeline.store.progress import Display


@pytest.fixture
def project(toy_layout, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_layout.data))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return toy_layout


def test_run_of_one_asset_builds_it_and_its_checks_and_nothing_else(project, capsys):
    assert main(["run", "pages/web"]) == 0
    out = capsys.readouterr().out
    assert "[ 1/1] pages/web" in out
    assert "4 of 4 checks passed" in out
    assert "Succeeded: 1 asset built, 0 unchanged." in out
    assert set(all_current(project)) == {"pages/web"}
    assert main(["run", "pages/web"]) == 0
    assert "Nothing had to be rebuilt: 1 asset is up to date" in capsys.readouterr().out


def test_run_without_what_an_asset_is_made_from_says_how_to_build_it(project, capsys):
    assert main(["run", "tokenizer"]) == 1
    out = capsys.readouterr().out
    assert "ERROR: `tokenizer` failed: corpus has not been materialised" in out
    assert "run `gristmill run +corpus`" in out


def test_run_unknown_asset_suggests_the_nearest(project, capsys):
    assert main(["run", "tokeniser"]) == 2
    assert "unknown asset `tokeniser`; did you mean `tokenizer`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tokenizer"], {"tokenizer"}),
        (["+documents"], {"pages/web", "pages/local-texts", "documents"}),
        (["moods_model+", "pages/web"], {"moods_model", "moods_evaluation", "pages/web"}),
    ],
)
def test_selected_assets_with_what_they_are_made_from_and_what_is_made_from_them(toy_layout, names, expected):
    graph = definitions(toy_layout).resolve_asset_graph()
    assert {"/".join(key.path) for key in selected(graph, names)} == expected


@pytest.mark.parametrize(
    ("name", "blocking", "line"),
    [
        (
            "beats_baseline",
            False,
            "WARNING: the model is not better: 3.2, bigram 2.9 (check beats_baseline of foundation_evaluation)",
        ),
        (
            "not_empty",
            True,
            "ERROR: the model is not better: 3.2, bigram 2.9 (check not_empty of foundation_evaluation)",
        ),
    ],
)
def test_check_that_did_not_pass_is_a_warning_unless_it_blocks(toy_layout, tmp_path, name, blocking, line):
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("foundation_evaluation"),
        check_name=name,
        passed=False,
        blocking=blocking,
        description="the model is not better: 3.2, bigram 2.9",
        metadata={"observed": dg.FloatMetadataValue(3.22946), "limit": dg.FloatMetadataValue(2.88414)},
    )
    with (tmp_path / "screen").open("w") as stream:
        watch = Watch(display=Display(stream), layout=toy_layout, assets_of={})
        watch._note_check(evaluation)
    assert watch.complaints == [line]


@pytest.mark.parametrize("command", ["run", "demo", "plan", "ui"])
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("none", "does not exist"),
        ("file", "is a file"),
        ("/proc/self", "cannot be written to"),
        ("empty", "no sources"),
    ],
)
def test_data_folder_that_cannot_be_used_names_the_variable_and_init(
    command, folder, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / folder))
    assert main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gristmill: GRISTMILL_DATA names ")
    assert message in line
    assert "`gristmill init FOLDER`" in line
