"""The sections of a data card about people: personal data, toxic words, and who is named in which English.

In: the tables of a report. Out: Markdown paragraphs.
"""

from collections.abc import Iterator

from pipeline.corpus.report.card_markdown import code, count, listed, per_million, percent, plain, table
from pipeline.corpus.report.corpus_results import share, total
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.corpus.report.corpus_terms import AXES, WORDS_BETWEEN

FEWEST_TO_COMPARE = 50  # matches before cleaning; of fewer a share says nothing
BALANCE_MEANING = """\
Words of short lists are counted in English documents. Such counts show that one side is named far more often than
another, and, in the column `kept`, whether cleaning, filtering and the removal of duplicates took more from one:
below 100 % means that more of these words went than of all English words. They do not show how somebody is spoken
of, who wrote a text, or what a model will make of it. The lists and their sources stand in
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
    """Kind -> places that were found and not masked, because the settings say so."""
    masked = {row["source"]: row["kinds"] for row in tables["masked_kinds"]}
    left: dict[str, int] = {}
    for row in tables["pii"]:
        if row["kind"] not in masked[row["source"]]:
            left[row["kind"]] = left.get(row["kind"], 0) + row["found"]
    return left


def _personal_data(tables: Tables) -> Iterator[str]:
    words, left = total(tables["sources"], "words"), left_in_text(tables)
    if not tables["pii"]:
        yield "No place was found that looks like personal data of the kinds that are looked for.\n"
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
        yield f"In all {found:,} places, of which {masked:,} are masked by a placeholder that names the kind.\n"
    yield (
        "Found by patterns and check digits. **Names of people and street addresses are neither found nor masked**,"
        " and what no pattern knows stays in the text.\n"
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
    yield "Words of lists, without regard to what they mean where they stand. No document is hidden for them.\n"


def _balance(tables: Tables) -> Iterator[str]:
    whole, *by_source = tables["english"]
    words = total(by_source, "words")
    if not words:
        yield "There are no English documents, and the lists are English.\n"
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
    header = ["axis", "side", "matches", "per million words", "of its axis", "kept", "commonest"]
    yield table(header, lines)
    yield "What else makes these numbers high:\n"
    yield "\n".join(f"- {axis.name}: {axis.caution}" for axis in AXES) + "\n"
    yield "![Balance by source](figures/balance.png)\n"


def _occupations(tables: Tables, least: int) -> Iterator[str]:
    rows = [row for row in tables["occupations"] if row["she"] + row["he"] >= least]
    if not rows:
        yield (
            f"No occupation of the list is followed by `she` or `he` within {WORDS_BETWEEN} words of its sentence"
            f" {least} times or more.\n"
        )
        return
    yield f"The pronoun that follows an occupation within {WORDS_BETWEEN} words of its sentence ({least} or more):\n"
    lines = [
        [row["occupation"], count(row["she"]), count(row["he"]), percent(row["she"], row["she"] + row["he"])]
        for row in rows
    ]
    yield table(["occupation", "she", "he", "share of she"], lines)
