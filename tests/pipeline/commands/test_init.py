"""init: what it writes can be run once the one path is right, and it overwrites nothing."""

from pathlib import Path

from pipeline.cli import main
from pipeline.store.layout import Layout, all_current
from pipeline.store.settings import read_toml


def test_init_writes_a_project_that_runs_once_its_path_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = Layout(tmp_path / "project")
    assert main(["init", str(layout.data)]) == 0
    assert f"GRISTMILL_DATA={layout.data} gristmill run" in capsys.readouterr().out
    texts = tmp_path / "notes"
    texts.mkdir()
    for name in ("one.md", "two.txt"):
        (texts / name).write_text(f"The mill of {name} grinds the grain of the farmers by the river.\n")
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    assert main(["plan"]) == 1  # the path is still the example's
    assert "path" in capsys.readouterr().out
    layout.sources_toml.write_text(layout.sources_toml.read_text().replace('"text"', f'"{texts}"'))
    assert main(["run", "pages/my-text"]) == 0
    assert all_current(layout)["pages/my-text"].rows == 2


def test_init_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "tasks.toml").write_text("# mine\n")
    assert main(["init", str(tmp_path)]) == 2
    assert "tasks.toml exists and is not overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.toml"]
    assert (tmp_path / "tasks.toml").read_text() == "# mine\n"


def test_init_knows_the_open_models_of_the_demo(tmp_path, capsys):
    assert main(["init", str(tmp_path)]) == 0
    ours, demo = (read_toml(path / "models.toml") for path in (tmp_path, Path(__file__).parents[3] / "data"))
    assert ours.keys() == demo.keys() == {"foundation_model", "smollm2", "minilm"}
    assert [ours[name] for name in ("smollm2", "minilm")] == [demo[name] for name in ("smollm2", "minilm")]
