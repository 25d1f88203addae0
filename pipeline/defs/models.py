"""Asset `foundation_model`: the pretrained decoder that task models are fine-tuned from."""

import dagster as dg

from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe


def foundation_model(file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key="foundation_model",
        group="pretraining",
        kinds={"pytorch", "mlflow"},
        config=PretrainConfig,
        code=[PRETRAIN],
    )
    def foundation_model(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: PretrainConfig,
        token_shards: Shards,
        tokenizer: TokenizerFile,
    ) -> dg.MaterializeResult[Checkpoint]:
        """A Transformer decoder pretrained on the train split. A stopped run resumes from its checkpoint."""
        built = mill.build(context, PRETRAIN, pretrain_recipe(cfg), token_shards, tokenizer, devices=cfg.devices)
        return mill.materialised(built)

    return foundation_model
