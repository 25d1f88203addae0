"""Assets `foundation_evaluation` and `<task>_evaluation`: how good the models are, compared with baselines."""

import dagster as dg

from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill, made_with
from pipeline.defs.run_config import ConfigFile
from pipeline.evaluation.foundation import EVALUATE_FOUNDATION, FoundationEvaluationConfig
from pipeline.store.records import Checkpoint, Report, Shards
from pipeline.tasks.classification import EVALUATE_CLASSIFICATION, ClassificationEvaluationConfig
from pipeline.tasks.tasks_toml import Task
from pipeline.tracking.registry import Candidate
from pipeline.training.finetune import FINETUNE, FinetuneConfig, random_baseline


def foundation_evaluation(file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key="foundation_evaluation",
        group="evaluation",
        kinds={"pytorch", "mlflow"},
        config=FoundationEvaluationConfig,
        code=[EVALUATE_FOUNDATION],
    )
    def foundation_evaluation(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: FoundationEvaluationConfig,
        foundation_model: Checkpoint,
        token_shards: Shards,
        corpus: Shards,
    ) -> dg.MaterializeResult[Report]:
        """Bits per byte and perplexity on held-out documents, beside n-gram models, and samples of text."""
        inputs = (foundation_model, token_shards, corpus)
        return mill.materialised(mill.build(context, EVALUATE_FOUNDATION, cfg, *inputs))

    return foundation_evaluation


def task_evaluation(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=f"{task.name}_evaluation",
        group="evaluation",
        kinds={"scikitlearn", "mlflow"},
        config=ClassificationEvaluationConfig,
        code=(FINETUNE, EVALUATE_CLASSIFICATION),
        ins={"base": task.base, "model": f"{task.name}_model", "examples": f"{task.name}_examples"},
    )
    def evaluation_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: ClassificationEvaluationConfig,
        base: Checkpoint,
        model: Checkpoint,
        examples: Shards,
        corpus: Shards,
    ) -> dg.MaterializeResult[Report]:
        """Accuracy and F1 on test examples, beside simple baselines and the same network without pretraining.

        That last baseline is trained here, which takes as long as the model itself did. Registers the model with
        MLflow, as champion if it is the best so far.
        """
        recipe, name = random_baseline(made_with(FinetuneConfig, model)), f"{task.name}_random_init"
        random = mill.build(context, FINETUNE, recipe, base, examples, run_name=name)
        candidate = Candidate(task=task.name, model=model, examples=examples)
        inputs = (model, random.handle, examples, corpus)
        built = mill.build(context, EVALUATE_CLASSIFICATION, cfg, *inputs, candidate=candidate)
        return mill.materialised(random, built)

    return evaluation_of_task
