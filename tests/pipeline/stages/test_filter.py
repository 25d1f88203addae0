"""Filtering: one text for every reason, the signals as columns, and the same result however it is cut up."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.stages import filter as filter_module
from pipeline.stages.engine import LocalProcesses
from pipeline.stages.filter import FILTER, FilterConfig, broken_rule, signals_of, signals_of_batch
from pipeline.stages.language import language_of
from pipeline.stages.records import DOCUMENT, DROPPED, FILTERED, SIGNALS, Shards
from pipeline.stages.shards import read_table, shard_paths, text_digest, write_rows
from pipeline.stages.store import Outcome, Stage, Store

SENTENCE = "The miller carried the grain to the mill, and the wheel turned with the water of the river.\n"
GOOD = SENTENCE * 4
GERMAN = "Der M\u00fcller trug das Korn zur M\u00fchle, und das Rad drehte sich mit dem Wasser des Flusses.\n" * 5
RUSSIAN = (
    "\u041c\u0435\u043b\u044c\u043d\u0438\u043a \u043d\u0435\u0441 \u0437\u0435\u0440\u043d\u043e"
    " \u043d\u0430 \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0443. "
)
BROKEN = {
    "too_few_words": SENTENCE * 2,
    "too_many_words": SENTENCE * 12,
    "wrong_language": GERMAN,
    "mean_word_length": GOOD + "incomprehensibilities " * 70,
    "symbol_ratio": GOOD.replace("grain", "# grain ...").replace("river", "# river"),
    "bullet_lines": "".join(f"- {SENTENCE}" for _ in range(6)),
    "ellipsis_lines": SENTENCE * 3 + (SENTENCE.strip() + "...\n") * 2,
    "few_alphabetic_words": GOOD + "12 34 " * 15,
    "few_stop_words": "Millers grind grain; wheels turn quickly; rivers flow south; bakers make bread daily.\n" * 5,
}
CONFIG = FilterConfig(max_words=150)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))  # for the workers


def cleaned(store: Store, texts: dict[str, str], n_shards: int = 2) -> Shards:
    """Document shards as `clean` makes them, of {url: text}."""

    def write(cfg, inputs, work) -> Outcome:
        for i in range(n_shards):
            rows = [
                {
                    "id": text_digest(text),
                    "page_id": url,
                    "source": "mill",
                    "url": url,
                    "licence": "mine",
                    "text": text,
                }
                for url, text in sorted(texts.items())[i::n_shards]
            ]
            write_rows(work.directory / f"mill-{i:05d}.parquet", rows, DOCUMENT)
        return Outcome(rows=len(texts))

    stage = Stage(name="documents", version=1, function=write, handle=Shards)
    return store.build(stage, {"key": text_digest(*texts, *texts.values())}).handle


def rows_of(directory: Path, schema, folder: str = "") -> list[dict]:
    return [row for path in shard_paths(directory, folder) for row in read_table(path, schema).to_pylist()]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(root=tmp_path, engine=LocalProcesses(n_workers=1))


@pytest.mark.parametrize(("reason", "text"), BROKEN.items())
def test_filter_text_that_breaks_one_rule_is_dropped_for_it(reason, text):
    broken = broken_rule(signals_of(text), CONFIG)
    assert broken is not None and broken[0] == reason


def test_filter_good_text_breaks_no_rule():
    assert broken_rule(signals_of(GOOD), CONFIG) is None


@pytest.mark.parametrize(
    ("reason", "loose"),
    [
        ("too_few_words", {"min_words": 36}),
        ("too_many_words", {"max_words": 216}),
        ("wrong_language", {"languages": ("en", "de")}),
        ("wrong_language", {"languages": ()}),
        ("mean_word_length", {"max_mean_word_length": 22.0}),
        ("symbol_ratio", {"max_symbol_to_word_ratio": 0.2}),
        ("bullet_lines", {"max_bullet_line_fraction": 1.0}),
        ("ellipsis_lines", {"max_ellipsis_line_fraction": 0.4}),
        ("few_alphabetic_words", {"min_alphabetic_word_fraction": 0.7}),
        ("few_stop_words", {"min_stop_words": 0}),
    ],
)
def test_filter_looser_threshold_keeps_the_text(reason, loose):
    config = FilterConfig(**{**asdict(CONFIG), **loose})
    assert broken_rule(signals_of(BROKEN[reason]), config) is None


def test_filter_unsure_language_is_dropped_with_its_confidence():
    signals = signals_of(GOOD) | {"language_confidence": 0.64}
    assert broken_rule(signals, FilterConfig()) == ("wrong_language", 0.64)


def test_filter_signals_of_a_small_text():
    signals = signals_of("# The mill\n- Be quick and\n\n* turn 12 \u2026\n...")
    assert {name: value for name, value in signals.items() if not name.startswith("language")} == {
        "n_words": 7,
        "mean_word_length": pytest.approx(23 / 7),
        "symbol_to_word_ratio": pytest.approx(3 / 12),
        "bullet_line_fraction": 0.5,
        "ellipsis_line_fraction": 0.5,
        "alphabetic_word_fraction": pytest.approx(6 / 12),
        "n_stop_words": 3,
    }


@pytest.mark.parametrize("text", ["", "   \n", "12 .. --", "\u4e2d\u6587"])
def test_filter_signals_of_nearly_nothing_are_finite_and_complete(text):
    signals = signals_of(text)
    assert list(signals) == SIGNALS.names
    assert all(value == value for value in signals.values())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (SENTENCE, "en"),
        (GERMAN, "de"),
        ("Le meunier portait le grain au moulin, et la roue tournait avec l'eau de la rivi\u00e8re.", "fr"),
        (
            RUSSIAN * 4,
            "ru",
        ),
        (SENTENCE * 2000, "en"),
        (GERMAN * 1000 + SENTENCE * 5, "de"),
    ],
)
def test_language_is_found_with_confidence(text, language):
    code, confidence = language_of(text)
    assert code == language and 0.5 < confidence <= 1.0


def test_language_of_no_letters_is_undetermined():
    assert language_of("")[0] == "und"


def test_filter_keeps_signals_as_columns_and_drops_with_reason_and_score(store):
    built = store.build(FILTER, CONFIG, cleaned(store, {**BROKEN, "good": GOOD}))
    kept = rows_of(built.handle.directory, FILTERED)
    assert [(row["url"], row["text"], row["n_words"], row["language"]) for row in kept] == [("good", GOOD, 72, "en")]
    dropped = {row["url"]: row for row in rows_of(built.handle.directory, DROPPED, "dropped")}
    assert {url: row["reason"] for url, row in dropped.items()} == {reason: reason for reason in BROKEN}
    assert dropped["too_few_words"]["score"] == 36.0
    assert {row["stage"] for row in dropped.values()} == {"filter"}
    assert built.counts.is_conserved() and built.counts.rows_in == 10 and built.counts.kept == 1


def test_filter_four_workers_and_small_batches_give_the_bytes_of_one(tmp_path, monkeypatch):
    texts = {f"{i:02d}": GOOD + f"Line {i} of the book." for i in range(10)} | BROKEN
    digests = set()
    for n_workers, n_documents in ((1, 256), (4, 3)):
        monkeypatch.setattr(filter_module, "BATCH_DOCUMENTS", n_documents)
        store = Store(root=tmp_path / f"{n_workers}-{n_documents}", engine=LocalProcesses(n_workers=n_workers))
        digests.add(store.build(FILTER, CONFIG, cleaned(store, texts)).handle.digest)
    assert len(digests) == 1


def hostile_batch(batch) -> list[dict]:
    if any("crash" in text for text in batch["text"].to_pylist()):
        os.abort()
    return signals_of_batch(batch)


def test_filter_batch_that_fails_loses_only_the_document_at_fault(store, monkeypatch):
    monkeypatch.setattr(filter_module, "signals_of_batch", hostile_batch)
    texts = {"a": GOOD, "b": GOOD + "crash", "c": GOOD + "more"}
    built = store.build(FILTER, FilterConfig(), cleaned(store, texts, n_shards=1))
    assert built.counts.dropped == {"crash": 1} and built.counts.kept == 2


def test_filter_golden_digest(store):
    """When this fails because the output changed on purpose: raise FILTER.version, then take the new digest."""
    built = store.build(FILTER, CONFIG, cleaned(store, {**BROKEN, "good": GOOD}))
    rows = [*rows_of(built.handle.directory, FILTERED), *rows_of(built.handle.directory, DROPPED, "dropped")]
    values = [f"{[round(v, 3) if isinstance(v, float) else v for _, v in sorted(row.items())]}" for row in rows]
    assert (FILTER.version, text_digest(*values)) == (1, "8d3fa84aa90423b6088311360978323e")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"languages": ("english",)}, r"languages=\('english',\): \['english'\] are no ISO 639-1 codes"),
        ({"min_language_confidence": 1.5}, "min_language_confidence=1.5 is outside 0 to 1"),
        ({"min_words": 10, "max_words": 5}, "min_words=10 is outside 0 to 5"),
        ({"min_stop_words": 9}, "min_stop_words=9 is outside 0 to 8"),
        ({"min_mean_word_length": -1.0}, "min_mean_word_length=-1.0 is outside"),
        ({"max_symbol_to_word_ratio": -0.1}, "max_symbol_to_word_ratio=-0.1 is outside"),
    ],
)
def test_filter_config_outside_its_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FilterConfig(**values)
