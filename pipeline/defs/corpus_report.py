"""Asset `corpus_report`: the data card of the corpus."""

import dagster as dg

from pipeline.corpus.report.stage import CORPUS_REPORT, CorpusReportConfig, corpus_report_recipe
from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Report, Shards


def corpus_report(file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="corpus",
        kinds={"duckdb", "mlflow"},
        config_schema=asset_config("corpus_report", CorpusReportConfig, file),
        code_version=code_version(CORPUS_REPORT),
        op_tags=CORES,
    )
    def corpus_report(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], documents: Shards, corpus: Shards
    ) -> dg.MaterializeResult[Report]:
        """The data card: what is in the corpus, where it came from, what was left out and why, and what it lacks."""
        recipe = corpus_report_recipe(settings(context), documents, corpus)
        return mill.materialised(mill.build(context, CORPUS_REPORT, recipe, documents, corpus))

    return corpus_report
