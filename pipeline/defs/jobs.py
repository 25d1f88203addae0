"""Jobs: parts of the graph that can be started with one click; assets that are up to date are not rebuilt."""

from typing import Any

import dagster as dg

Job = Any  # what dg.define_asset_job returns has no public name
ALL = dg.AssetSelection.all()
CORPUS = dg.AssetSelection.groups("corpus").upstream()  # with the examples, which the corpus must not contain
EVALUATED = dg.AssetSelection.groups("pretraining") | dg.AssetSelection.assets("foundation_evaluation")


def jobs() -> dict[str, Job]:
    """The jobs by name. `pretrain` and `finetune` start from the current outputs of the assets before them."""
    selections = {
        "demo": (ALL, "Everything: from the sources to the evaluated models."),
        "build_corpus": (CORPUS, "Collect the sources again and build everything up to the token shards."),
        "pretrain": (EVALUATED, "The foundation model and its evaluation, from the current token shards."),
        "finetune": (
            ALL - EVALUATED - dg.AssetSelection.groups("corpus"),
            "Examples, model and evaluation of every task, from the current foundation model.",
        ),
    }
    return {
        name: dg.define_asset_job(name, selection=selection, description=description)
        for name, (selection, description) in selections.items()
    }
