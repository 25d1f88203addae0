"""Assets `<model>_evaluation` and `<task>_evaluation`: metrics of the models, compared with baselines."""

from dataclasses import asdict

import dagster as dg

from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.resources import Mill, made_with
from pipeline.defs.run_config import ConfigFile
from pipeline.evaluation.language_model import EVALUATE_MODEL, LanguageModelEvaluationConfig
from pipeline.evaluation.task import TaskEvaluationConfig, evaluation_stage
from pipeline.store.records import Checkpoint, Report, Shards
from pipeline.tasks.prompting import asked_decoder
from pipeline.tasks.tasks_toml import Task
from pipeline.tracking.registry import Candidate
from pipeline.training.finetune import finetune_stage, random_baseline
from pipeline.training.models_toml import ContinuedModel, PretrainedModel


def model_evaluation(model: PretrainedModel, file: ConfigFile) -> dg.AssetsDefinition:
    assert model.evaluation

    @mill_asset(
        file,
        key=model.evaluation,
        group="evaluation",
        kinds={"pytorch", "mlflow"},
        config=LanguageModelEvaluationConfig,
        code=[EVALUATE_MODEL],
        ins={"model": model.asset},
    )
    def evaluation_of_model(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: LanguageModelEvaluationConfig,
        model: Checkpoint,
        token_shards: Shards,
    ) -> dg.MaterializeResult[Report]:
        """Bits per byte and perplexity on held-out documents, compared with n-gram models, and samples of text."""
        return mill.materialised(mill.build(context, EVALUATE_MODEL, cfg, model, token_shards))

    return evaluation_of_model


def continued_evaluation(model: ContinuedModel, file: ConfigFile) -> dg.AssetsDefinition:
    assert model.evaluation

    @mill_asset(
        file,
        key=model.evaluation,
        group="evaluation",
        kinds={"pytorch", "mlflow"},
        config=LanguageModelEvaluationConfig,
        code=[EVALUATE_MODEL],
        ins={"base": model.base_asset, "model": model.asset, "tokens": model.tokens},
    )
    def evaluation_of_continued_model(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: LanguageModelEvaluationConfig,
        base: Checkpoint,
        model: Checkpoint,
        tokens: Shards,
    ) -> dg.MaterializeResult[Report]:
        """What the training changed: bits per byte on its own sources and on other text, before and after."""
        return mill.materialised(mill.build(context, EVALUATE_MODEL, cfg, model, tokens, base))

    return evaluation_of_continued_model


def task_evaluation(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    kind = task.kind
    training, evaluation = finetune_stage(kind), evaluation_stage(kind)

    @mill_asset(
        file,
        key=f"{task.name}_evaluation",
        group="evaluation",
        kinds={"scikitlearn", "mlflow"},
        config=kind.evaluation,
        code=(training, evaluation),
        given=asdict(task.evaluation),
        ins={"base": task.base, "model": f"{task.name}_model", "examples": f"{task.name}_examples"}
        | ({"corpus": "corpus"} if task.hides_examples else {})
        | ({} if task.prompted == task.base else {"prompted": task.prompted}),
    )
    def evaluation_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: TaskEvaluationConfig,
        base: Checkpoint,
        model: Checkpoint,
        examples: Shards,
        **others: Checkpoint | Shards,
    ) -> dg.MaterializeResult[Report]:
        """Metrics of the model on test examples, compared with baselines and the same network without pretraining.

        That last baseline, random_init, is a second model, which is trained here and takes as long as the model
        itself; the setting `random_init` switches it off. A base that is a decoder, or the model that the
        task names in `prompted`, also answers some of the examples as it is: the baseline prompting. The model
        is registered in MLflow, as champion if it is the best so far.
        """
        decoder = asked_decoder(base, others.pop("prompted", None))  # refused before another model is trained
        candidate = Candidate(task=task.name, kind=kind.name, model=model, examples=examples)
        recipe = random_baseline(made_with(kind.finetune, model))
        run = {"run_name": f"{task.name}_random_init", "parent": model}
        trained = [mill.build(context, training, recipe, base, examples, **run)] if cfg.random_init else []
        prompted = [decoder] if cfg.prompted_examples else []
        inputs = (model, *(one.handle for one in trained), *prompted, examples, *others.values())
        built = mill.build(context, evaluation, cfg, *inputs, candidate=candidate)
        return mill.materialised(*trained, built)

    return evaluation_of_task
