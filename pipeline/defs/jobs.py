"""Jobs: parts of the graph that can be started with one click; assets that are up to date are not rebuilt."""

from collections.abc import Collection
from typing import Any

import dagster as dg

from pipeline.store.chain import TASK, assets_of_table, evaluation_of
from pipeline.tasks.tasks_toml import Task
from pipeline.training.models_toml import Model

Job = Any  # what dg.define_asset_job returns has no public name
ALL = dg.AssetSelection.all()
CORPUS = dg.AssetSelection.groups("corpus").upstream()  # with the examples, which the corpus must not contain


def jobs(models: Collection[Model], tasks: Collection[Task]) -> dict[str, Job]:
    """The jobs by name. `pretrain` and `finetune` start from the current outputs of the assets before them."""
    evaluated = [evaluation_of(model.name) for model in models]
    of_tasks = [asset for task in tasks for asset in assets_of_table(TASK, task.name)]
    selections = {
        "demo": (ALL, "Everything: from the sources to the evaluated models."),
        "build_corpus": (CORPUS, "Collect the sources again and build everything up to the token shards."),
        "pretrain": (
            dg.AssetSelection.groups("pretraining") | named(evaluated),
            "The models of models.toml and their evaluations, from the current token shards.",
        ),
        "finetune": (named(of_tasks), "Examples, model and evaluation of every task, from their current bases."),
    }
    return {
        name: dg.define_asset_job(name, selection=selection, description=description)
        for name, (selection, description) in selections.items()
    }


def named(assets: Collection[str]) -> dg.AssetSelection:
    """The assets with these names."""
    return dg.AssetSelection.assets(*(dg.AssetKey(asset.split("/")) for asset in assets))
