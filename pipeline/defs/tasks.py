"""Assets `<task>_examples` and `<task>_model`: two a table of tasks.toml."""

from dataclasses import asdict

import dagster as dg

from pipeline.corpus.examples.stage import VERSION, ExamplesConfig, build_examples
from pipeline.defs.resources import CORES, Mill, code_version, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.store.records import Checkpoint, Shards
from pipeline.tasks.tasks_toml import Task
from pipeline.training.finetune import FINETUNE, FinetuneConfig


def examples(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    name = f"{task.name}_examples"

    @dg.asset(
        name=name,
        group_name="fine_tuning",
        kinds={"parquet", "python"},
        config_schema=asset_config(name, ExamplesConfig, file, asdict(task.examples)),
        code_version=f"examples-{VERSION}",
    )
    def examples_of_task(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill]
    ) -> dg.MaterializeResult[Shards]:
        """Labelled texts, split into train, validation and test so that near duplicates stay on one side."""
        layout = mill.layout
        built = build_examples(mill.store(context), task.data, settings(context), layout.cache, denied=layout.denied)
        return mill.materialised(built)

    return examples_of_task


def model(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    name = f"{task.name}_model"

    @dg.asset(
        name=name,
        ins={"base": dg.AssetIn(task.base), "examples": dg.AssetIn(f"{task.name}_examples")},
        group_name="fine_tuning",
        kinds={"pytorch", "mlflow"},
        config_schema=asset_config(name, FinetuneConfig, file, asdict(task.finetune)),
        code_version=code_version(FINETUNE),
        op_tags=CORES,
    )
    def model_of_task(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], base: Checkpoint, examples: Shards
    ) -> dg.MaterializeResult[Checkpoint]:
        """The foundation model with a head for the labels of the task, all of its weights trained on the examples."""
        return mill.materialised(mill.build(context, FINETUNE, settings(context), base, examples))

    return model_of_task
