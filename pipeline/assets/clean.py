"""Asset `documents`: the texts of the pages of all sources."""

from collections.abc import Iterable

import dagster as dg

from pipeline.metadata import materialised
from pipeline.resources import CORES, Mill, code_version, settings
from pipeline.run_config import ConfigFile, asset_config
from pipeline.stages.clean import CLEAN, CleanConfig
from pipeline.stages.filter import FILTER, FilterConfig
from pipeline.stages.records import Shards


def documents(sources: Iterable[str], file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        ins={f"pages_{name.replace('-', '_')}": dg.AssetIn(["pages", name]) for name in sources},
        group_name="corpus",
        kinds={"parquet", "python"},
        config_schema=asset_config("documents", {"clean": CleanConfig, "filter": FilterConfig}, file),
        code_version=code_version(CLEAN, FILTER),
        op_tags=CORES,
    )
    def documents(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], **pages: Shards
    ) -> dg.MaterializeResult[Shards]:
        """Texts taken out of the pages of all sources, repaired, and those of them that read like prose.

        What was dropped lies beside, each with its reason.
        """
        cfg = settings(context)
        cleaned = mill.build(context, CLEAN, cfg["clean"], *pages.values())
        filtered = mill.build(context, FILTER, cfg["filter"], cleaned.handle)
        return materialised(mill.layout, cleaned, filtered)

    return documents
