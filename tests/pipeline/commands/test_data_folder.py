"""A data folder that is missing, a file, or full is named by every command, with the variable and what to do."""

import pytest

from pipeline.cli import main

COMMANDS = [
    "run", "plan", "results", "du", "gc --yes", "trace mill", "forget mill", "export foundation_model out", "report",
    "settings", "generate mill", "ui",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("name", "fault"), [("file", "is a file, expected a folder"), ("none", "does not exist")])
def test_data_folder_that_is_none_is_named_with_the_variable(command, name, fault, tmp_path, monkeypatch, capsys):
    """`results` said that sources.toml does not exist, and `du` counted nothing, where the variable named a file."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path / name))
    assert main(command.split()) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"gristmill: GRISTMILL_DATA names {tmp_path / name}, which {fault}; `gristmill init FOLDER`"
    )
    assert line.count("\n") == 1


def test_init_below_a_file_names_it(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main(["init", str(tmp_path / "file" / "below")]) == 2
    assert f"{tmp_path / 'file'} is a file; choose another folder" in capsys.readouterr().err
