"""The findings that a reader of a data card should see first.

In: the chain of builds and the tables of a report. Out: sentences, the most serious first, each with its counts.
"""

from collections.abc import Iterator

from pipeline.corpus.report.card_markdown import code, count, documents, listed, percent, plain
from pipeline.corpus.report.card_people import left_in_text
from pipeline.corpus.report.corpus_chain import CorpusChain, Row
from pipeline.corpus.report.corpus_results import share, total, unaccounted, words_in
from pipeline.corpus.report.corpus_tables import Tables

MUCH_OF_CORPUS = 0.5  # share of the words in one source
MUCH_DROPPED = 0.3  # share of a source that one stage drops
MUCH_MENDED = 0.05  # share of the documents of a source
MUCH_REPEATED = 0.1  # share of the text of a source
FEW_SHE = 0.35  # share of the pronouns he and she
FEWEST_PRONOUNS = 100


def findings(chain: CorpusChain, tables: Tables) -> Iterator[str]:
    yield from _of_the_counts(chain, tables)
    if not tables["sources"]:
        yield "**The corpus is empty.**"
        return
    yield from _of_the_sources(tables)
    yield from _of_the_texts(tables)
    yield "Names of people and street addresses are neither found nor masked."


def _of_the_counts(chain: CorpusChain, tables: Tables) -> Iterator[str]:
    if n := unaccounted(tables):
        yield (
            f"**{documents(n)} unaccounted for**: at some stage, the input is not the sum of kept and dropped"
            " documents."
        )
    if chain.missing:
        gone = listed(sorted({f"`{folder.stage}`" for folder in chain.missing}))
        yield f"Outputs of {gone} were removed since the corpus was built, so what they dropped is not known."


def _of_the_sources(tables: Tables) -> Iterator[str]:
    sources, words = tables["sources"], total(tables["sources"], "words")
    n_documents = total(sources, "documents")
    if without := [row for row in sources if row["without_licence"]]:
        n = total(without, "without_licence")
        yield (
            f"**No licence is declared for {documents(n)}** ({percent(n, n_documents)}), of"
            f" {listed([plain(row['source']) for row in without])}. They were kept."
        )
    if nothing := sorted({row["source"] for row in tables["funnel"]} - {row["source"] for row in sources}):
        yield f"No document is left of {listed([plain(source) for source in nothing])}."
    largest = max(sources, key=lambda row: (row["words"], row["source"]))
    if len(sources) > 1 and share(largest["words"], words) > MUCH_OF_CORPUS:
        yield f"{percent(largest['words'], words)} of all words are from {plain(largest['source'])}."
    for row in tables["funnel"]:
        if share(row["dropped"], row["rows_in"]) > MUCH_DROPPED:
            yield (
                f"`{row['stage']}` dropped {count(row['dropped'])} of {count(row['rows_in'])}"
                f" ({percent(row['dropped'], row['rows_in'])}) of {plain(row['source'])}: {_reasons(tables, row)}."
            )
    for row in tables["repeated_sources"]:
        if row["share"] > MUCH_REPEATED:
            yield f"`dedup_lines` removed {percent(row['share'], 1)} of the text of {plain(row['source'])}."
    if words == words_in(tables, "train"):
        yield "Nothing is held out: there are no documents for validation or test."


def _reasons(tables: Tables, row: Row) -> str:
    """The reasons why one stage dropped documents of one source, with counts."""
    own = [one for one in tables["dropped"] if (one["stage"], one["source"]) == (row["stage"], row["source"])]
    own.sort(key=lambda one: (-one["documents"], one["reason"]))
    return listed([f"{code(one['reason'])} {one['documents']:,}" for one in own], most=3)


def _of_the_texts(tables: Tables) -> Iterator[str]:
    if left := left_in_text(tables):
        kinds = sorted(left.items(), key=lambda item: (-item[1], item[0]))
        yield f"Personal data was found and left in the text: {listed([f'{code(k)} {n:,}' for k, n in kinds])}."
    for row in tables["sources"]:
        if share(row["mended"], row["documents"]) > MUCH_MENDED:
            yield (
                f"{percent(row['mended'], row['documents'])} of the documents of {plain(row['source'])} had a broken"
                " encoding, which was repaired."
            )
    for name in ("profane", "adult"):
        if n := total(tables["word_fractions"], f"documents_above_1_percent_{name}"):
            yield f"In {documents(n)} more than 1 % of the words are on the list of {name} words."
    she, he = (
        next(row["count"] for row in tables["terms"] if (row["axis"], row["side"]) == ("pronouns", side))
        for side in ("she", "he")
    )
    if she + he >= FEWEST_PRONOUNS and share(she, she + he) < FEW_SHE:
        yield f"Of the pronouns `she` and `he` in English texts, {percent(she, she + he)} are `she`."
