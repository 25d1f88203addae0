"""A stage that nothing but the table of stages knows: what a person who adds one gets without another change."""

import re
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa
import pytest

from pipeline.cli import main
from pipeline.corpus.collect.sources import read_sources
from pipeline.corpus.report.stage import CORPUS_REPORT, CorpusReportConfig, corpus_report_recipe
from pipeline.defs.corpus import corpus as corpus_asset
from pipeline.defs.documents import documents as documents_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.provenance.trace import trace
from pipeline.store import chain
from pipeline.store.chain import Link, Reads
from pipeline.store.layout import load_current
from pipeline.store.records import DROPPED, FILTERED, Counts, Shards, dropped_rows
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths, write_table
from pipeline.store.store import Outcome, Stage, Store
from pipeline.store.verdict import conservation
from pipeline.tasks.tasks_toml import read_tasks

FILE = ConfigFile("config.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class SievedConfig:
    every: int = 5


def sieved(cfg, inputs, work):
    """Drops every fifth document."""
    counts = Counts()
    for path in shard_paths(inputs[0].directory):
        table = read_table(path, FILTERED)
        places = [row for row in range(table.num_rows) if row % cfg.every == 0]
        gone = table.take(pa.array(places, pa.int64()))
        kept = table.filter(pa.array([row not in places for row in range(table.num_rows)], pa.bool_()))
        write_table(work.directory / path.name, kept)
        reasons, scores = pa.array(["fifth"] * len(places), pa.string()), pa.nulls(len(places), pa.float64())
        write_table(work.directory / DROPPED_FOLDER / path.name, dropped_rows(gone, work.stage, reasons, scores))
        counts.add(Counts(rows_in=table.num_rows, kept=kept.num_rows, dropped={"fifth": len(places)}))
    return Outcome(rows=counts.kept, counts=counts, content=("*.parquet",))


SIEVE = Stage(name="sieve", version=1, function=sieved, handle=Shards)
ROW = Link(
    name="sieve",
    does="drops every fifth document",
    stage=f"{__name__}.SIEVE",
    config=f"{__name__}.SievedConfig",
    asset="documents",
    command="stage",
    reads=(Reads("FILTERED"),),
    writes="FILTERED",
    drops=True,
    colour="#123456",
)


@pytest.fixture
def sieve(monkeypatch):
    place = [link.name for link in chain.CHAIN].index("filter") + 1
    monkeypatch.setattr(chain, "CHAIN", (*chain.CHAIN[:place], ROW, *chain.CHAIN[place:]))


def test_a_new_stage_is_in_the_graph_the_checks_the_data_card_and_the_trace(sieve, toy_graph):
    layout, mill = toy_graph.layout, Mill(layout=toy_graph.layout)
    sources = read_sources(layout.sources_toml)
    pages = {f"pages_{name.replace('-', '_')}": load_current(layout, f"pages/{name}") for name in sources}
    documents = documents_asset(sources, FILE)
    assert "sieve-1" in documents.specs_by_key[dg.AssetKey("documents")].code_version
    settings = {"filter": {"languages": []}, "sieve": {"every": 4}}
    left = documents(dg.build_asset_context(asset_config=settings), mill=mill, **pages).value
    assert left.stage == "sieve"

    examples = {"moods_examples": load_current(layout, "moods_examples")}
    asset = corpus_asset(read_tasks(layout.tasks_toml), FILE)
    corpus = asset(dg.build_asset_context(asset_config={}), mill=mill, documents=left, **examples).value
    verdict = conservation(left)
    assert verdict.passed and verdict.details == {"sieve": 0, "filter": 0, "clean": 0}

    recipe = corpus_report_recipe(CorpusReportConfig(), left, corpus)
    report = Store(root=layout.store).build(CORPUS_REPORT, recipe, left, corpus).handle
    card = (report.directory / "data_card.md").read_text()
    assert re.search(r"^\| `sieve` \|.* drops every fifth document \|$", card, re.MULTILINE)
    assert "after filter | after sieve | after dedup" in card and "| `sieve` | `fifth` |" in card

    gone = read_table(shard_paths(left.directory, DROPPED_FOLDER)[0], DROPPED).to_pylist()[0]
    ((page,), _) = trace(layout.store, {"documents": left, "corpus": corpus}, gone["url"])
    assert [(step.stage, step.outcome, step.reason) for step in page.steps][-1] == ("sieve", "dropped", "fifth")
    kept = read_table(shard_paths(corpus.directory)[0]).to_pylist()[0]
    ((page,), _) = trace(layout.store, {"documents": left, "corpus": corpus}, kept["url"])
    assert "sieve" in [step.stage for step in page.steps]


def test_a_new_stage_runs_alone_and_others_read_it(sieve, toy_graph, tmp_path, capsys):
    filtered = load_current(toy_graph.layout, "documents").directory
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRISTMILL_DATA", str(tmp_path / "data"))
        assert main(["stage", "sieve", str(filtered), "--out", str(tmp_path / "sieved"), "--set", "every=3"]) == 0
        assert main(["stage", "dedup", str(tmp_path / "sieved"), "--out", str(tmp_path / "unique")]) == 0
        assert main(["stage", "sieve", str(tmp_path / "unique"), "--out", str(tmp_path / "x")]) == 2
    assert "`sieve` reads the output of `filter`" in capsys.readouterr().err
