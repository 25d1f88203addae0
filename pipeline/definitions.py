"""Builds the graph that Dagster loads, for one data folder, from the four TOML files in it.

In: a layout with sources.toml, models.toml, tasks.toml and config.toml. Out: Definitions. A mistake in one of the
files is reported with file, table, key and what is allowed. Nothing heavy is imported here, because it would slow
down the UI, the daemon and every step: see tests/test_layers.py.
"""

from collections.abc import Iterable, Mapping

import dagster as dg
from dagster._core.definitions.definitions_load_context import (  # these two have no public names
    DefinitionsLoadContext,
    DefinitionsLoadType,
)

from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.sources import read_sources
from pipeline.defs import collections, corpus, corpus_report, documents, evaluations, models, pages, tasks, tokens
from pipeline.defs.checks import TABLE, asset_checks, limited_metrics, read_limits
from pipeline.defs.executor import executor
from pipeline.defs.jobs import jobs
from pipeline.defs.mill_asset import PROJECT
from pipeline.defs.names import asset_name
from pipeline.defs.resources import resources
from pipeline.defs.run_config import ConfigFile, read_config_file
from pipeline.defs.schedules import schedules
from pipeline.defs.sensors import sensors
from pipeline.store.chain import OF_SOURCE, SOURCE
from pipeline.store.layout import Layout, layout_from_environment, usable_layout
from pipeline.store.redaction import redact_logs
from pipeline.tasks.collection import refuse_unknown_documents
from pipeline.tasks.declared import refuse_missing
from pipeline.tasks.tasks_toml import Task, read_tasks
from pipeline.training.models_toml import (
    ContinuedModel,
    Model,
    OpenModel,
    PretrainedModel,
    read_models,
    refuse_unknown_sources,
    vocabularies,
)


def definitions(layout: Layout) -> dg.Definitions:
    """The whole graph. Raises ValueError when one of the four files is invalid."""
    file, sources = read_config_file(layout.config_toml), read_sources(layout.sources_toml)
    all_models, all_tasks = read_models(layout.models_toml), read_tasks(layout.tasks_toml)
    refuse_unknown_sources(all_models.values(), sources, layout.models_toml)
    collections_of_tasks = [task.collection for task in all_tasks.values() if task.collection]
    refuse_unknown_documents(collections_of_tasks, sources, layout.tasks_toml)
    of_bases = vocabularies(all_models.values())
    assets = [
        *(pages.pages(source, file) for source in sources.values()),
        documents.documents(sources, file),
        corpus.corpus(all_tasks, file),
        corpus_report.corpus_report(file),
        tokens.tokenizer(file),
        tokens.token_shards(sources, file),
        *(tokens.tokens_of_base(asset, base, sources, file) for asset, base in of_bases.items()),
        *(asset for model in all_models.values() for asset in assets_of_model(model, file)),
        *(asset for task in all_tasks.values() for asset in assets_of_task(task, file)),
    ]
    file.refuse_unknown_tables([PROJECT, TABLE, *(asset_name(asset.key) for asset in assets)])
    limits = read_limits(file, limited_metrics(sources, all_models.values(), all_tasks.values()))
    by_name = jobs(all_models.values(), all_tasks.values())
    return dg.Definitions(
        assets=assets,
        asset_checks=asset_checks(sources, all_models.values(), all_tasks.values(), limits),
        jobs=list(by_name.values()),
        schedules=schedules(by_name),
        sensors=sensors(layout, watched_sources(sources, all_tasks.values())),
        resources=resources(layout),
        executor=executor(),
    )


def assets_of_model(model: Model, file: ConfigFile) -> list[dg.AssetsDefinition]:
    """The assets of a table of models.toml."""
    if isinstance(model, OpenModel):
        return [models.base(model, file)]
    if isinstance(model, ContinuedModel):
        return [models.continued_model(model, file), evaluations.continued_evaluation(model, file)]
    assert isinstance(model, PretrainedModel)
    return [models.pretrained_model(model, file), evaluations.model_evaluation(model, file)]


def assets_of_task(task: Task, file: ConfigFile) -> list[dg.AssetsDefinition]:
    """The assets of a table of tasks.toml."""
    makers = (tasks.examples, tasks.model) if task.collection is None else (tasks.questions, tasks.assistant)
    own = [make(task, file) for make in (*makers, evaluations.task_evaluation)]
    return [*collections.collection_assets(task, file), *own]


def watched_sources(sources: Mapping[str, Source], tasks: Iterable[Task]) -> dict[str, Source]:
    """All sources by the asset of their pages."""
    own = [task.collection for task in tasks if task.collection]
    inline = {one.pages["pages"]: one.inline for one in own if one.inline}
    return {OF_SOURCE.replace(SOURCE, name): source for name, source in sources.items()} | inline


@dg.definitions
def defs() -> dg.Definitions:
    """The graph of the folder that the environment names, for Dagster.

    When the code location is loaded, what the files name must be there. The steps of a run load the graph, too: a
    disk that was removed meanwhile must not end those that do not read it.
    """
    redact_logs()  # Dagster keeps what is logged in a run
    layout = layout_from_environment()
    if DefinitionsLoadContext.get().load_type == DefinitionsLoadType.INITIALIZATION:
        refuse_missing(usable_layout())
    return definitions(layout)
