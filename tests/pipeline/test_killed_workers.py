"""Workers that the system kills, in every data stage that has some: the output is the same."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.corpus.split.stage import leaked_documents
from pipeline.store.engine import LocalProcesses, value_of
from pipeline.store.store import Store
from tests.pipeline.kills import always_killed, killed_once
from tests.pipeline.toy_chain import InThisProcess, chain, facts, write_inputs


class KillsAWorkerPerCall:
    def __init__(self, folder: Path):
        self.engine, self.folder, self.n_calls = LocalProcesses(n_workers=1), folder, 0

    def map(self, function, items, **limits):
        self.n_calls += 1
        return self.engine.map(partial(killed_once, function, self.folder / str(self.n_calls)), items, **limits)


def test_killed_worker_costs_a_retry_in_every_stage_and_changes_no_output(tmp_path):
    """dedup and the checks of the corpus ended the run, clean dropped the page for ever (trials of reliability 1)."""
    marks = tmp_path / "marks"
    marks.mkdir()
    write_inputs(tmp_path)
    engine = KillsAWorkerPerCall(marks)
    expected = chain(Store(root=tmp_path / "calm", engine=InThisProcess()), tmp_path)
    killed = chain(Store(root=tmp_path / "killed", engine=engine), tmp_path)
    n_killed = len(list(marks.iterdir()))
    assert leaked_documents(killed["split"], engine=engine).passed
    assert {name: facts(one) for name, one in killed.items()} == {name: facts(one) for name, one in expected.items()}
    assert n_killed >= 12 and len(list(marks.iterdir())) > n_killed


def test_item_that_kills_every_worker_is_named_and_tried_a_bounded_number_of_times(caplog):
    items = [Path("a"), Path("poison"), Path("b")]
    answers = list(LocalProcesses(n_workers=2).map(always_killed, items))
    assert [value_of(answers[i], items[i], "it was read") for i in (0, 2)] == [None, None]
    with pytest.raises(RuntimeError, match=r"poison: crash while it was read: worker ended with code -9"):
        value_of(answers[1], items[1], "it was read")
    assert [record.getMessage() for record in caplog.records if "tried again alone" in record.getMessage()] == [
        "poison: worker ended with code -9; it is tried again alone"
    ] * 2
