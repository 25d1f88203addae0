"""Asset `corpus`: every document once, nothing that models are judged on, and on one side of the split."""

from collections.abc import Mapping

import dagster as dg

from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_fields
from pipeline.store.records import Shards
from pipeline.tasks.tasks_toml import Task

STEP = "corpus_documents"  # Dagster wants steps and jobs to have different names, and a job is named `corpus`
STAGES = {
    "dedup": DedupConfig,
    "dedup_lines": DedupLinesConfig,
    "decontaminate": DecontaminateConfig,
    "split": SplitConfig,
}
DESCRIPTION = """\
Documents without exact and near duplicates, without lines that a site repeats and without the texts that models are
judged on, split into train, validation and test by family.

The evidence for everything that was removed lies beside."""


def corpus(tasks: Mapping[str, Task], file: ConfigFile) -> dg.AssetsDefinition:
    names = sorted(tasks)

    @dg.multi_asset(
        name=STEP,
        outs={
            "corpus": dg.AssetOut(
                group_name="corpus",
                kinds={"duckdb", "parquet"},
                description=DESCRIPTION,
                code_version=code_version(DEDUP, DEDUP_LINES, DECONTAMINATE, SPLIT),
            )
        },
        ins={f"{name}_examples": dg.AssetIn(f"{name}_examples") for name in names},
        config_schema=asset_fields("corpus", STAGES, file),
        op_tags=CORES,
    )
    def corpus(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], documents: Shards, **examples: Shards
    ) -> dg.MaterializeResult[Shards]:
        cfg = settings(context)
        unique = mill.build(context, DEDUP, cfg["dedup"], documents)
        lined = mill.build(context, DEDUP_LINES, cfg["dedup_lines"], unique.handle)
        recipe = DecontaminateRecipe(config=cfg["decontaminate"], tasks=tuple(names))
        judged = [examples[f"{name}_examples"] for name in names]
        unseen = mill.build(context, DECONTAMINATE, recipe, lined.handle, *judged)
        divided = mill.build(context, SPLIT, cfg["split"], unseen.handle)
        return mill.materialised(unique, lined, unseen, divided)

    return corpus
