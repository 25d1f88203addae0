"""Errors of the disk and of SQLite in one line that names the file and the cure."""

import pytest

from pipeline.store.faults import advised
from pipeline.store.layout import Layout
from pipeline.store.shards import write_text


@pytest.mark.parametrize(
    "text",
    [
        "[Errno 28] No space left on device: '/x/y'",
        "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO runs (secret) VALUES (?)]",
        "[Errno 122] Disk quota exceeded",
        "Out of Memory Error: ... max_temp_directory_size",
    ],
)
def test_full_disk_in_any_words_gets_the_advice_of_a_full_disk(text, tmp_path):
    """Only the store said what to do; elsewhere it was a bare Errno 28 (tursodatabase/libsql#580)."""
    told = advised(text, Layout(tmp_path))
    assert f"MB are free in {tmp_path}; free some space, or run `gristmill gc`" in told
    assert "INSERT" not in told and "\n" not in told


@pytest.mark.parametrize("text", ["unable to open database file", "attempt to write a readonly database"])
def test_database_in_a_folder_that_cannot_be_written_to_names_the_variable(text, tmp_path):
    write_text(tmp_path / "data", "a file")
    told = advised(f"(sqlite3.OperationalError) {text}", Layout(tmp_path / "data"))
    assert f"{tmp_path / 'data'}, the data folder (GRISTMILL_DATA), is a file, expected a folder; make" in told
    assert text in told


def test_permission_error_of_another_folder_stays_as_it_is(tmp_path):
    text = "[Errno 13] Permission denied: '/else/where'"
    assert advised(text, Layout(tmp_path)) == text


def test_damaged_database_is_named(tmp_path):
    layout = Layout(tmp_path)
    write_text(layout.dagster_home / "history" / "runs.db", "x" * 5000)
    told = advised("(sqlite3.DatabaseError) file is not a database (Background on this error at: url)", layout)
    assert told.startswith(f"{layout.dagster_home / 'history' / 'runs.db'}: it is no SQLite database (")
    assert "run `gristmill doctor`" in told and "Background" not in told


def test_other_errors_stay_as_they_are(tmp_path):
    assert advised("n_layers=0 must be at least 1", Layout(tmp_path)) == "n_layers=0 must be at least 1"
