"""Assets `pages/<source>`: one a table of sources.toml."""

import dagster as dg

from pipeline.corpus.collect.sources import Source
from pipeline.corpus.collect.stage import COLLECT, CollectConfig, collect
from pipeline.defs.resources import Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Shards


def pages(source: Source, file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        key=["pages", source.name],
        group_name="corpus",
        kinds={"parquet", "python"},
        description=f"{source.note or source.name}: pages as collected. {source.kind},"
        f" licence {source.licence or 'not declared'}.",
        config_schema=asset_config(f"pages/{source.name}", CollectConfig, file),
        code_version=code_version(COLLECT),
    )
    def pages_of_source(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill]
    ) -> dg.MaterializeResult[Shards]:
        layout = mill.layout
        built = collect(mill.store(context), source, layout.cache, settings(context), denied=layout.denied)
        return mill.materialised(built)

    return pages_of_source
