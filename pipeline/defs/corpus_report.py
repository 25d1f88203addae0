"""Asset `corpus_report`: the data card of the corpus."""

import dagster as dg

from pipeline.corpus.report.stage import CORPUS_REPORT, CorpusReportConfig, corpus_report_recipe
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Report, Shards


def corpus_report(file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key="corpus_report",
        group="corpus",
        kinds={"duckdb", "mlflow"},
        config=CorpusReportConfig,
        code=[CORPUS_REPORT],
    )
    def corpus_report(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: CorpusReportConfig,
        documents: Shards,
        corpus: Shards,
    ) -> dg.MaterializeResult[Report]:
        """The data card: what is in the corpus, where it came from, what was left out and why, and what it lacks."""
        recipe = corpus_report_recipe(cfg, documents, corpus)
        return mill.materialised(mill.build(context, CORPUS_REPORT, recipe, documents, corpus))

    return corpus_report
