"""Writes the data card of a corpus as Markdown: every number is counted, and missing values are shown as unknown.

In: the settings, the chain of builds and the tables of a report. Out: `data_card`, whose sections follow Datasheets
for Datasets (arXiv:1803.09010) and Data Cards (arXiv:2204.01075); `first_page`, a summary for deciding whether to
read on; `provenance`, when and by which code everything was built. The first two contain no times, so that equal data
gives equal bytes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pipeline.corpus.report.card_findings import findings
from pipeline.corpus.report.card_markdown import (
    address,
    count,
    counted,
    documents,
    listed,
    percent,
    plain,
    size,
    table,
)
from pipeline.corpus.report.card_people import people
from pipeline.corpus.report.card_processing import processing
from pipeline.corpus.report.corpus_chain import CorpusChain
from pipeline.corpus.report.corpus_results import pages_seen, total, words_in
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.store.records import SPLITS

NO_LICENCE = "**none declared**"
DIGEST_DIGITS = 12
NOT_DECLARED = "not declared; set `{0}` in the table [corpus_report] of data/config.toml"
KNOWN_LIMITS = """\
- Names of people and street addresses are not masked. For the kinds that are masked, no pattern finds every case.
- A licence is the one declared in the table of its source; the pages were not searched for another one.
- Languages are detected by a model that makes errors on short texts, code, tables and closely related languages.
- Extraction loses some text of some pages and keeps some menus; bench/results.md has the errors on annotated pages.
- Near duplicates are found by shared runs of words; translations and paraphrases are not found.
- Lines that a site repeats are removed if they are long or in a run at either end of a document; others are kept.
- Texts of evaluations are found word for word; translations and paraphrases are not found.
- The quality rules were made for English web pages. They judge poems, code and tables by the same numbers.
- Words of lists are counted without regard to meaning; a low count of toxic words does not prove a text harmless.
- Apart from the licence, it is not known whether anybody agreed to the use of a text for training.
"""
REMOVAL = """\
Contact: {contact}

1. `gristmill trace URL` shows whether a page is in the corpus, under which id, in which file and row, and, if it was
   dropped as a duplicate, which document was kept instead.
2. `gristmill forget URL` denies the page and its duplicates, which would otherwise replace it, and lists the outputs
   that contain it and the models that were trained on it.
3. Materialise the graph again: denied pages are dropped at the sources. Only the shards that contained them are
   rebuilt.
4. `gristmill forget --purge` removes the outputs that still contain it. A model that was trained on it must be
   trained again.
"""


class Declared(Protocol):
    """The settings of the card: what only a person knows, and how much to show."""

    @property
    def title(self) -> str: ...
    @property
    def purpose(self) -> str | None: ...
    @property
    def contact(self) -> str | None: ...
    @property
    def min_occupation_count(self) -> int: ...


def data_card(cfg: Declared, chain: CorpusChain, tables: Tables) -> str:
    sections = [
        f"# Data card: {plain(cfg.title)}\n",
        _abstract(tables),
        "## What to look at first\n",
        _bullets(findings(chain, tables)),
        "## 1. Motivation\n",
        f"Purpose: {plain(cfg.purpose) if cfg.purpose else NOT_DECLARED.format('purpose')}.\n",
        "## 2. Composition\n",
        *_composition(tables),
        "## 3. Collection\n",
        *_collection(chain),
        "## 4. Processing\n",
        *processing(chain, tables),
        "## 5. Licences\n",
        *_licences(tables),
        *people(tables, cfg.min_occupation_count),
        "## 9. Splits\n",
        *_splits(tables),
        "## 10. Known limits\n",
        KNOWN_LIMITS,
        "## 11. How to have a page removed\n",
        REMOVAL.format(contact=plain(cfg.contact) if cfg.contact else NOT_DECLARED.format("contact")),
        "## 12. How it was made\n",
        *_making(chain),
    ]
    return "\n".join(sections)


def first_page(cfg: Declared, chain: CorpusChain, tables: Tables) -> str:
    """The beginning of the card and its most important table."""
    parts = [
        f"# {plain(cfg.title)}\n",
        _abstract(tables),
        _bullets(findings(chain, tables)),
        _sources(tables),
        "The complete data card is data_card.md.\n",
    ]
    return "\n".join(parts)


def provenance(chain: CorpusChain) -> str:
    """When, how long and by which code everything was built; not part of the identity of a report."""
    lines = [
        [
            f"`{folder.stage}`",
            f"`{folder.fingerprint}`",
            record["finished_at"],
            f"{record['seconds']:,.1f}",
            f"`{(record['commit'] or 'unknown')[:DIGEST_DIGITS]}`",
        ]
        for folder, record in _in_order(chain)
    ]
    header = ["stage", "fingerprint", "finished (UTC)", "seconds", "commit of the code"]
    return "# Builds of the corpus\n\n" + table(header, lines)


def _abstract(tables: Tables) -> str:
    sources, languages = tables["sources"], tables["languages"]
    n_documents, words = total(sources, "documents"), total(sources, "words")
    if not n_documents:
        return "There are no documents in this corpus.\n"
    of_words = [f"{plain(row['language'])} {percent(row['words'], words)}" for row in languages]
    sides = [f"{split} {percent(words_in(tables, split), words)}" for split in SPLITS]
    return (
        f"**{documents(n_documents)}, {count(words)} words, {size(total(sources, 'bytes'))} of text** from"
        f" {counted(len(sources), 'source')}. Languages by words: {listed(of_words)}."
        f" Splits by words: {listed(sides)}.\n"
    )


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _sources(tables: Tables) -> str:
    words, seen = total(tables["sources"], "words"), pages_seen(tables)
    licences: dict[str, int] = {row["source"]: row["without_licence"] for row in tables["sources"]}
    lines = []
    for row in sorted(tables["sources"], key=lambda row: (-row["words"], row["source"])):
        name = row["source"]
        of_source = [plain(one["licence"]) for one in tables["licences_by_source"] if one["source"] == name]
        licence = listed([*([NO_LICENCE] if licences[name] else []), *of_source], most=2)
        kept = percent(row["documents"], seen.get(name, 0))
        numbers = [
            count(row["documents"]),
            kept,
            count(row["words"]),
            percent(row["words"], words),
            size(row["bytes"]),
        ]
        lines.append([plain(name), *numbers, licence])
    return table(
        ["source", "documents", "share of the pages seen", "words", "of all words", "text", "licence"], lines
    )


def _composition(tables: Tables) -> Iterator[str]:
    words = total(tables["sources"], "words")
    yield "A document is the text of one page: a web page, a file, an article, a record.\n"
    yield _sources(tables)
    if not tables["sources"]:
        return
    yield "![Words by source](figures/sources.png)\n"
    yield "### Languages\n"
    yield _shares(tables, "languages", "language", words)
    yield "### Formats and extractors\n"
    lines = [
        [plain(row["media_type"]), plain(row["extractor"]), *_counts(row, words)] for row in tables["media_types"]
    ]
    yield table(["media type of the page", "extractor", "documents", "words", "of all words"], lines)
    if tables["code_languages"]:
        yield "### Source code\n"
        yield _shares(tables, "code_languages", "code_language", words)
    yield "### Domains\n"
    (n_domains,) = tables["n_domains"]
    shown = percent(total(tables["domains"], "words"), words)
    yield f"Number of domains: {n_domains['domains']:,}. The domains with the most words have {shown} of all words:\n"
    lines = [[address(row["domain"]), *_counts(row, words)] for row in tables["domains"]]
    yield table(["domain", "documents", "words", "of all words"], lines)


def _shares(tables: Tables, name: str, column: str, words: int) -> str:
    lines = [[plain(row[column]), *_counts(row, words)] for row in tables[name]]
    return table([column.replace("_", " "), "documents", "words", "of all words"], lines)


def _counts(row: Mapping[str, Any], words: int) -> list[str]:
    return [count(row["documents"]), count(row["words"]), percent(row["words"], words)]


def _collection(chain: CorpusChain) -> Iterator[str]:
    lines = []
    for folder in chain.folders.get("collect", ()):
        record = chain.records[folder]
        source, counts = record["config"]["source"], record["counts"]
        members = listed([address(glob) for glob in source.get("members", ())], most=4)
        lines.append([plain(source["name"]), origin_of(source), members, count(counts["rows_in"])])
    if not lines:
        yield "The outputs of `collect` no longer exist.\n"
        return
    yield table(["source", "origin", "files", "pages seen"], sorted(lines))
    yield "The times of collection are in provenance.md and in the column `collected_at` of every page.\n"


def origin_of(source: Mapping[str, Any]) -> str:
    """Where the pages of a source come from, by what the record of `collect` contains of it."""
    if "package" in source:
        name, digest = f"{source['package']} {source['version']}", source["sha256"][:DIGEST_DIGITS]
        return f"package {plain(name)}, sha256 {digest}"
    if "urls" in source:
        return listed([address(url.partition("#")[0]) for url in source["urls"]], most=4)
    return "files of the person who collected them"


def _licences(tables: Tables) -> Iterator[str]:
    words = total(tables["sources"], "words")
    lines = [
        [plain(row["licence"]) if row["licence"] else NO_LICENCE, *_counts(row, words), count(row["sources"])]
        for row in tables["licences"]
    ]
    yield table(["licence, as declared", "documents", "words", "of all words", "sources"], lines)
    if n := total(tables["sources"], "without_licence"):
        yield (
            f"**No licence is declared for {documents(n)}.** They were kept. To drop them, remove their source; to"
            " declare a licence, set `licence` in its table of data/sources.toml.\n"
        )


def _splits(tables: Tables) -> Iterator[str]:
    words = total(tables["sources"], "words")
    lines = []
    for split in SPLITS:
        own = [row for row in tables["splits"] if row["split"] == split]
        n_words = total(own, "words")
        by_source = [f"{plain(row['source'])} {row['documents']:,}" for row in own]
        lines.append(
            [split, count(total(own, "documents")), count(n_words), percent(n_words, words), listed(by_source)]
        )
    yield table(["split", "documents", "words", "of all words", "documents by source"], lines)
    yield "Families of overlapping documents are never divided, so that no text is in two splits.\n"


def _making(chain: CorpusChain) -> Iterator[str]:
    lines = [
        [
            f"`{folder.stage}`",
            str(record["version"]),
            f"`{folder.fingerprint[:DIGEST_DIGITS]}`",
            f"`{record['digest'][:DIGEST_DIGITS]}`",
            listed([f"{plain(name)} {version}" for name, version in sorted(record["libraries"].items())], most=20)
            or "none",
        ]
        for folder, record in _in_order(chain)
    ]
    yield (
        "Equal recipes give equal bytes. A build is identified by the hash of its recipe and the hash of its"
        " content.\n"
    )
    yield table(["stage", "version", "recipe", "content", "libraries that affect its output"], lines)
    if chain.missing:
        yield _bullets(
            f"`{one.stage}` `{one.fingerprint[:DIGEST_DIGITS]}` was removed since" for one in chain.missing
        )
    yield "Settings:\n"
    settings = [
        f"{folder.stage}: {json.dumps(record['config'], sort_keys=True)}"
        for folder, record in _in_order(chain)
        if folder.stage != "collect"  # its settings contain paths of the machine
    ]
    yield "```text\n" + "\n".join(settings).replace("`", "'") + "\n```\n"


def _in_order(chain: CorpusChain) -> list[tuple[Any, dict[str, Any]]]:
    return [(folder, chain.records[folder]) for folders in chain.folders.values() for folder in folders]
