"""Assets `pages/<source>`: one per table of sources.toml; and the pages of a source that one task has for itself."""

import dagster as dg

from pipeline.corpus.collect.sources import Source
from pipeline.corpus.collect.stage import COLLECT, CollectConfig, collect
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.chain import OF_SOURCE, SOURCE
from pipeline.store.records import Shards

N_WORKERS = 2  # of each source, because several are collected at once and wait for their servers meanwhile


def pages(source: Source, file: ConfigFile) -> dg.AssetsDefinition:
    title = f"{source.note or source.name}: pages as collected."
    return collected(source, file, OF_SOURCE.replace(SOURCE, source.name), "corpus", title, n_workers=N_WORKERS)


def collected(
    source: Source, file: ConfigFile, key: str, group: str, title: str, n_workers: int = 0
) -> dg.AssetsDefinition:
    """The asset `key`: the pages of a source. `title`: the first sentence of its description."""

    @mill_asset(
        file,
        key=key,
        group=group,
        kinds={"parquet", "python"},
        config=CollectConfig,
        code=[COLLECT],
        description=f"{title} {source.kind}, licence {source.licence or 'not declared'}.",
        pool=None,
    )
    def pages_of_source(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: CollectConfig
    ) -> dg.MaterializeResult[Shards]:
        layout = mill.layout
        store = mill.store(context, n_workers=n_workers)
        return mill.materialised(collect(store, source, layout.cache, cfg, denied=layout.denied))

    return pages_of_source
