"""corpus_report over a corpus of the real stages: lines that repeat, texts of evaluations, and all accounted for."""

import json
import random
from collections import Counter

import pytest

from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateRecipe
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.examples.stage import EXAMPLE
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.report.stage import CORPUS_REPORT, CorpusReportConfig, corpus_report_recipe
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.store.records import CONTAMINATION, REPEATED, Counts, Shards
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage

NOTICE = (
    "This page belongs to the site of a miller, who allows everybody to read it, to keep it and to give it away, as"
    " long as nobody asks for money."
)
STAGES = ("clean", "filter", "dedup", "dedup_lines", "decontaminate", "split")


def prose(rng, n_words):
    return " ".join("".join(rng.choices("aeioubdfgklmnprst", k=rng.randrange(2, 9))) for _ in range(n_words)) + "."


@pytest.fixture
def made(store, cleaned):
    """{stage: handle}: 20 pages of a site with a notice, one that is nothing else, one that holds an example."""
    rng = random.Random(1)
    example = prose(rng, 60)
    texts = {f"https://mill.example/{i}": f"{NOTICE}\n\n{prose(rng, 150)}" for i in range(20)}
    texts["https://mill.example/notice"] = f"{NOTICE}\n\n{prose(rng, 8)}"
    texts["https://mill.example/judged"] = f"{NOTICE}\n\n{example}"
    texts["https://mill.example/copy"] = texts["https://mill.example/3"] + " "

    def written(cfg, inputs, work):
        row = {"id": text_digest(example), "text": example, "label": "x", "split": "test", "group_id": "g"}
        write_rows(work.directory / "examples.parquet", [row], EXAMPLE)
        return Outcome(rows=1, counts=Counts(rows_in=1, kept=1))

    found = {"clean": cleaned(store, texts, source="mill")}

    def build(stage, cfg, *inputs):
        found[stage.name] = store.build(stage, cfg, *inputs).handle

    build(MEASURE, SignalsConfig(), found["clean"])
    recipe = FilterRecipe(config=FilterConfig(rules=(), languages=(), pii=()))
    build(FILTER, recipe, found["clean"], found["signals"])
    build(DEDUP, DedupConfig(), found["filter"])
    build(DEDUP_LINES, DedupLinesConfig(), found["dedup"])
    build(Stage(name="examples", version=1, function=written, handle=Shards), {"key": example})
    build(DECONTAMINATE, DecontaminateRecipe(tasks=("moods",)), found["dedup_lines"], found["examples"])
    build(SPLIT, SplitConfig(), found["decontaminate"])
    return found


@pytest.fixture
def reported(store, made):
    def report(documents, corpus):
        recipe = corpus_report_recipe(CorpusReportConfig(), documents, corpus)
        return store.build(CORPUS_REPORT, recipe, documents, corpus).handle.directory

    return report(made["filter"], made["split"])


def tables_of(folder):
    return json.loads((folder / "tables.json").read_text())


def rows_in(handle, folder, schema):
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path, schema).to_pylist()]


def test_report_funnel_knows_every_stage_and_accounts_for_every_document(made, reported):
    tables = tables_of(reported)
    funnel = {row["stage"]: row for row in tables["funnel"]}
    assert tuple(funnel) == STAGES
    assert not any(row["unaccounted"] for row in funnel.values())
    assert (funnel["dedup"]["dropped"], funnel["dedup_lines"]["dropped"]) == (1, 1)
    assert funnel["decontaminate"]["dropped"] == 1 and funnel["split"]["kept"] == made["split"].rows == 20
    reasons = {(row["stage"], row["reason"]): row["documents"] for row in tables["dropped"]}
    assert reasons["dedup_lines", "only_repeated_lines"] == 1 and reasons["decontaminate", "contaminated"] == 1
    results = {row["metric"]: row["value"] for row in json.loads((reported / "results.json").read_text())}
    assert results["unaccounted_documents"] == 0
    assert results["dropped_share_dedup_lines"] == pytest.approx(1 / 22)
    assert results["dropped_share_decontaminate"] == pytest.approx(1 / 21)
    assert {"funnel.png", "drop_reasons.png"} <= {path.name for path in (reported / "figures").iterdir()}


def test_report_repeated_lines_are_those_of_the_evidence(store, made, reported):
    tables = tables_of(reported)
    evidence = rows_in(made["dedup_lines"], EVIDENCE_FOLDER, REPEATED)
    assert Counter(row["preview"] for row in evidence) == {NOTICE: 22}
    (line,), (site,), (source,) = (tables[f"repeated_{name}"] for name in ("lines", "sites", "sources"))
    assert line == {"site": "mill.example", "preview": NOTICE, "removed": 22, "documents": 22}
    assert site == {"site": "mill.example", "site_documents": 22, "documents": 22, "lines": 22}
    assert (source["source"], source["lines"], source["characters"]) == ("mill", 22, 22 * len(NOTICE))
    assert 0.1 < source["share"] < 0.3
    card = (reported / "data_card.md").read_text()
    assert NOTICE[:40] in card and "`dedup_lines` removed" in card


def test_report_contamination_is_that_of_the_evidence(made, reported):
    (row,) = rows_in(made["decontaminate"], EVIDENCE_FOLDER, CONTAMINATION)
    assert row["page_id"] == "https://mill.example/judged"
    found = {"task": "moods", "source": "mill", "documents": 1, "examples": 1, "dropped": 1}
    assert tables_of(reported)["contamination"] == [found]
    assert "| `moods` | mill | 1 | 1 | 1 |" in (reported / "data_card.md").read_text()


def test_report_of_a_removed_stage_says_so_and_guesses_nothing(store, made):
    (made["dedup_lines"].directory / "record.json").unlink()
    recipe = corpus_report_recipe(CorpusReportConfig(), made["filter"], made["split"])
    folder = store.build(CORPUS_REPORT, recipe, made["filter"], made["split"]).handle.directory
    tables = tables_of(folder)
    stages = {row["stage"]: row for row in tables["funnel"]}
    assert "dedup_lines" not in stages and stages["decontaminate"]["unaccounted"] is None
    assert not tables["repeated_lines"] and len(tables["contamination"]) == 1
    assert "Outputs of `dedup_lines` were removed" in (folder / "data_card.md").read_text()


def test_report_of_a_corpus_that_lost_nothing_to_the_stages_says_so(store, cleaned):
    rng = random.Random(2)
    documents = cleaned(store, {f"https://a.example/{i}": prose(rng, 80) for i in range(4)})
    measured = store.build(MEASURE, SignalsConfig(), documents).handle
    recipe = FilterRecipe(config=FilterConfig(rules=(), languages=(), pii=()))
    filtered = store.build(FILTER, recipe, documents, measured).handle
    unique = store.build(DEDUP, DedupConfig(), filtered).handle
    lined = store.build(DEDUP_LINES, DedupLinesConfig(), unique).handle
    judged = store.build(DECONTAMINATE, DecontaminateRecipe(), lined).handle
    corpus = store.build(SPLIT, SplitConfig(), judged).handle
    made = corpus_report_recipe(CorpusReportConfig(), filtered, corpus)
    folder = store.build(CORPUS_REPORT, made, filtered, corpus).handle.directory
    card = (folder / "data_card.md").read_text()
    assert "No line was removed." in card and "There are no tasks, so nothing was searched for." in card
    assert not shard_paths(lined.directory, DROPPED_FOLDER)
