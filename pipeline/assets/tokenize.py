"""Assets `tokenizer` and `token_shards`: from text to numbers."""

import dagster as dg

from pipeline.resources import CORES, Mill, code_version, settings
from pipeline.run_config import ConfigFile, asset_config
from pipeline.stages.records import Shards, TokenizerFile
from pipeline.stages.tokenize import TOKENIZE, TokenizeConfig
from pipeline.stages.tokenizer import TOKENIZER, TokenizerConfig


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
        """Byte-pair encoding learned from the train split; lossless on any text."""
        return mill.materialised(mill.build(context, TOKENIZER, settings(context), corpus))

    return tokenizer


def token_shards(file: ConfigFile) -> dg.AssetsDefinition:
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
        """All documents as token ids, shuffled once, in Arrow files that training maps into memory."""
        return mill.materialised(mill.build(context, TOKENIZE, settings(context), corpus, tokenizer))

    return token_shards
