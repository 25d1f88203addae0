"""lineage: what an output was made from."""

import shutil
from dataclasses import dataclass

import pytest

from pipeline.store.lineage import lineage
from pipeline.store.records import Shards
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage


@dataclass(frozen=True, kw_only=True)
class Text:
    text: str


def write_file(cfg: Text, inputs: tuple, work) -> Outcome:
    write_text(work.directory / "file.txt", cfg.text)
    return Outcome(rows=1)


@pytest.fixture
def made(store):
    """left is made of root, right of root and left, top of both: an order by distance would put root before left."""

    def build(name, *inputs):
        return store.build(Stage(name=name, version=1, function=write_file, handle=Shards), Text(text=name), *inputs)

    root = build("root").handle
    left = build("left", root).handle
    right = build("right", root, left).handle
    return {"root": root, "left": left, "right": right, "top": build("top", left, right).handle}


def test_lineage_names_every_folder_once_before_what_it_was_made_from(made):
    found = lineage([made["left"], made["top"]])
    assert [folder.stage for folder in found] == ["top", "right", "left", "root"]
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


def test_lineage_until_a_folder_leaves_out_what_that_was_made_from(made):
    found = lineage([made["top"]], until=[made["left"].directory])
    assert [folder.stage for folder in found] == ["top", "right", "root"]
    found = lineage([made["right"]], until=[made["root"].directory, made["left"].directory])
    assert [folder.stage for folder in found] == ["right"]


def test_lineage_of_nothing_is_empty():
    assert lineage([]) == {}
