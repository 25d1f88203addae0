"""Assets `pages/<source>`: one per table of sources.toml."""

import dagster as dg

from pipeline.corpus.collect.sources import Source
from pipeline.corpus.collect.stage import COLLECT, CollectConfig, collect
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Shards

N_WORKERS = 2  # of each source, because several are collected at once and wait for their servers meanwhile


def pages(source: Source, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=f"pages/{source.name}",
        group="corpus",
        kinds={"parquet", "python"},
        config=CollectConfig,
        code=[COLLECT],
        description=f"{source.note or source.name}: pages as collected. {source.kind},"
        f" licence {source.licence or 'not declared'}.",
        pool=None,
    )
    def pages_of_source(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: CollectConfig
    ) -> dg.MaterializeResult[Shards]:
        layout = mill.layout
        store = mill.store(context, n_workers=N_WORKERS)
        return mill.materialised(collect(store, source, layout.cache, cfg, denied=layout.denied))

    return pages_of_source
