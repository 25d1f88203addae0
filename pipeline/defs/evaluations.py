"""Assets `foundation_evaluation` and `<task>_evaluation`: what the models are worth, beside baselines."""

import dagster as dg

from pipeline.defs.resources import CORES, Mill, code_version, made_with, settings
from pipeline.defs.run_config import ConfigFile, asset_config
from pipeline.evaluation.foundation import EVALUATE_FOUNDATION, FoundationEvaluationConfig
from pipeline.store.records import Checkpoint, Report, Shards
from pipeline.tasks.classification import EVALUATE_CLASSIFICATION, ClassificationEvaluationConfig
from pipeline.tasks.tasks_toml import Task
from pipeline.tracking.registry import Candidate
from pipeline.training.finetune import FINETUNE, FinetuneConfig, random_baseline


def foundation_evaluation(file: ConfigFile) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="evaluation",
        kinds={"pytorch", "mlflow"},
        config_schema=asset_config("foundation_evaluation", FoundationEvaluationConfig, file),
        code_version=code_version(EVALUATE_FOUNDATION),
        op_tags=CORES,
    )
    def foundation_evaluation(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        foundation_model: Checkpoint,
        token_shards: Shards,
        corpus: Shards,
    ) -> dg.MaterializeResult[Report]:
        """Bits per byte and perplexity on held-out documents, beside n-gram models, and samples of text."""
        inputs = (foundation_model, token_shards, corpus)
        built = mill.build(context, EVALUATE_FOUNDATION, settings(context), *inputs)
        return mill.materialised(built)

    return foundation_evaluation


def task_evaluation(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    name = f"{task.name}_evaluation"

    @dg.asset(
        name=name,
        ins={
            "base": dg.AssetIn(task.base),
            "model": dg.AssetIn(f"{task.name}_model"),
            "examples": dg.AssetIn(f"{task.name}_examples"),
            "corpus": dg.AssetIn("corpus"),
        },
        group_name="evaluation",
        kinds={"scikitlearn", "mlflow"},
        config_schema=asset_config(name, ClassificationEvaluationConfig, file),
        code_version=code_version(FINETUNE, EVALUATE_CLASSIFICATION),
        op_tags=CORES,
    )
    def evaluation_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        base: Checkpoint,
        model: Checkpoint,
        examples: Shards,
        corpus: Shards,
    ) -> dg.MaterializeResult[Report]:
        """Accuracy and F1 on test examples, beside simple baselines and the same network without pretraining.

        Registers the model with MLflow, as champion where it is the best so far.
        """
        recipe, name = random_baseline(made_with(FinetuneConfig, model)), f"{task.name}_random_init"
        random = mill.build(context, FINETUNE, recipe, base, examples, run_name=name)
        candidate = Candidate(task=task.name, model=model, examples=examples)
        inputs = (model, random.handle, examples, corpus)
        built = mill.build(context, EVALUATE_CLASSIFICATION, settings(context), *inputs, candidate=candidate)
        return mill.materialised(random, built)

    return evaluation_of_task
