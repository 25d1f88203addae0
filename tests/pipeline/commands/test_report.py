"""gristmill report: the data card of the toy graph."""

from argparse import Namespace

import pytest

from pipeline.commands.report import run_report
from pipeline.store.layout import load_current


@pytest.fixture
def folder(toy_graph, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    return load_current(toy_graph.layout, "corpus_report").directory


def test_report_without_a_folder_prints_the_card(folder, capsys):
    assert run_report(Namespace(out=None)) == 0
    assert capsys.readouterr().out == (folder / "data_card.md").read_text() + "\n"


def test_report_into_a_folder_writes_the_card_and_every_figure_that_it_shows(folder, tmp_path, capsys):
    assert run_report(Namespace(out=str(tmp_path / "new" / "card"))) == 0
    card = tmp_path / "new" / "card" / "data_card.md"
    assert capsys.readouterr().out == f"{card}\n"
    assert card.read_bytes() == (folder / "data_card.md").read_bytes()
    shown = [line.split("](")[1].rstrip(")") for line in card.read_text().splitlines() if line.startswith("![")]
    assert shown and all((card.parent / name).is_file() for name in shown)


def test_report_into_a_file_is_refused(folder, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        run_report(Namespace(out=str(tmp_path / "taken")))
    assert (tmp_path / "taken").read_text() == "x"


def test_report_before_the_asset_was_materialised_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="corpus_report has not been materialised"):
        run_report(Namespace(out=None))
