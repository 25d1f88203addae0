"""Signals: every document measured once, row by row, whatever it holds and whatever goes wrong with it."""

import os
from pathlib import Path

import pytest

from pipeline.corpus.signals import stage as signals_module
from pipeline.corpus.signals.language import language_of
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig, signals_of, signals_of_batch
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import MEASURES, SIGNALS, Columns
from pipeline.store.shards import read_table, shard_paths, text_digest
from pipeline.store.store import Store

SENTENCE = "The miller carried the grain to the mill, and the wheel turned with the water of the river.\n"
GERMAN = "Der M\u00fcller trug das Korn zur M\u00fchle, und das Rad drehte sich mit dem Wasser des Flusses.\n" * 5
RUSSIAN = (
    "\u041c\u0435\u043b\u044c\u043d\u0438\u043a \u043d\u0435\u0441 \u0437\u0435\u0440\u043d\u043e"
    " \u043d\u0430 \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0443. "
)


def store_at(path: Path, n_workers: int = 1) -> Store:
    return Store(root=path, engine=LocalProcesses(n_workers=n_workers))


def rows_of(directory: Path) -> list[dict]:
    return [row for path in shard_paths(directory) for row in read_table(path, SIGNALS).to_pylist()]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (SENTENCE, "en"),
        (GERMAN, "de"),
        ("Le meunier portait le grain au moulin, et la roue tournait avec l'eau de la rivi\u00e8re.", "fr"),
        (RUSSIAN * 4, "ru"),
        (SENTENCE * 2000, "en"),
        (GERMAN * 1000 + SENTENCE * 5, "de"),
    ],
)
def test_language_is_found_with_confidence(text, language):
    code, confidence = language_of(text)
    assert code == language and 0.5 < confidence <= 1.0


def test_language_of_no_letters_is_undetermined():
    assert language_of("")[0] == "und"


@pytest.mark.parametrize("text", ["", "   \n", "12 .. --", "\u4e2d\u6587", "a", ".", "\n\n\n", "[1] [2] [3]"])
def test_signals_of_nearly_nothing_are_complete_and_finite(text):
    signals = signals_of(text)
    assert set(signals) == {*MEASURES.names, "edits"}
    numbers = [value for name, value in signals.items() if name not in ("language", "edits") and value is not None]
    assert all(0 <= value < float("inf") for value in numbers)


@pytest.mark.parametrize(
    "word", ["word ", "a", "- ", "(", ". ", "it's ", "a.b.", "\u4e2d", "[1]", "a@", "1+", "''", "..)", "+(", "x..y"]
)
def test_signals_of_one_long_line_take_seconds(word):
    text = word * (500_000 // len(word))
    assert signals_module.quality_signals(text)[0]["n_words"] >= 0


def test_signals_rows_lie_as_the_documents(cleaned, store):
    documents = cleaned(store, {f"{i}": SENTENCE * (i + 1) for i in range(5)})
    built = store.build(MEASURE, SignalsConfig(), documents)
    assert isinstance(built.handle, Columns)
    for path in shard_paths(documents.directory):
        given = read_table(path)["page_id"].to_pylist()
        assert read_table(built.handle.directory / path.name, SIGNALS)["page_id"].to_pylist() == given
    assert [row["n_words"] for row in sorted(rows_of(built.handle.directory), key=lambda row: row["page_id"])] == [
        18 * (i + 1) for i in range(5)
    ]
    assert built.counts.rows_in == built.counts.kept == 5


def test_signals_of_no_documents_are_an_empty_shard(cleaned, store):
    built = store.build(MEASURE, SignalsConfig(), cleaned(store, {}))
    assert rows_of(built.handle.directory) == [] and len(shard_paths(built.handle.directory)) == 2


def test_signals_four_workers_and_small_batches_give_the_bytes_of_one(cleaned, tmp_path, monkeypatch):
    texts = {f"{i:02d}": SENTENCE * 4 + f"Line {i}: call 212-555-01{i:02d}." for i in range(10)} | {"german": GERMAN}
    digests = set()
    for n_workers, n_documents in ((1, 256), (4, 3)):
        monkeypatch.setattr(signals_module, "BATCH_DOCUMENTS", n_documents)
        store = store_at(tmp_path / f"{n_workers}", n_workers)
        digests.add(store.build(MEASURE, SignalsConfig(), cleaned(store, texts)).handle.digest)
    assert len(digests) == 1


def hostile_batch(batch) -> list[dict]:
    if any("crash" in text for text in batch["text"].to_pylist()):
        os.abort()
    return signals_of_batch(batch)


def test_signals_batch_that_fails_loses_only_the_document_at_fault(cleaned, tmp_path, monkeypatch):
    monkeypatch.setattr(signals_module, "signals_of_batch", hostile_batch)
    texts = {"a": SENTENCE, "b": SENTENCE + "crash", "c": SENTENCE + "more"}
    store = store_at(tmp_path)
    built = store.build(MEASURE, SignalsConfig(), cleaned(store, texts, n_shards=1))
    rows = {row["page_id"]: row for row in rows_of(built.handle.directory)}
    assert {name: row["failure"] for name, row in rows.items()} == {"a": None, "b": "crash", "c": None}
    assert rows["b"]["n_words"] == 0 and rows["b"]["edits"] == [] and rows["a"]["n_words"] == 18


def test_signals_document_over_its_time_is_a_failure(cleaned, tmp_path):
    store = store_at(tmp_path)
    config = SignalsConfig(document_seconds=0.001)
    built = store.build(MEASURE, config, cleaned(store, {"a": SENTENCE * 20_000}, n_shards=1))
    assert [row["failure"] for row in rows_of(built.handle.directory)] == ["timeout"]


def test_signals_golden_digest(cleaned, store):
    """When this fails because the output changed on purpose: raise MEASURE.version, then take the new digest."""
    texts = {"good": SENTENCE * 4, "german": GERMAN, "verse": "Who goes there?\nA friend.\n" * 9, "empty": ""}
    texts |= {"code": "def f(x):\n    return {x: 1}\n" * 5, "pii": SENTENCE + "Write to anna@mill.example [1].\n"}
    built = store.build(MEASURE, SignalsConfig(), cleaned(store, texts))
    rows = sorted(rows_of(built.handle.directory), key=lambda row: row["page_id"])
    values = [f"{[round(v, 3) if isinstance(v, float) else v for _, v in sorted(row.items())]}" for row in rows]
    assert (MEASURE.version, text_digest(*values)) == (2, "6975a2046495cebb7d37603702fc9eea")


@pytest.mark.parametrize("name", ["document_seconds", "document_memory_mb"])
def test_signals_config_outside_its_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected"):
        SignalsConfig(**{name: 0})
