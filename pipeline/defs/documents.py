"""Asset `documents`: the texts of the pages of all sources."""

from collections.abc import Mapping

import dagster as dg

from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.collect.sources import Source
from pipeline.corpus.deny_list import deny_list
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Shards

STAGES = {"clean": CleanConfig, "signals": SignalsConfig, "filter": FilterConfig}


def documents(sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        ins={f"pages_{name.replace('-', '_')}": dg.AssetIn(["pages", name]) for name in sources},
        group_name="corpus",
        kinds={"parquet", "python"},
        config_schema=asset_config("documents", STAGES, file),
        code_version=code_version(CLEAN, MEASURE, FILTER),
        op_tags=CORES,
    )
    def documents(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], **pages: Shards
    ) -> dg.MaterializeResult[Shards]:
        """Texts taken out of the pages of all sources, repaired, measured, without personal data that has a form.

        What the rules dropped lies beside, each with its reason.
        """
        cfg = settings(context)
        by_name = [pages[name] for name in sorted(pages)]  # so that their order in sources.toml does not count
        cleaned = mill.build(context, CLEAN, cfg["clean"], *by_name)
        measured = mill.build(context, MEASURE, cfg["signals"], cleaned.handle)
        recipe = FilterRecipe(config=cfg["filter"], sources=_own_rules(sources))
        denied = deny_list(mill.store(context), mill.layout.denied)
        filtered = mill.build(context, FILTER, recipe, cleaned.handle, measured.handle, *denied)
        return mill.materialised(cleaned, measured, filtered)

    return documents


def _own_rules(sources: Mapping[str, Source]) -> dict[str, SourceRules]:
    """Of the sources that say something for themselves."""
    return {name: own for name, source in sources.items() if (own := source.own_rules()) != SourceRules()}
