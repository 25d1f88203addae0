"""lineage: what an output was made from."""

import shutil
from dataclasses import dataclass

import pytest

from pipeline.stages.lineage import lineage
from pipeline.stages.records import Shards
from pipeline.stages.shards import write_text
from pipeline.stages.store import Outcome, Stage


@dataclass(frozen=True, kw_only=True)
class Text:
    text: str


def write_file(cfg: Text, inputs: tuple, work) -> Outcome:
    write_text(work.directory / "file.txt", cfg.text)
    return Outcome(rows=1)


@pytest.fixture
def made(store):
    """left and right are made of the same root, top of both."""

    def build(name, *inputs):
        return store.build(Stage(name=name, version=1, function=write_file, handle=Shards), Text(text=name), *inputs)

    root = build("root").handle
    left, right = build("left", root).handle, build("right", root).handle
    return {"root": root, "left": left, "right": right, "top": build("top", left, right).handle}


def test_lineage_names_every_folder_once_outputs_first(made):
    found = lineage([made["top"]])
    assert [folder.stage for folder in found] == ["top", "left", "right", "root"]
    for folder, record in found.items():
        assert folder.directory == made[folder.stage].directory
        assert record is not None and record["fingerprint"] == folder.fingerprint == made[folder.stage].fingerprint


def test_lineage_of_a_folder_that_was_removed_ends_there_and_names_it(made):
    shutil.rmtree(made["left"].directory)
    found = lineage([made["top"]])
    assert {folder.stage: record is None for folder, record in found.items()} == {
        "top": False,
        "left": True,
        "right": False,
        "root": False,
    }


def test_lineage_of_nothing_is_empty():
    assert lineage([]) == {}
