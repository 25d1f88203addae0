"""Filtering: documents kept or dropped with reason and score, texts masked, and nothing measured again."""

import json
import shutil

import pytest

from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.filter.stage import FILTER, FilterConfig, FilterRecipe, SourceRules, edited
from pipeline.corpus.signals import stage as signals_module
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.corpus.text_repair import normalised
from pipeline.store.checksums import checksums
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import CorruptShard
from pipeline.store.records import DOCUMENT, DROPPED, FILTERED, SIGNALS, Columns, Shards
from pipeline.store.shards import read_table, shard_paths, text_digest, write_table
from pipeline.store.store import Built, Store

SENTENCE = "The miller carried the grain to the mill, and the wheel turned with the water of the river.\n"
GOOD = SENTENCE * 4
GERMAN = "Der M\u00fcller trug das Korn zur M\u00fchle, und das Rad drehte sich mit dem Wasser des Flusses.\n" * 5
KEY = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 3 + "-----END PRIVATE KEY-----\n"
TEXTS = {
    "good": GOOD,
    "short": SENTENCE,
    "german": GERMAN,
    "mail": GOOD + "Write to anna.mill@example.org or to otto@example.org about 10.0.0.1 and 93.184.216.34.\n",
    "page": GOOD + "Menu\nEnable javascript to see the wheel.\nIt is old [12] and it turns.\nSo they say.\nRead on",
}


def recipe(**values) -> FilterRecipe:
    return FilterRecipe(config=FilterConfig(**{"rules": ("gopher_quality",), **values}))


def filtered(store: Store, documents: Shards, chosen: FilterRecipe) -> Built:
    return store.build(FILTER, chosen, documents, store.build(MEASURE, SignalsConfig(), documents).handle)


def rows_of(built: Built, folder: str = "") -> dict[str, dict]:
    """Kept or dropped rows by URL."""
    schema = DROPPED if folder else FILTERED
    paths = shard_paths(built.handle.directory, folder)
    return {row["url"]: row for path in paths for row in read_table(path, schema).to_pylist()}


def test_filter_keeps_signals_as_columns_and_drops_with_reason_and_score(store, cleaned):
    built = filtered(store, cleaned(store, TEXTS), recipe(pii=()))
    kept, dropped = rows_of(built), rows_of(built, "dropped")
    assert set(kept) == {"good", "mail", "page"}
    good = kept["good"]
    assert (good["text"], good["n_words"], good["language"]) == (GOOD, 72, "en")
    assert good["duplicate_line_fraction"] > 0.5  # measured, whatever sets judge
    told = {url: (row["stage"], row["reason"], row["preview"]) for url, row in dropped.items()}
    assert told == {
        "short": ("filter", "too_few_words", SENTENCE),
        "german": ("filter", "wrong_language", GERMAN[:200]),
    }
    assert dropped["short"]["score"] == 18.0 and 0.5 < dropped["german"]["score"] <= 1.0
    assert dropped["short"]["id"] == text_digest(SENTENCE)
    assert built.counts.is_conserved() and built.counts.rows_in == 5
    assert built.counts.dropped == {"too_few_words": 1, "wrong_language": 1}


def test_filter_masks_the_wanted_kinds_and_counts_all(store, cleaned):
    documents = cleaned(store, TEXTS)
    masked = rows_of(filtered(store, documents, recipe(pii=("email",))))
    text = masked["mail"]["text"]
    assert text == GOOD + "Write to [EMAIL] or to [EMAIL] about 10.0.0.1 and 93.184.216.34.\n"
    assert dict(masked["mail"]["pii"])["email"] == 2 and dict(masked["mail"]["pii"])["ip_address"] >= 1
    assert masked["mail"]["n_masked"] == 2 and masked["mail"]["id"] == text_digest(normalised(text))
    assert (masked["good"]["text"], masked["good"]["n_masked"], masked["good"]["pii"]) == (GOOD, 0, [])
    assert masked["good"]["id"] == text_digest(GOOD)
    everything = rows_of(filtered(store, documents, recipe()))["mail"]["text"]
    assert "example.org" not in everything and "93.184.216.34" not in everything


def test_filter_removes_lines_and_citations_of_c4_only_where_c4_judges(store, cleaned):
    documents = cleaned(store, TEXTS)
    assert rows_of(filtered(store, documents, recipe(rules=RULE_SETS[:1])))["page"]["text"] == TEXTS["page"]
    page = rows_of(filtered(store, documents, recipe(rules=("c4",))))["page"]
    assert page["text"] == GOOD + "It is old  and it turns.\nSo they say."
    assert page["id"] == text_digest(normalised(page["text"])) and page["n_masked"] == 0


def test_filter_removes_lines_without_terminal_punctuation_only_when_told(store, cleaned):
    texts = {"a": GOOD + "This line has no end\nThis one has.\n"}
    documents = cleaned(store, texts)
    assert rows_of(filtered(store, documents, recipe(rules=("c4",), min_sentences=1)))["a"]["text"] == texts["a"]
    told = filtered(store, documents, recipe(rules=("c4",), min_sentences=1, terminal_punctuation=True))
    assert rows_of(told)["a"]["text"] == GOOD + "This one has."


def test_filter_source_has_its_own_rules_languages_and_kinds(store, cleaned):
    chosen = FilterRecipe(
        config=FilterConfig(rules=RULE_SETS),
        sources={"mill": SourceRules(rules=(), languages=("de", "en"), pii=())},
    )
    assert set(rows_of(filtered(store, cleaned(store, TEXTS), chosen))) == set(TEXTS)
    other = filtered(store, cleaned(store, TEXTS, source="other"), chosen)
    assert {row["reason"] for row in rows_of(other, "dropped").values()} == {
        "too_few_words",
        "wrong_language",
        "duplicate_lines",
    }


def test_filter_changed_limit_measures_nothing_again(store, cleaned, monkeypatch):
    documents = cleaned(store, TEXTS)
    measured = store.build(MEASURE, SignalsConfig(), documents)
    before = (measured.handle.directory / "record.json").read_bytes()
    first = store.build(FILTER, recipe(), documents, measured.handle)

    def measure(*args, **kwargs):
        raise AssertionError("a text was measured again")

    for name in ("signals_of_batch", "signals_of", "quality_signals", "language_of", "find_pii", "toxicity_signals"):
        monkeypatch.setattr(signals_module, name, measure)
    again = store.build(MEASURE, SignalsConfig(), documents)
    second = store.build(FILTER, recipe(min_words=10), documents, again.handle)
    assert (again.unchanged, second.unchanged) == (True, False)
    assert (measured.handle.directory / "record.json").read_bytes() == before
    assert set(rows_of(second)) - set(rows_of(first)) == {"short"}


def test_filter_changed_document_filters_its_own_shard_only(store, cleaned, monkeypatch):
    filtered(store, cleaned(store, TEXTS), recipe())
    parts = set((store.root / "filter" / "parts").iterdir())
    filtered(store, cleaned(store, TEXTS | {"good": GOOD + SENTENCE}), recipe())
    assert len(set((store.root / "filter" / "parts").iterdir()) - parts) == 1


def test_filter_other_signals_of_equal_documents_are_judged_anew(tmp_path, cleaned):
    store = Store(root=tmp_path, engine=LocalProcesses(n_workers=1))
    documents = cleaned(store, {"a": GOOD * 5_000}, n_shards=1)
    chosen = recipe(rules=(), languages=())
    measured = store.build(MEASURE, SignalsConfig(document_seconds=0.001), documents)
    built = store.build(FILTER, chosen, documents, measured.handle)
    assert built.counts.dropped == {"timeout": 1} and rows_of(built, "dropped")["a"]["score"] is None
    assert filtered(store, documents, chosen).counts.kept == 1  # the document is measured again, with more time


def test_filter_of_no_documents_is_an_empty_shard(store, cleaned):
    built = filtered(store, cleaned(store, {}), recipe())
    assert rows_of(built) == {} and built.counts.rows_in == 0 and len(shard_paths(built.handle.directory)) == 2


def test_filter_four_workers_give_the_bytes_of_one(tmp_path, cleaned):
    digests = set()
    for n_workers in (1, 4):
        store = Store(root=tmp_path / f"{n_workers}", engine=LocalProcesses(n_workers=n_workers))
        digests.add(filtered(store, cleaned(store, TEXTS), recipe(rules=RULE_SETS)).handle.digest)
    assert len(digests) == 1


def test_filter_signals_of_other_documents_are_refused_with_both_names(store, cleaned):
    documents, others = cleaned(store, TEXTS), cleaned(store, TEXTS, source="other")
    measured = store.build(MEASURE, SignalsConfig(), others).handle
    with pytest.raises(
        ValueError, match=rf"{measured.directory} has no signals for 2 shards of documents.*mill-00000"
    ):
        store.build(FILTER, recipe(), documents, measured)


def test_filter_signals_that_do_not_lie_as_the_documents_are_refused_with_both_names(store, cleaned, tmp_path):
    documents = cleaned(store, TEXTS)
    measured = store.build(MEASURE, SignalsConfig(), documents).handle
    broken = tmp_path / "broken"
    shutil.copytree(measured.directory, broken)
    path = broken / "mill-00001.parquet"
    write_table(path, read_table(path, SIGNALS).take([1, 0]))
    record = json.loads((broken / "record.json").read_text())
    record["files"][path.name] |= {"bytes": path.stat().st_size, "blocks": checksums(path)}
    (broken / "record.json").write_text(json.dumps(record))
    handle = Columns(stage="signals", directory=broken, fingerprint="f", digest="d", rows=measured.rows)
    with pytest.raises(CorruptShard, match=f"{path} does not contain the 2 documents of {documents.directory}"):
        store.build(FILTER, recipe(), documents, handle)


@pytest.mark.parametrize(
    ("text", "masks", "removals", "expected"),
    [
        ("to a@b.c now", [(3, 8, "email")], [], ("to [EMAIL] now", 1)),
        ("a@b.c", [(0, 5, "email")], [], ("[EMAIL]", 1)),
        ("a@b.c1.2.3.4", [(0, 5, "email"), (5, 12, "ip_address")], [], ("[EMAIL][IP_ADDRESS]", 2)),
        ("one\ntwo\nthree", [], [(4, 8)], ("one\nthree", 0)),
        ("one\ntwo\nthree", [], [(8, 13)], ("one\ntwo", 0)),
        ("one\ntwo", [], [(0, 7)], ("", 0)),
        ("see a@b.c\nok", [(4, 9, "email")], [(0, 10)], ("ok", 0)),  # goes with its line
        ("see x\ny ok", [(4, 7, "private_key")], [(0, 6)], ("[PRIVATE_KEY] ok", 1)),  # reaches beyond its line
        ("ab [1] cd a@b.c", [(10, 15, "email")], [(3, 6)], ("ab  cd [EMAIL]", 1)),
        ("\U0001f600 a@b.c \U0001f600", [(2, 7, "email")], [], ("\U0001f600 [EMAIL] \U0001f600", 1)),
    ],
)
def test_filter_edited_text_has_placeholders_and_lost_lines(text, masks, removals, expected):
    assert edited(text, masks, removals) == expected


def test_filter_private_key_among_lines_that_c4_removes_is_masked_whole(store, cleaned):
    built = filtered(store, cleaned(store, {"a": GOOD + KEY + "The end of it.\n"}), recipe(rules=("c4",)))
    assert rows_of(built)["a"]["text"] == GOOD + "[PRIVATE_KEY]\nThe end of it."


def test_filter_golden_digest(store, cleaned):
    """When this fails because the output changed on purpose: raise FILTER.version, then take the new digest."""
    built = filtered(store, cleaned(store, TEXTS), recipe(rules=("gopher_quality", "c4")))
    rows = [row for folder in ("", "dropped") for _, row in sorted(rows_of(built, folder).items())]
    values = [f"{[round(v, 3) if isinstance(v, float) else v for _, v in sorted(row.items())]}" for row in rows]
    assert (FILTER.version, text_digest(*values)) == (3, "f2091870fd0d27324f7bf0c7776d5336")


def test_filter_columns_are_those_of_the_document_then_the_signals():
    assert FILTERED.names[: len(DOCUMENT)] == DOCUMENT.names
    assert {"page_id", "edits", "failure"} == set(SIGNALS.names) - (set(FILTERED.names) - set(DOCUMENT.names))
