"""Assets `tokenizer`, `token_shards` and `token_shards/<base>`: convert text to token ids."""

from collections.abc import Mapping

import dagster as dg

from pipeline.corpus.collect.sources import Source
from pipeline.corpus.tokens.kept_tokenizer import kept_tokenizer
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig, tokenizer_stage
from pipeline.corpus.tokens.tokenizer_files import tokenizer_in
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.training.models_toml import Model


def tokenizer(file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file, key="tokenizer", group="corpus", kinds={"rust", "json"}, config=TokenizerConfig, code=[TOKENIZER]
    )
    def tokenizer(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: TokenizerConfig, corpus: Shards
    ) -> dg.MaterializeResult[TokenizerFile]:
        """Byte-pair encoding learned from the train split, or a published one; lossless on any text."""
        stage, layout = tokenizer_stage(mill.layout.cache), mill.layout
        kept = kept_tokenizer(layout.kept_tokenizer, layout.store, stage, cfg)
        return mill.materialised(kept or mill.build(context, stage, cfg, corpus))

    return tokenizer


def tokens_of_base(asset: str, base: Model, sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=asset,
        group="pretraining",
        kinds={"arrow"},
        config=TokenizeConfig,
        code=[TOKENIZE],
        ins={"base": base.asset},
    )
    def tokens_in_the_vocabulary_of_a_base(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: TokenizeConfig,
        corpus: Shards,
        base: Checkpoint,
    ) -> dg.MaterializeResult[Shards]:
        """All documents as token ids of a model made elsewhere, for the models that are trained further from it."""
        recipe = TokenizeRecipe(config=cfg, weights=weights_of(sources))
        return mill.materialised(mill.build(context, TOKENIZE, recipe, corpus, tokenizer_in(base)))

    return tokens_in_the_vocabulary_of_a_base


def weights_of(sources: Mapping[str, Source]) -> dict[str, float]:
    """The weights that are not 1."""
    return {name: source.weight for name, source in sources.items() if source.weight != 1}


def token_shards(sources: Mapping[str, Source], file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(file, key="token_shards", group="corpus", kinds={"arrow"}, config=TokenizeConfig, code=[TOKENIZE])
    def token_shards(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: TokenizeConfig,
        corpus: Shards,
        tokenizer: TokenizerFile,
    ) -> dg.MaterializeResult[Shards]:
        """All documents as token ids in Arrow files, repeated by the weights of their sources and shuffled once."""
        recipe = TokenizeRecipe(config=cfg, weights=weights_of(sources))
        return mill.materialised(mill.build(context, TOKENIZE, recipe, corpus, tokenizer))

    return token_shards
