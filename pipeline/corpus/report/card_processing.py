"""The section of a data card about the processing of the texts and its losses.

In: the chain of builds and the tables of a report. Out: Markdown paragraphs: funnel, reasons, repair, signals, what
each rule set would drop, duplicates, repeated lines, texts of evaluations.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.report.card_markdown import address, code, count, documents, listed, percent, plain, table
from pipeline.corpus.report.corpus_chain import CorpusChain
from pipeline.corpus.report.corpus_results import total, unaccounted
from pipeline.corpus.report.corpus_tables import Tables
from pipeline.store.chain import document_stages, link_of

ALWAYS_SHOWN = {"language_confidence", "profane_word_fraction", "adult_word_fraction"}
MOST_REASONS = 25  # rows of that table; the rest is summed up


def processing(chain: CorpusChain, tables: Tables) -> Iterator[str]:
    stages = [stage for stage in document_stages() if any(row["stage"] == stage for row in tables["funnel"])]
    yield "What each stage does to the documents, and how many remain. At every stage, in = kept + dropped:\n"
    yield _stages(tables, stages)
    yield _accounts(chain, tables)
    yield "### By source\n"
    yield "Number of documents after each stage:\n"
    yield _funnel(tables, stages)
    yield "![What became of the pages](figures/funnel.png)\n"
    yield "### Why documents were dropped\n"
    yield from _reasons(tables)
    yield "### Repair\n"
    yield from _repair(tables)
    yield "### What each rule set would drop by itself\n"
    yield from _rule_sets(chain, tables)
    yield "### Signals\n"
    yield from _signals(tables)
    yield "### Duplicates\n"
    yield from _duplicates(tables)
    if chain.folders.get("dedup_lines"):
        yield "### Lines that repeat across a site\n"
        yield from _repeated_lines(tables)
    if chain.folders.get("decontaminate"):
        yield "### Texts of evaluations\n"
        yield from _contamination(chain, tables)


def _stages(tables: Tables, stages: list[str]) -> str:
    lines = []
    for stage in stages:
        own = [row for row in tables["funnel"] if row["stage"] == stage]
        rows_in, dropped = total(own, "rows_in"), total(own, "dropped")
        numbers = [count(rows_in), count(total(own, "kept")), count(dropped), percent(dropped, rows_in)]
        lines.append([f"`{stage}`", *numbers, link_of(stage).does])
    return table(["stage", "in", "kept", "dropped", "share", "what it does"], lines)


def _accounts(chain: CorpusChain, tables: Tables) -> str:
    """Whether the numbers are consistent, and what is not known."""
    if n := unaccounted(tables):
        told = (
            f"**{documents(n)} unaccounted for**: at some stage, the input is not the sum of kept and dropped"
            " documents.\n"
        )
    else:
        told = "Every page is accounted for, in every source.\n"
    if chain.missing:
        gone = listed(sorted({f"`{folder.stage}`" for folder in chain.missing}))
        told += (
            f"\nOutputs of {gone} were removed since the corpus was built, so what they kept and dropped is not"
            " known.\n"
        )
    return told


def _funnel(tables: Tables, stages: list[str]) -> str:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in tables["funnel"]:
        found.setdefault(row["source"], {})[row["stage"]] = row
    lines = []
    for source, own in sorted(found.items()):
        first = next(iter(own.values()))["rows_in"]
        left = [own[stage]["kept"] if stage in own else None for stage in stages]
        last = next((n for n in reversed(left) if n is not None), 0)
        lines.append([plain(source), count(first), *map(count, left), percent(last, first)])
    return table(["source", "seen", *(f"after {stage}" for stage in stages), "share left"], lines)


def _reasons(tables: Tables) -> Iterator[str]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in tables["dropped"]:
        own = found.setdefault((row["stage"], row["reason"]), {"n": 0, "sources": {}, "example": row["example"]})
        own["n"] += row["documents"]
        own["sources"][row["source"]] = row["documents"]
    if not found:
        yield "Nothing was dropped.\n"
        return
    stages = document_stages()
    order = sorted(found.items(), key=lambda item: (stages.index(item[0][0]), -item[1]["n"], item[0]))
    lines = []
    for (stage, reason), own in order[:MOST_REASONS]:
        sources = sorted(own["sources"].items(), key=lambda item: (-item[1], item[0]))
        of_sources = listed([f"{plain(source)} {n:,}" for source, n in sources], most=3)
        lines.append([f"`{stage}`", code(reason), count(own["n"]), of_sources, address(own["example"])])
    if rest := order[MOST_REASONS:]:
        lines.append(["", f"{len(rest)} more reasons", count(sum(own["n"] for _, own in rest)), "", ""])
    yield table(["stage", "reason", "documents", "by source", "example"], lines)
    yield (
        "Every dropped page is listed with its reason in the folder dropped/ of its stage; `gristmill trace URL`"
        " shows one page.\n"
    )
    yield "![Why documents were dropped](figures/drop_reasons.png)\n"


def _repair(tables: Tables) -> Iterator[str]:
    sources = tables["sources"]
    if n_unknown := total(sources, "unknown_templates"):
        yield (
            f"In articles of wikis, {n_unknown:,} templates inside sentences are not known; their values are shown in"
            " their place.\n"
        )
    if not total(sources, "mojibake") and not total(sources, "boilerplate_lines"):
        yield "No broken encoding was repaired and no boilerplate line was removed.\n"
        return
    lines = [
        [plain(row["source"]), count(row["mended"]), count(row["mojibake"]), count(row["boilerplate_lines"])]
        for row in sources
    ]
    yield table(
        ["source", "documents with repaired encoding", "lines repaired", "boilerplate lines removed"],
        lines,
    )


def _rule_sets(chain: CorpusChain, tables: Tables) -> Iterator[str]:
    (folder,) = chain.folders["filter"]
    config = chain.records[folder]["config"]
    judged = config["config"]["rules"]
    own = {name: rules["rules"] for name, rules in sorted(config["sources"].items()) if rules["rules"] is not None}
    told = [f"The documents were judged by {listed([f'`{one}`' for one in judged]) or 'no rule set'}."]
    told += [f"{plain(name)}: {listed([f'`{one}`' for one in sets]) or 'none'}." for name, sets in own.items()]
    yield (
        " ".join(told)
        + " From the same signals, this table shows what each rule set would drop if it were the only one:\n"
    )
    if not tables["measured"][0]["dropped_too"]:
        yield "(The signals of the dropped documents no longer exist, so the table covers only the kept documents.)\n"
    lines = []
    for rule_set in RULE_SETS:
        rows = [row for row in tables["rule_sets"] if row["rule_set"] == rule_set]
        drops = [row for row in rows if row["reason"]]
        by_reason: dict[str, int] = {}
        for row in drops:
            by_reason[row["reason"]] = by_reason.get(row["reason"], 0) + row["documents"]
        top = sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
        reasons = listed([f"{code(reason)} {n:,}" for reason, n in top], most=4)
        n, of_all = total(drops, "documents"), total(rows, "documents")
        lines.append([f"`{rule_set}`", count(n), percent(n, of_all), reasons])
    yield table(["rule set", "would drop", "share", "first rule broken"], lines)
    if gaps := [f"{code(row['rule'])} ({', '.join(row['languages'])})" for row in tables["unjudged"]]:
        yield (
            "These rules can't judge documents in the languages given in brackets, so they drop none of them:"
            f" {listed(gaps, most=len(gaps))}.\n"
        )
    yield "![What each rule set would drop](figures/rule_sets.png)\n"


def _signals(tables: Tables) -> Iterator[str]:
    yield (
        "Quantiles over the documents that `filter` kept, before deduplication, for the signals that rule sets use"
        " and for toxic words. tables.json has all signals.\n"
    )
    names = ("p5", "p25", "median", "p75", "p95", "max")
    judged = {row["signal"] for row in tables["histograms"] if row["low"] + row["high"]} | ALWAYS_SHOWN
    shown = [row for row in tables["signals"] if row["signal"] in judged]
    lines = [[code(row["signal"]), *(_number(row[name]) for name in names)] for row in shown]
    yield table(["signal", "5 %", "25 %", "median", "75 %", "95 %", "maximum"], lines)
    yield "![Documents by length](figures/lengths.png)\n"
    yield "![Documents by signal](figures/signals.png)\n"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _duplicates(tables: Tables) -> Iterator[str]:
    sizes, (families,) = tables["cluster_sizes"], tables["families"]
    repeated = [row for row in sizes if row["size"] != "1"]
    kept, before = total(repeated, "kept"), total(repeated, "documents")
    if not repeated:
        yield "No document of the corpus had a duplicate.\n"
    else:
        yield (
            f"{before:,} documents had duplicates among each other; the best {kept:,} of them were kept. The others"
            " repeat one of these, exactly or nearly.\n"
        )
        lines = [[row["size"], count(row["kept"]), count(row["documents"])] for row in sizes]
        yield table(["copies of a text", "kept", "documents before deduplication"], lines)
        largest = [
            [plain(row["source"]), count(row["documents"]), address(row["url"])] for row in tables["largest_clusters"]
        ]
        yield table(["source", "copies", "kept document"], largest)
    if families["families"]:
        yield (
            "Documents that overlap without being duplicates form families, which `split` never divides. There are"
            f" {families['families']:,} families; the largest has {documents(families['largest'])}.\n"
        )


def _repeated_lines(tables: Tables) -> Iterator[str]:
    sources = tables["repeated_sources"]
    if not sources:
        yield "No line was removed.\n"
        return
    yield (
        "Menus, footers and notices that extraction missed: lines that a large share of a site's documents contain."
        " Each removed line is listed in the folder evidence/ of `dedup_lines`.\n"
    )
    lines = [
        [plain(row["source"]), count(row["documents"]), count(row["lines"]), percent(row["share"], 1)]
        for row in sources
    ]
    yield table(
        ["source", "documents with removed lines", "lines", "share of its text, including dropped documents"], lines
    )
    yield "The most frequent removed lines of each site:\n"
    shown = {row["site"]: row for row in tables["repeated_sites"]}
    order = sorted(tables["repeated_lines"], key=lambda row: (list(shown).index(row["site"]), -row["removed"]))
    lines = [
        [
            address(row["site"]),
            plain(row["preview"]),
            count(row["removed"]),
            count(row["documents"]),
            count(shown[row["site"]]["site_documents"]),
        ]
        for row in order[:MOST_REASONS]
    ]
    yield table(["site", "line", "times removed", "documents that contain it", "documents of the site"], lines)


def _contamination(chain: CorpusChain, tables: Tables) -> Iterator[str]:
    (folder,) = chain.folders["decontaminate"]
    tasks = chain.records[folder]["config"]["tasks"]
    if not tasks:
        yield "There are no tasks, so nothing was searched for.\n"
        return
    found = tables["contamination"]
    looked_for = listed([code(task) for task in tasks], most=10)
    if not found:
        yield f"No text of the evaluations of {looked_for} was found in the corpus.\n"
        return
    yield (
        f"Texts of the evaluations of {looked_for} that were found in documents. They were cut out, or the document"
        " was dropped:\n"
    )
    lines = [
        [code(row["task"]), plain(row["source"]), *map(count, (row["documents"], row["dropped"], row["examples"]))]
        for row in found
    ]
    yield table(["task", "source", "documents", "of these dropped", "examples found"], lines)
