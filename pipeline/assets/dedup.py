"""Asset `corpus`: every document once, and on one side of the split."""

import dagster as dg

from pipeline.resources import CORES, Mill, code_version, settings
from pipeline.run_config import ConfigFile, asset_fields
from pipeline.stages.dedup import DEDUP, DedupConfig
from pipeline.stages.records import Shards
from pipeline.stages.split import SPLIT, SplitConfig

STEP = "corpus_documents"  # Dagster wants steps and jobs to have different names, and a job is named `corpus`
DESCRIPTION = """\
Documents without exact and near duplicates, split into train, validation and test by cluster.

The evidence for every duplicate that was removed lies beside."""


def corpus(file: ConfigFile) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name=STEP,
        outs={
            "corpus": dg.AssetOut(
                group_name="corpus",
                kinds={"duckdb", "parquet"},
                description=DESCRIPTION,
                code_version=code_version(DEDUP, SPLIT),
            )
        },
        config_schema=asset_fields("corpus", {"dedup": DedupConfig, "split": SplitConfig}, file),
        op_tags=CORES,
    )
    def corpus(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], documents: Shards
    ) -> dg.MaterializeResult[Shards]:
        cfg = settings(context)
        unique = mill.build(context, DEDUP, cfg["dedup"], documents)
        divided = mill.build(context, SPLIT, cfg["split"], unique.handle)
        return mill.materialised(unique, divided)

    return corpus
