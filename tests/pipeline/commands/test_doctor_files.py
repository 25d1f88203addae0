"""The doctor names every damaged file of a data folder, mends what can be made again, and never ends at the first."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.commands.doctor import examine
from pipeline.commands.doctor_files import check_databases, check_disk, check_handles, check_journals, check_outputs
from pipeline.commands.findings import BAD, MENDED, OK, Visit
from pipeline.store.layout import Layout, load_current, save_current
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tracking.journal import Journal, journals


def _write(cfg, inputs, work) -> Outcome:
    write_text(work.directory / "flour.txt", "flour")
    write_text(work.directory / "notes.txt", "ground at night")
    return Outcome(rows=1, content=("flour.txt",))


def _train(cfg, inputs, work) -> Outcome:
    write_text(work.directory / "checkpoints" / "step-000010" / "complete.json", "{}")
    return _write(cfg, inputs, work)


SPLIT = Stage(name="split", version=1, function=_write, handle=Shards)
BEFORE = Stage(name="filter", version=1, function=_write, handle=Shards)
PRETRAIN = Stage(name="pretrain", version=1, function=_train, handle=Checkpoint)


@pytest.fixture
def layout(tmp_path, monkeypatch) -> Layout:
    monkeypatch.setenv("GRISTMILL_DATA", str(tmp_path))
    return Layout(tmp_path)


@pytest.fixture
def corpus(layout) -> Shards:
    store = Store(root=layout.store)
    handle = store.build(SPLIT, {}, store.build(BEFORE, {}).handle).handle
    save_current(layout, "corpus", handle)
    return handle


def visit(layout: Layout, **asked: bool) -> Visit:
    return Visit(layout=layout, **{"mend": True, **asked})


def flip(path: Path) -> None:
    """Change a bit; neither size nor time of the file shows it, and the folder counts as verified."""
    status = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["flour.txt", "notes.txt"])
def test_verify_finds_a_flipped_bit_in_every_file_also_of_earlier_stages(name, layout, corpus):
    """Flipped bytes of the same size passed as "all whole" (borgbackup/borg#5296)."""
    assert [one.state for one in check_outputs(visit(layout, verify=True))] == [OK]
    flip(next(layout.store.glob("filter/*")) / name)
    (found,) = check_outputs(visit(layout, verify=True))
    assert found.state == BAD and found.check.startswith("output filter ")
    assert f"{name} contains other bytes than were written; delete " in found.detail


def test_damaged_output_is_removed_where_that_is_asked_for(layout, corpus):
    flip(corpus.directory / "flour.txt")
    assert [one.state for one in check_outputs(visit(layout, remove_damaged=True, mend=False))] == [BAD]
    (found,) = check_outputs(visit(layout, remove_damaged=True))
    assert found.state == MENDED and not corpus.directory.exists()


def test_damaged_model_keeps_its_checkpoints_when_it_is_removed(layout):
    """A training may have taken days: its weights are written again from the last checkpoint."""
    model = Store(root=layout.store).build(PRETRAIN, {}).handle
    save_current(layout, "foundation_model", model)
    flip(model.directory / "flour.txt")
    (found,) = check_outputs(visit(layout))
    assert "run `gristmill doctor --remove-damaged` and rerun" in found.detail
    (found,) = check_outputs(visit(layout, remove_damaged=True))
    assert found.state == MENDED and "from the last checkpoint" in found.detail
    assert [path.name for path in model.directory.iterdir()] == ["checkpoints"]


def test_damaged_handle_is_made_again_from_the_records(layout, corpus):
    """A torn or empty file of data/current ended every command, the doctor too (drt-hub/drt#47)."""
    (path,) = layout.current.glob("*.json")
    write_text(path, "")
    assert [one.state for one in check_handles(visit(layout, mend=False))] == [BAD]
    (found,) = check_handles(visit(layout))
    assert found.state == MENDED and "corpus.json is damaged (it is empty)" in found.detail
    assert load_current(layout, "corpus") == corpus
    assert path.with_name("corpus.json.damaged").exists()


def test_damaged_handle_without_an_output_is_set_aside(layout):
    write_text(layout.current / "pages__mill.json", "[]")
    (found,) = check_handles(visit(layout))
    assert found.check == "current pages/mill" and "`gristmill run +pages/mill` makes it again" in found.detail
    assert not list(check_handles(visit(layout)))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "it is cut: "),
        (lambda path: path.write_bytes(b"garbage"), "it is no SQLite database"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(len(path.read_bytes()) - 100)),
            "it is damaged",
        ),
    ],
)
def test_damaged_database_of_dagster_is_named_and_set_aside(spoil, fault, layout):
    """ "database disk image is malformed" named no file and no cure (dagster-io/dagster#6804)."""
    path = layout.dagster_home / "history" / "runs.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (id INTEGER, name TEXT)")
        database.executemany("INSERT INTO runs VALUES (?, ?)", [(i, "x" * 100) for i in range(1000)])
    assert [one.state for one in check_databases(visit(layout))] == [OK]
    spoil(path)
    (found,) = check_databases(visit(layout, mend=False))
    assert found.state == BAD and f"{path}: {fault}" in found.detail and "`gristmill doctor`" in found.detail
    (found,) = check_databases(visit(layout))
    assert found.state == MENDED and not path.exists() and path.with_name("runs.db.damaged").exists()


def test_damaged_database_of_mlflow_is_left_to_a_person(layout):
    """Its curves and registered models cannot be made again."""
    write_text(layout.mlflow / "mlflow.db", "garbage")
    (found,) = check_databases(visit(layout))
    assert (
        found.state == BAD
        and "mlflow.db: it is no SQLite database" in found.detail
        and "move it away" in found.detail
    )
    assert (layout.mlflow / "mlflow.db").exists()


@pytest.mark.parametrize("content", ["", '{"start"', "[]", "{}", '{"start": 1, "status": "RUNNING"}'])
def test_damaged_journal_is_named_and_set_aside(content, layout, caplog):
    """A torn run.json ended the doctor without the name of a file."""
    path = layout.tracking / ("f" * 32) / "run.json"
    write_text(path, content)
    assert not journals(layout) and str(path) in caplog.text
    assert Journal(layout, "f" * 32).state() == {}
    (found,) = check_journals(visit(layout, mend=False))
    assert found.state == BAD and str(path) in found.detail
    (found,) = check_journals(visit(layout))
    assert found.state == MENDED and path.with_name("run.json.damaged").exists()
    assert not list(check_journals(visit(layout)))


def test_journal_with_a_damaged_line_loses_one_event(layout, caplog):
    journal = Journal(layout, "e" * 32)
    journal.open({"name": "a"})
    journal.append([{"do": "first"}, {"do": "second"}])
    with (journal.folder / "pending.jsonl").open("ab") as file:
        file.write(b'{"do": "th\0\n[1]\n')
    journal.append([{"do": "last"}])
    assert [event["do"] for _, event in journal.pending()] == ["first", "second", "last"]
    assert "pending.jsonl has a damaged line" in caplog.text


def test_journal_that_was_damaged_is_begun_anew_by_the_next_build(layout):
    journal = Journal(layout, "d" * 32)
    write_text(journal.folder / "run.json", '{"start": ')
    journal.open({"name": "a"})
    assert journal.state()["start"] == {"name": "a"}
    assert (journal.folder / "run.json.damaged").exists()


def test_doctor_reports_every_fault_and_never_ends_at_the_first(layout, corpus, capsys):
    """One torn file ended the doctor before it had looked at the rest."""
    write_text(layout.current / "tokenizer.json", "{")
    flip(corpus.directory / "flour.txt")
    write_text(layout.tracking / ("f" * 32) / "run.json", "")
    write_text(layout.mlflow / "mlflow.db", "garbage")
    write_text(layout.dagster_home / "dagster.yaml", "")
    write_text(layout.dagster_home / "schedules" / "schedules.db", "garbage")
    write_text(layout.sources_toml, "[mill")
    findings = list(examine(visit(layout, mend=False)))
    told = {one.check: one.detail for one in findings if one.state == BAD}
    for check in ("current tokenizer", "output corpus", "settings", "database mlflow.db", "database schedules.db"):
        assert check in told
    assert "journal ffffffff" in told
    assert main(["doctor", "--no-mend"]) == 1
    assert "sources.toml" in capsys.readouterr().out


def test_disk_check_says_that_the_data_folder_is_a_file(tmp_path):
    write_text(tmp_path / "data", "")
    found = {one.check: one for one in check_disk(visit(Layout(tmp_path / "data")))}
    assert found["data folder"].state == BAD and "is a file, expected a folder" in found["data folder"].detail
