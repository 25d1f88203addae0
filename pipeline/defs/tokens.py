"""Assets `tokenizer` and `token_shards`: from text to numbers."""

from collections.abc import Mapping

import dagster as dg

from pipeline.corpus.collect.sources import Source
from pipeline.corpus.tokens.kept_tokenizer import kept_tokenizer
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig, tokenizer_stage
from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Shards, TokenizerFile


def tokenizer(file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="corpus",
        kinds={"rust", "json"},
        config_schema=asset_config("tokenizer", TokenizerConfig, file),
        code_version=code_version(TOKENIZER),
        op_tags=CORES,
    )
    def tokenizer(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], corpus: Shards
    ) -> dg.MaterializeResult[TokenizerFile]:
        """Byte-pair encoding learned from the train split, or a published one; lossless on any text."""
        cfg, stage, layout = settings(context), tokenizer_stage(mill.layout.cache), mill.layout
        kept = kept_tokenizer(layout.kept_tokenizer, layout.store, stage, cfg)
        return mill.materialised(kept or mill.build(context, stage, cfg, corpus))

    return tokenizer


def token_shards(sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    weights = {name: source.weight for name, source in sources.items() if source.weight != 1}

    @dg.asset(
        group_name="corpus",
        kinds={"arrow"},
        config_schema=asset_config("token_shards", TokenizeConfig, file),
        code_version=code_version(TOKENIZE),
        op_tags=CORES,
    )
    def token_shards(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], corpus: Shards, tokenizer: TokenizerFile
    ) -> dg.MaterializeResult[Shards]:
        """All documents as token ids, each as often as its source's weight says, shuffled once, in Arrow files."""
        recipe = TokenizeRecipe(config=settings(context), weights=weights)
        return mill.materialised(mill.build(context, TOKENIZE, recipe, corpus, tokenizer))

    return token_shards
