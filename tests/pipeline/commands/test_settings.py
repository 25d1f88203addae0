"""`gristmill settings`: every setting of the graph, described so that it makes sense on its own."""

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.commands.settings import Row, settings_of_graph
from pipeline.store.layout import Layout

DATA = Path(__file__).parents[3] / "data"


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    """The default sources and tasks, with one setting of a stage and one of an asset changed."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("sources.toml", "models.toml", "tasks.toml"):
        (folder / name).write_text((DATA / name).read_text())
    (folder / "config.toml").write_text("[documents.filter]\nmin_words = 7\n[foundation_model]\nn_layers = 2\n")
    return Layout(folder)


@pytest.fixture(scope="module")
def rows(layout) -> list[Row]:
    return settings_of_graph(layout)


def run(capsys, monkeypatch, layout: Layout, *arguments: str) -> tuple[int, str]:
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    code = main(["settings", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_settings_of_an_asset_with_ranges_and_values_from_the_file(layout, capsys, monkeypatch):
    code, text = run(capsys, monkeypatch, layout, "documents")
    assert code == 0
    (line,) = [line for line in text.splitlines() if " min_words " in line]
    assert re.split(r"  +", line)[:5] == ["documents.filter", "min_words", "a whole number of at least 0", "7", "50"]
    assert "corpus.dedup" not in text and "documents.clean" in text


def test_settings_as_json_have_every_asset(layout, rows, capsys, monkeypatch):
    code, text = run(capsys, monkeypatch, layout, "--json")
    listed = json.loads(text)
    assert code == 0 and len(listed) == len(rows)
    (layers,) = [one for one in listed if (one["asset"], one["setting"]) == ("foundation_model", "n_layers")]
    assert (layers["value"], layers["default"], layers["type"]) == (2, None, "a whole number of at least 1")
    assert {"pages/shakespeare", "corpus.split", "sarcasm_examples", "sarcasm_evaluation"} <= {
        one["asset"] for one in listed
    }


def test_settings_of_a_misspelt_asset_suggest_the_nearest(layout, capsys, monkeypatch):
    code, text = run(capsys, monkeypatch, layout, "foundation_modl")
    assert code == 2 and "unknown asset `foundation_modl`; did you mean `foundation_model`?" in text


def test_descriptions_are_sentences_and_no_two_of_an_asset_are_alike(rows):
    seen: set[tuple[str, str]] = set()
    for row in rows:
        text, place = row.setting.description, f"{row.asset}: {row.setting.name}"
        assert re.match(r"[A-Z0-9]", text) and text.endswith("."), place
        assert len(text.split()) >= 4, place
        asset = row.asset.partition(".")[0]
        assert (asset, text) not in seen, place
        seen.add((asset, text))
