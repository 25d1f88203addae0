"""Asset `foundation_model`: the decoder that everything else starts from."""

import dagster as dg

from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Checkpoint, Shards, TokenizerFile
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe


def foundation_model(file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="pretraining",
        kinds={"pytorch", "mlflow"},
        config_schema=asset_config("foundation_model", PretrainConfig, file),
        code_version=code_version(PRETRAIN),
        op_tags=CORES,
    )
    def foundation_model(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        token_shards: Shards,
        tokenizer: TokenizerFile,
    ) -> dg.MaterializeResult[Checkpoint]:
        """A Transformer decoder pretrained on the train split. Stopped at any moment, it goes on where it was."""
        cfg = settings(context)
        built = mill.build(context, PRETRAIN, pretrain_recipe(cfg), token_shards, tokenizer, devices=cfg.devices)
        return mill.materialised(built)

    return foundation_model
