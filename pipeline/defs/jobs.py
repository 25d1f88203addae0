"""Jobs: parts of the graph that can be started with one click; assets that are up to date are not rebuilt."""

from collections.abc import Collection
from typing import Any

import dagster as dg

from pipeline.tasks.declared import idle_assets_of, showcase_assets
from pipeline.tasks.tasks_toml import Task
from pipeline.training.models_toml import ContinuedModel, Model, OpenModel, vocabularies

Job = Any  # what dg.define_asset_job returns has no public name
ALL = dg.AssetSelection.all()
CORPUS = dg.AssetSelection.groups("corpus").upstream()  # with the examples, which the corpus must not contain


def jobs(models: Collection[Model], tasks: Collection[Task]) -> dict[str, Job]:
    """The jobs by name. `pretrain` and `finetune` start from the current outputs of the assets before them."""
    own = [asset for model in models if not isinstance(model, OpenModel) for asset in model.assets]
    of_bases = {one.base_asset for one in models if isinstance(one, ContinuedModel)}
    trained = sorted({*own, *of_bases, *vocabularies(models)})
    ordinary = [task for task in tasks if not task.showcase]
    of_tasks = [asset for task in ordinary for asset in task.assets]
    open_bases = sorted({model for task in ordinary for model in task.models}.difference(own))
    selections = {
        "demo": (
            ALL - named(idle_assets_of(models, tasks)),
            "Everything from the sources to the evaluated models, without the showcase and what only that needs.",
        ),
        "everything": (ALL, "Everything, with the showcase and open models that nothing else needs."),
        "build_corpus": (CORPUS, "Collect the sources again and build everything up to the token shards."),
        "pretrain": (
            named(trained),
            "The models of models.toml and their evaluations, from the current corpus and token shards.",
        ),
        "finetune": (
            named([*of_tasks, *open_bases]),
            "Examples, model and evaluation of every task, from the current models, without the showcase.",
        ),
    }
    if shown := showcase_assets(tasks):
        selections["showcase"] = (
            named(shown),
            "Every task on an open model: examples, model and evaluation. It needs no corpus.",
        )
    return {
        name: dg.define_asset_job(name, selection=selection, description=description)
        for name, (selection, description) in selections.items()
    }


def named(assets: Collection[str]) -> dg.AssetSelection:
    """The assets with these names."""
    return dg.AssetSelection.assets(*(dg.AssetKey(asset.split("/")) for asset in assets))
