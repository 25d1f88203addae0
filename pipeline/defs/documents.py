"""Asset `documents`: the texts of the pages of all sources."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.collect.sources import Source
from pipeline.corpus.deny_list import deny_list
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Shards

STAGES = {"clean": CleanConfig, "signals": SignalsConfig, "filter": FilterConfig}


def documents(sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key="documents",
        group="corpus",
        kinds={"parquet", "python"},
        config=STAGES,
        code=(CLEAN, MEASURE, FILTER),
        ins={f"pages_{name.replace('-', '_')}": ["pages", name] for name in sources},
    )
    def documents(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: Mapping[str, Any],
        **pages: Shards,
    ) -> dg.MaterializeResult[Shards]:
        """Texts extracted from the pages of all sources, repaired, measured, and without formatted personal data.

        What the rules dropped is kept beside them, each document with its reason.
        """
        by_name = [pages[name] for name in sorted(pages)]  # so that their order in sources.toml does not count
        cleaned = mill.build(context, CLEAN, cfg["clean"], *by_name)
        measured = mill.build(context, MEASURE, cfg["signals"], cleaned.handle)
        recipe = FilterRecipe(config=cfg["filter"], sources=_own_rules(sources))
        denied = deny_list(mill.store(context), mill.layout.denied)
        filtered = mill.build(context, FILTER, recipe, cleaned.handle, measured.handle, *denied)
        return mill.materialised(cleaned, measured, filtered)

    return documents


def _own_rules(sources: Mapping[str, Source]) -> dict[str, SourceRules]:
    """The rules of the sources that have rules of their own."""
    return {name: own for name, source in sources.items() if (own := source.own_rules()) != SourceRules()}
