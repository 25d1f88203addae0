"""The sections of a data card about people: personal data, profane words, groups of people and varieties of English.

In: the tables of a report. Out: Markdown paragraphs.
"""

from collections.abc import Iterator

from pipeline.corpus.report.card_markdown import code, count, listed, per_million, percent, plain, table
from pipeline.corpus.report.corpus_results import share, total
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.corpus.report.corpus_terms import AXES, WORDS_BETWEEN

FEWEST_TO_COMPARE = 50  # matches before cleaning; with fewer a share is not meaningful
BALANCE_MEANING = """\
Words of short lists are counted in English documents. Such counts show that one side is named far more often than
another, and, in the column `kept`, whether cleaning, filtering and deduplication removed more of one side: below
100 % means that a larger share of these words was removed than of all English words. The counts do not show how
people are described, who wrote a text, or what a model will learn from it. The lists and their sources are in
pipeline/corpus/report/corpus_terms.py.
"""


def people(tables: Tables, min_occupation_count: int) -> Iterator[str]:
    yield "## 6. Personal data\n"
    yield from _personal_data(tables)
    yield "## 7. Toxicity\n"
    yield from _toxicity(tables)
    yield "## 8. Balance\n"
    yield from _balance(tables)
    yield from _occupations(tables, min_occupation_count)


def left_in_text(tables: Tables) -> dict[str, int]:
    """Kind -> number of places that were found but, according to the settings, not masked."""
    masked = {row["source"]: row["kinds"] for row in tables["masked_kinds"]}
    left: dict[str, int] = {}
    for row in tables["pii"]:
        if row["kind"] not in masked[row["source"]]:
            left[row["kind"]] = left.get(row["kind"], 0) + row["found"]
    return left


def _personal_data(tables: Tables) -> Iterator[str]:
    words, left = total(tables["sources"], "words"), left_in_text(tables)
    if not tables["pii"]:
        yield "No personal data of the kinds that are searched for was found.\n"
    else:
        kinds: dict[str, dict[str, int]] = {}
        for row in tables["pii"]:
            kinds.setdefault(row["kind"], {})[row["source"]] = row["found"]
        lines = []
        for kind, own in sorted(kinds.items(), key=lambda item: (-sum(item[1].values()), item[0])):
            found = sum(own.values())
            told = [count(found), count(found - left.get(kind, 0)), per_million(found, words)]
            by_source = sorted(own.items(), key=lambda item: (-item[1], item[0]))
            lines.append([code(kind), *told, listed([f"{plain(source)} {n:,}" for source, n in by_source], most=4)])
        yield table(["kind", "found", "masked", "found per million words", "by source"], lines)
        found, masked = total(tables["pii"], "found"), total(tables["masked"], "masked")
        yield f"In total {found:,} places, of which {masked:,} are masked by a placeholder that names the kind.\n"
    yield (
        "Personal data is found by patterns and check digits. **Names of people and street addresses are neither"
        " found nor masked**, and what no pattern matches remains in the text.\n"
    )
    if tables["pii"]:
        yield "![Personal data by kind](figures/personal_data.png)\n"


def _toxicity(tables: Tables) -> Iterator[str]:
    rows = tables["word_fractions"]
    if not rows:
        yield "There are no documents.\n"
        return
    lines = [
        [
            plain(row["source"]),
            per_million(row["profane_words"], row["words"]),
            count(row["documents_above_1_percent_profane"]),
            per_million(row["adult_words"], row["words"]),
            count(row["documents_above_1_percent_adult"]),
            count(row["unknown"]),
        ]
        for row in rows
    ]
    above = "documents above 1 %"
    yield table(
        ["source", "profane words per million", above, "adult words per million", above, "not measured"], lines
    )
    yield (
        "The words of lists are counted, without regard to their meaning in context. This table includes all"
        " documents.\n"
    )


def _balance(tables: Tables) -> Iterator[str]:
    whole, *by_source = tables["english"]
    words = total(by_source, "words")
    if not words:
        yield "Nothing was counted, because the lists are English and there are no English documents.\n"
        return
    yield BALANCE_MEANING
    kept = share(words, whole["words"]) if whole["words"] else None
    lines = []
    for axis in AXES:
        own = [row for row in tables["terms"] if row["axis"] == axis.name]
        matches = total(own, "count")
        for place, row in enumerate(own):
            commonest = [
                one for one in tables["term_words"] if (one["axis"], one["side"]) == (axis.name, row["side"])
            ]
            survival = "-"
            if kept and (row["before"] or 0) >= FEWEST_TO_COMPARE:
                survival = f"{100 * share(row['count'], row['before']) / kept:.0f} %"
            lines.append(
                [
                    "" if place else axis.name,
                    plain(row["side"]),
                    count(row["count"]),
                    per_million(row["count"], words),
                    percent(row["count"], matches),
                    survival,
                    listed([f"{code(one['match'])} {one['matches']:,}" for one in commonest]),
                ]
            )
    header = ["axis", "side", "matches", "per million words", "share of its axis", "kept", "most frequent"]
    yield table(header, lines)
    yield "Other reasons for high numbers:\n"
    yield "\n".join(f"- {axis.name}: {axis.caution}" for axis in AXES) + "\n"
    yield "![Balance by source](figures/balance.png)\n"


def _occupations(tables: Tables, least: int) -> Iterator[str]:
    rows = [row for row in tables["occupations"] if row["she"] + row["he"] >= least]
    if not rows:
        yield (
            f"No occupation of the list is followed by `she` or `he` within {WORDS_BETWEEN} words of the same"
            f" sentence at least {least} times.\n"
        )
        return
    yield (
        f"The pronoun that follows an occupation within {WORDS_BETWEEN} words of the same sentence, for occupations"
        f" with at least {least} such pronouns:\n"
    )
    lines = [
        [row["occupation"], count(row["she"]), count(row["he"]), percent(row["she"], row["she"] + row["he"])]
        for row in rows
    ]
    yield table(["occupation", "she", "he", "share of she"], lines)
