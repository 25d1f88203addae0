"""Asset `corpus`: every document once, nothing that models are judged on, and on one side of the split."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Shards
from pipeline.tasks.tasks_toml import Task

STAGES = {
    "dedup": DedupConfig,
    "dedup_lines": DedupLinesConfig,
    "decontaminate": DecontaminateConfig,
    "split": SplitConfig,
}


def corpus(tasks: Mapping[str, Task], file: ConfigFile) -> dg.AssetsDefinition:
    names = sorted(tasks)

    @mill_asset(
        file,
        key="corpus",
        group="corpus",
        kinds={"duckdb", "parquet"},
        config=STAGES,
        code=(DEDUP, DEDUP_LINES, DECONTAMINATE, SPLIT),
        ins={f"{name}_examples": f"{name}_examples" for name in names},
    )
    def corpus(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: Mapping[str, Any],
        documents: Shards,
        **examples: Shards,
    ) -> dg.MaterializeResult[Shards]:
        """Documents without exact and near duplicates, without lines that a site repeats and without the texts that
        models are judged on, split into train, validation and test by family.

        The evidence for everything that was removed is kept beside them.
        """
        unique = mill.build(context, DEDUP, cfg["dedup"], documents)
        lined = mill.build(context, DEDUP_LINES, cfg["dedup_lines"], unique.handle)
        recipe = DecontaminateRecipe(config=cfg["decontaminate"], tasks=tuple(names))
        judged = [examples[f"{name}_examples"] for name in names]
        unseen = mill.build(context, DECONTAMINATE, recipe, lined.handle, *judged)
        divided = mill.build(context, SPLIT, cfg["split"], unseen.handle)
        return mill.materialised(unique, lined, unseen, divided)

    return corpus
