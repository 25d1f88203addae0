"""Quotations of forgotten texts are found in every kind of file and database, and nothing else is taken."""

import gzip
import json
import sqlite3

import pyarrow as pa
import pytest

from pipeline.corpus.deny_list import Keys
from pipeline.corpus.examples.stage import document_id
from pipeline.provenance.purge import find_holders
from pipeline.provenance.quotations import MARK, Forgotten, find_quotations, remove_quotations
from pipeline.store.layout import Layout
from pipeline.store.shards import write_table

TEXT = "Nobody at the lower weir had ever seen the miller's second lantern burn before that night."
QUOTE = "the miller's second lantern burn before that night"
OTHER = "Nobody at the lower weir opens the gate without asking the miller first."
ID = "0123456789abcdef" * 2
FORGOTTEN = Forgotten(texts={TEXT}, ids={ID})


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path)
    for folder in (layout.mlflow, layout.dagster_home, layout.tracking, layout.store):
        folder.mkdir()
    return layout


def rows(path) -> list[tuple]:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT * FROM t ORDER BY 1").fetchall()


def test_quotation_in_a_database_is_replaced_also_inside_json_and_its_bytes_are_gone(layout):
    path = layout.mlflow / "mlflow.db"
    event = json.dumps({"rows": 3, "inner": json.dumps([{"text": f"| {QUOTE} |"}])})
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (number INTEGER, [a value] TEXT)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(1, QUOTE), (2, OTHER), (3, event), (4, f"id {ID}")])
    database.close()
    found = find_quotations(layout, FORGOTTEN)
    assert (found.files, found.values) == ((), {path: 3})
    assert rows(path)[0] == (1, QUOTE)  # nothing is changed yet
    remove_quotations(found, FORGOTTEN)
    cleared = json.dumps({"rows": 3, "inner": json.dumps([{"text": MARK}])})
    assert rows(path) == [(1, MARK), (2, OTHER), (3, cleared), (4, MARK)]
    assert b"lantern" not in path.read_bytes()
    assert not find_quotations(layout, FORGOTTEN)


def test_quotation_that_was_deleted_from_a_database_before_is_gone_too(layout):
    path = layout.mlflow / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (number INTEGER, value TEXT)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"{QUOTE} {'x' * 2000}") for i in range(20)])
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("DELETE FROM t")
    database.close()
    assert b"lantern" in path.read_bytes()
    remove_quotations(find_quotations(layout, FORGOTTEN), FORGOTTEN)
    assert b"lantern" not in path.read_bytes()


def test_files_with_a_quotation_are_removed_or_cleared(layout):
    folder = layout.mlflow / "artifacts"
    folder.mkdir()
    (folder / "samples.md").write_text(f"Prompt:\n\n    {QUOTE}\n")
    (folder / "samples.html").write_text(f"<code>{QUOTE.replace(chr(39), '&#39;')}</code>")
    (folder / "named.md").write_text(f"## 1. Document {ID}, seed 0")
    (folder / "table.csv.gz").write_bytes(gzip.compress(f"text\n{QUOTE}\n".encode()))
    write_table(folder / "table.parquet", pa.table({"text": [OTHER, QUOTE]}))
    (folder / "other.md").write_text(OTHER)
    (folder / "seen_examples.txt").write_text(f"{'1' * 32}\n{ID}\n{'2' * 32}\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "example.json").write_text(json.dumps({"columns": ["text"], "data": [[QUOTE], ["x"]]}))
    (layout.dagster_home / "server.log").write_text(f"started\nsaw {QUOTE}\nended\n")
    found = find_quotations(layout, FORGOTTEN)
    assert len(found.files) == 8
    remove_quotations(found, FORGOTTEN)
    assert {path.name for path in folder.iterdir()} == {
        "other.md",
        "picture.png",
        "example.json",
        "seen_examples.txt",
    }
    assert (folder / "seen_examples.txt").read_text() == f"{'1' * 32}\n{'2' * 32}\n"
    assert json.loads((folder / "example.json").read_text()) == {"columns": ["text"], "data": [[MARK], ["x"]]}
    assert (layout.dagster_home / "server.log").read_text() == "started\nended\n"
    assert not find_quotations(layout, FORGOTTEN)


def test_line_of_a_journal_keeps_its_length_because_its_position_is_recorded(layout):
    lines = [json.dumps({"do": "describe", "text": text}) + "\n" for text in (OTHER, QUOTE, OTHER)]
    path = layout.tracking / "pending.jsonl"
    path.write_text("".join(lines))
    remove_quotations(find_quotations(layout, FORGOTTEN), FORGOTTEN)
    cleared = path.read_text().splitlines(keepends=True)
    assert list(map(len, cleared)) == list(map(len, lines))
    assert [json.loads(line)["text"] for line in cleared] == [OTHER, MARK, OTHER]


def test_database_in_use_is_an_error_that_says_what_to_do(layout, monkeypatch):
    monkeypatch.setattr("pipeline.provenance.quotations.WAIT_SECONDS", 0.01)
    path = layout.mlflow / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (value TEXT)")
        database.execute("INSERT INTO t VALUES (?)", [QUOTE])
    found = find_quotations(layout, FORGOTTEN)
    database.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match=r"mlflow.db cannot be rewritten .*stop `gristmill ui` and every run"):
        remove_quotations(found, FORGOTTEN)
    database.close()


def test_labelled_row_with_a_forgotten_text_is_found_in_older_examples(layout):
    """A labelled row is no page and has another id than the document, so that the purge left its text."""
    folder = layout.store / "examples" / ("a" * 32)
    table = {"id": ["1", "2"], "page_id": ["1", "2"], "text": [TEXT, OTHER]}
    write_table(folder / "examples.parquet", pa.table(table))
    keys = Keys(document_id=frozenset({document_id(TEXT)}))
    found = find_holders(layout, keys)
    assert found.garbage.folders == (folder,)
    assert found.forgotten.texts == {TEXT}
