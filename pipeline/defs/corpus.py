"""Asset `corpus`: the documents without duplicates and evaluation texts, each assigned to one split."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.chain import configs_of, stages_of
from pipeline.store.records import Shards
from pipeline.tasks.tasks_toml import Task


def corpus(tasks: Mapping[str, Task], file: ConfigFile) -> dg.AssetsDefinition:
    names = sorted(name for name, task in tasks.items() if task.hides_examples)

    @mill_asset(
        file,
        key="corpus",
        group="corpus",
        kinds={"duckdb", "parquet"},
        config=configs_of("corpus"),
        code=stages_of("corpus"),
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
        models are evaluated on, split into train, validation and test by family.

        The evidence for everything that was removed is kept with them.
        """
        judged = [examples[f"{name}_examples"] for name in names]
        own = {"decontaminate": {"tasks": tuple(names)}}
        return mill.materialised(*mill.build_chain(context, "corpus", cfg, [documents, *judged], own))

    return corpus
