"""Assets `<task>_examples` and `<task>_model`: two per table of tasks.toml."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg

from pipeline.corpus.examples.stage import VERSION, ExamplesConfig
from pipeline.defs.mill_asset import Body, mill_asset
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Checkpoint, Columns, Shards
from pipeline.store.store import Stage
from pipeline.tasks.documents_examples import build_questions
from pipeline.tasks.tasks_toml import Task
from pipeline.training.finetune import FinetuneConfig, finetune_stage

Decorator = Callable[[Body], dg.AssetsDefinition]


def _examples_asset(task: Task, file: ConfigFile, ins: Mapping[str, str] | None = None) -> Decorator:
    return mill_asset(
        file,
        key=f"{task.name}_examples",
        group="fine_tuning",
        kinds={"parquet", "python"},
        config=task.kind.examples,
        given=asdict(task.examples),
        code=f"examples-{VERSION}",
        ins=ins,
        pool=None,
    )


def _model_asset(
    task: Task, file: ConfigFile, stages: Sequence[Stage], ins: Mapping[str, str] | None = None
) -> Decorator:
    """`ins`: what it reads besides its base and its examples."""
    return mill_asset(
        file,
        key=f"{task.name}_model",
        group="fine_tuning",
        kinds={"pytorch", "mlflow"},
        config=task.kind.finetune,
        given=asdict(task.finetune),
        code=stages,
        ins={"base": task.base, "examples": f"{task.name}_examples", **(ins or {})},
        description=task.kind.summary,
    )


def examples(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    @_examples_asset(task, file)
    def examples_of_task(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: ExamplesConfig
    ) -> dg.MaterializeResult[Shards]:
        """Labelled texts, split into train, validation and test so that near duplicates stay on one side."""
        store, layout = mill.store(context), mill.layout
        built = task.kind.build_examples(
            store, task.data, cfg, layout.cache, held_out=task.held_out, denied=layout.denied
        )
        return mill.materialised(built)

    return examples_of_task


def questions(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    assert task.collection

    @_examples_asset(task, file, {"base": task.base, "passages": task.collection.assets[-1]})
    def questions_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: ExamplesConfig,
        base: Checkpoint,
        passages: Columns,
    ) -> dg.MaterializeResult[Shards]:
        """Questions with their answers and documents, from a file or made from the documents and marked as made."""
        built = build_questions(
            mill.store(context), task.kind, task.all_data, cfg, mill.layout, passages=passages, base=base
        )
        return mill.materialised(built)

    return questions_of_task


def assistant(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    stage, collection = finetune_stage(task.kind), task.collection
    assert collection

    @_model_asset(task, file, [stage], {"passages": collection.assets[-1], "embedder": collection.embedder})
    def assistant_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: Any,
        base: Checkpoint,
        examples: Shards,
        passages: Columns,
        embedder: Checkpoint,
    ) -> dg.MaterializeResult[Checkpoint]:
        return mill.materialised(mill.build(context, stage, cfg, base, examples, passages, embedder))

    return assistant_of_task


def model(task: Task, file: ConfigFile) -> dg.AssetsDefinition:
    stage, before = finetune_stage(task.kind), task.kind.reference(task.finetune)

    @_model_asset(task, file, [stage] if before is None else [before[0], stage])
    def model_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: FinetuneConfig,
        base: Checkpoint,
        examples: Shards,
    ) -> dg.MaterializeResult[Checkpoint]:
        first = task.kind.reference(cfg)  # by the settings of the launchpad
        references = [] if first is None else [mill.build(context, *first, base, examples)]
        built = mill.build(context, stage, cfg, base, examples, *(one.handle for one in references))
        return mill.materialised(*references, built)

    return model_of_task
