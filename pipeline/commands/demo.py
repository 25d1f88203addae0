"""`gristmill demo` and `showcase`: run the default graph, or its tasks on open models, and show how to look at the
results.
"""

import runpy
import sys
from argparse import Namespace

from pipeline.commands.run import run_assets
from pipeline.store.layout import usable_layout

HOW_TO_LOOK = """
To look at it:
  make ui                                prints the addresses of both UIs, which run until Ctrl-C: Dagster shows the
                                         graph, materialisations and checks, MLflow runs, curves and models
  .venv/bin/gristmill generate "The "    a text of the new model"""


def run(args: Namespace) -> int:
    del args
    return run_assets(usable_layout(), [], again="make demo", ending=HOW_TO_LOOK.splitlines())


def run_showcase(args: Namespace) -> int:
    from pipeline.tasks.declared import showcase_assets
    from pipeline.tasks.tasks_toml import read_tasks

    del args
    layout = usable_layout()
    if not (assets := showcase_assets(read_tasks(layout.tasks_toml).values())):
        raise ValueError(f"{layout.tasks_toml} has no task whose base is an open model of models.toml")
    return run_assets(layout, assets, again="make showcase")


if __name__ == "__main__":  # python -m pipeline.commands.demo
    sys.argv[1:1] = ["demo"]
    runpy.run_module("pipeline", run_name="__main__")
