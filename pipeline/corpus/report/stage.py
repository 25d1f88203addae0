"""Stage `corpus_report`: describes a corpus: content, origin, what was dropped and why, and what it lacks.

In: the output of `filter` and the output of `split`; the outputs that they were made from are found through their
records. Out: a Report folder: tables.json (every number), results.json (the numbers that are plotted over time),
data_card.md (after arXiv:1803.09010 and arXiv:2204.01075), report.md (its first page), figures/*.png, and
provenance.md with the times of the builds. Figures and provenance.md are not content, because their bytes depend on
fonts and clocks.

Steps: views of all stages (corpus_chain.py), counts (corpus_tables.py), text and pictures from the counts alone
(data_card.py, corpus_figures.py). No text is measured again except for the words of corpus_terms.py.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from pipeline.corpus.filter.rules import FilterRecipe, unjudged
from pipeline.corpus.report.corpus_chain import CorpusChain, opened, read_chain
from pipeline.corpus.report.corpus_figures import write_figures
from pipeline.corpus.report.corpus_results import corpus_results, total
from pipeline.corpus.report.corpus_tables import (
    Tables,
    count_all,
    histograms,
    prepare_signals,
    rule_set_table,
    signal_table,
    term_tables,
)
from pipeline.corpus.report.data_card import data_card, first_page, provenance
from pipeline.store.engine import n_usable_cores
from pipeline.store.records import Handle, Report, Shards
from pipeline.store.settings import Count, check_values, read_recorded
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Work

CONTENT = ("tables.json", "results.json", "data_card.md", "report.md")
SCRATCH = ".scratch"  # the database, deleted when the stage ends
STEPS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusReportConfig:
    title: Annotated[str, "Heading of the data card."] = "Corpus"
    purpose: Annotated[str | None, "Purpose of the corpus, which the data card prints."] = None
    contact: Annotated[str | None, "Contact for the removal of a page, which the data card prints."] = None
    histogram_bins: Annotated[int, Ge(5), Le(200), "Number of bins in the histogram of each signal."] = 40
    top_domains: Annotated[int, Ge(1), Le(1000), "Number of domains to list, those with the most words first."] = 20
    min_occupation_count: Annotated[
        Count,
        "The data card counts the pronouns after the names of occupations; list an occupation from this many on.",
    ] = 10

    def __post_init__(self) -> None:
        check_values(self)
        if not self.title.strip():
            raise ValueError(f"title={self.title!r} is blank")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusReportRecipe:
    """Made by `corpus_report_recipe`, because the content of the inputs does not show what was dropped."""

    config: CorpusReportConfig
    made_from: tuple[str, ...]


def corpus_report_recipe(cfg: CorpusReportConfig, documents: Handle, corpus: Handle) -> CorpusReportRecipe:
    """Raises ValueError if the corpus was not made from these documents."""
    return CorpusReportRecipe(config=cfg, made_from=read_chain(documents, corpus).identity())


def corpus_report(recipe: CorpusReportRecipe, inputs: tuple[Shards, Shards], work: Work) -> Outcome:
    cfg, chain = recipe.config, read_chain(*inputs)
    tables = measured_tables(cfg, chain, work.directory / SCRATCH, lambda done: work.progress(done, STEPS, "steps"))
    results = corpus_results(tables)
    write_text(work.directory / "tables.json", json.dumps(tables, indent=1))
    write_text(work.directory / "results.json", json.dumps(results, indent=1))
    write_text(work.directory / "data_card.md", data_card(cfg, chain, tables))
    write_text(work.directory / "report.md", first_page(cfg, chain, tables))
    write_text(work.directory / "provenance.md", provenance(chain))
    write_figures(work.directory / "figures", tables)
    work.progress(STEPS, STEPS, "steps")
    n_documents = total(tables["sources"], "documents")
    return Outcome(rows=n_documents, measures={one["metric"]: one["value"] for one in results}, content=CONTENT)


CORPUS_REPORT = Stage(name="corpus_report", version=4, function=corpus_report, handle=Report, libraries=("duckdb",))


def measured_tables(
    cfg: CorpusReportConfig, chain: CorpusChain, scratch: Path, progress: Callable[[int], None]
) -> Tables:
    """All tables of the card and the figures. `scratch` is a temporary folder."""
    recipe = filter_recipe(chain)
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    with opened(chain, scratch, n_usable_cores()) as database:
        tables = count_all(database, chain, cfg.top_domains)
        progress(1)
        complete = prepare_signals(database, chain)
        progress(2)
        tables["signals"] = signal_table(database)
        tables["histograms"] = histograms(database, cfg.histogram_bins, recipe.config)
        progress(3)
        tables["rule_sets"] = rule_set_table(database, recipe.config)
        progress(4)
        tables |= term_tables(database, chain)
        progress(5)
    shutil.rmtree(scratch)
    kinds = [{"source": row["source"], "kinds": list(recipe.pii(row["source"]))} for row in tables["sources"]]
    gaps = unjudged(recipe.config, recipe.config.rules, [row["language"] for row in tables["languages"]])
    return tables | {
        "measured": [{"dropped_too": complete}],
        "masked_kinds": kinds,
        "unjudged": [{"rule": rule, "languages": languages} for rule, languages in gaps.items()],
    }


def filter_recipe(chain: CorpusChain) -> FilterRecipe:
    """The settings of the build of `filter` that made the documents."""
    (folder,) = chain.folders["filter"]
    recorded = chain.records[folder]["config"]
    return read_recorded(FilterRecipe, {name: recorded[name] for name in ("config", "sources")})
