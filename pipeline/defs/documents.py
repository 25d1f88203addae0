"""Asset `documents`: the texts of the pages of all sources."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.collect.sources import Source
from pipeline.corpus.deny_list import deny_list
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.chain import configs_of, stages_of
from pipeline.store.records import Shards


def documents(sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key="documents",
        group="corpus",
        kinds={"parquet", "python"},
        config=configs_of("documents"),
        code=stages_of("documents"),
        ins={f"pages_{name.replace('-', '_')}": f"pages/{name}" for name in sources},
    )
    def documents(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: Mapping[str, Any],
        **pages: Shards,
    ) -> dg.MaterializeResult[Shards]:
        """Texts extracted from the pages of all sources, repaired, measured, and without formatted personal data.

        Dropped documents are kept with them, each with its reason.
        """
        by_name = [pages[name] for name in sorted(pages)]  # so that their order in sources.toml has no effect
        denied = deny_list(mill.store(context), mill.layout.denied)
        own = {"filter": {"sources": _own_rules(sources)}}
        return mill.materialised(*mill.build_chain(context, "documents", cfg, [*by_name, *denied], own))

    return documents


def _own_rules(sources: Mapping[str, Source]) -> dict[str, SourceRules]:
    """The rules of the sources that have rules of their own."""
    return {name: own for name, source in sources.items() if (own := source.own_rules()) != SourceRules()}
