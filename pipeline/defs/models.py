"""Assets of the tables of models.toml: the models themselves."""

import dagster as dg

from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.training.bases import BASE, OpenRecipe
from pipeline.training.continuing import CONTINUE, ContinueConfig, continue_recipe
from pipeline.training.models_toml import ContinuedModel, OpenModel, PretrainedModel
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe


def base(model: OpenModel, file: ConfigFile) -> dg.AssetsDefinition:
    source = model.source

    @mill_asset(
        file,
        key=model.asset,
        group="base_models",
        kinds={"pytorch", "mlflow"},
        config={},
        code=[BASE],
        description=f"{source.note or model.name}: imported from {source.origin()}, licence"
        f" {source.licence or 'as the files state'}.",
    )
    def imported(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: object
    ) -> dg.MaterializeResult[Checkpoint]:
        recipe = OpenRecipe(config=source, cache=mill.layout.cache)
        return mill.materialised(mill.build(context, BASE, recipe))

    return imported


def pretrained_model(model: PretrainedModel, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=model.asset,
        group="pretraining",
        kinds={"pytorch", "mlflow"},
        config=PretrainConfig,
        given=model.settings,
        code=[PRETRAIN],
    )
    def trained_from_scratch(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: PretrainConfig,
        token_shards: Shards,
        tokenizer: TokenizerFile,
    ) -> dg.MaterializeResult[Checkpoint]:
        """A Transformer pretrained on the train split. A stopped run resumes from its checkpoint."""
        built = mill.build(context, PRETRAIN, pretrain_recipe(cfg), token_shards, tokenizer, devices=cfg.devices)
        return mill.materialised(built)

    return trained_from_scratch


def continued_model(model: ContinuedModel, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=model.asset,
        group="pretraining",
        kinds={"pytorch", "mlflow"},
        config=ContinueConfig,
        given=model.settings,
        code=[CONTINUE],
        ins={"base": model.base_asset, "tokens": model.tokens},
        description=f"{model.base}, trained further on documents of the corpus. A stopped run resumes from its"
        " checkpoint.",
    )
    def trained_further(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: ContinueConfig,
        base: Checkpoint,
        tokens: Shards,
    ) -> dg.MaterializeResult[Checkpoint]:
        built = mill.build(context, CONTINUE, continue_recipe(cfg), base, tokens, devices=cfg.devices)
        return mill.materialised(built)

    return trained_further
