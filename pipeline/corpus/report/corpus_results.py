"""The numbers of a corpus that are plotted over time, computed from the tables of a report.

In: the tables of corpus_tables.py. Out: the results of a Report. They are complete counts and not samples, so they
have no intervals.
"""

from collections.abc import Iterable
from typing import Any

from pipeline.corpus.report.corpus_chain import Row
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.store.chain import document_stages, link_of

MILLION = 1_000_000


def corpus_results(tables: Tables) -> list[dict[str, Any]]:
    sources, toxic = tables["sources"], tables["word_fractions"]
    documents, words = total(sources, "documents"), total(sources, "words")
    known = total(toxic, "words")
    found, masked = total(tables["pii"], "found"), total(tables["masked"], "masked")
    pronouns = {row["side"]: row["count"] for row in tables["terms"] if row["axis"] == "pronouns"}
    values: list[tuple[str, float, bool]] = [  # name, value, whether higher is better
        ("documents", documents, True),
        ("words", words, True),
        ("text_bytes", total(sources, "bytes"), True),
        ("unaccounted_documents", unaccounted(tables), False),
        *((f"dropped_share_{stage}", value, False) for stage, value in dropped_shares(tables).items()),
        ("share_without_licence", share(total(sources, "without_licence"), documents), False),
        ("share_in_largest_source", share(max((row["words"] for row in sources), default=0), words), False),
        ("pii_per_million_words", share(found * MILLION, words), False),
        ("pii_unmasked_per_million_words", share((found - masked) * MILLION, words), False),
        ("profane_per_million_words", share(total(toxic, "profane_words") * MILLION, known), False),
        ("adult_per_million_words", share(total(toxic, "adult_words") * MILLION, known), False),
        ("share_with_mojibake", share(total(sources, "mended"), documents), False),
        ("she_share_of_she_and_he", share(pronouns["she"], pronouns["she"] + pronouns["he"]), True),
        ("held_out_share", share(words - words_in(tables, "train"), words), True),
    ]
    return [
        {"metric": name, "value": value, "low": None, "high": None, "higher_is_better": higher, "baselines": {}}
        for name, value, higher in values
    ]


def total(rows: Iterable[Row], name: str) -> int:
    return sum(row[name] for row in rows)


def share(part: float, whole: float) -> float:
    """`part` / `whole`, or 0 if `whole` is 0."""
    return part / whole if whole else 0.0


def pages_seen(tables: Tables) -> dict[str, int]:
    """Source -> pages at the first stage whose output still exists."""
    found: dict[str, int] = {}
    for row in tables["funnel"]:
        found.setdefault(row["source"], row["rows_in"])
    return found


def words_in(tables: Tables, split: str) -> int:
    return sum(row["words"] for row in tables["splits"] if row["split"] == split)


def dropped_shares(tables: Tables) -> dict[str, float]:
    """Stage -> the dropped share of its input."""
    found = {}
    for stage in document_stages():
        own = [row for row in tables["funnel"] if row["stage"] == stage]
        if own and link_of(stage).drops:
            found[stage] = share(total(own, "dropped"), total(own, "rows_in"))
    return found


def unaccounted(tables: Tables) -> int:
    """Number of documents in the input of a stage that were neither kept nor dropped, or the reverse."""
    return sum(abs(row["unaccounted"] or 0) for row in tables["funnel"])
