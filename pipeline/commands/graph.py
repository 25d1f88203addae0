"""`gristmill ui` and `results`: what the whole graph has come to.

In: parsed arguments. Out: text on stdout, and an exit code.
"""

import json
from argparse import Namespace

from pipeline.store.layout import layout_from_environment


def run_ui(args: Namespace) -> int:
    from pipeline.commands.ui import serve

    return serve(layout_from_environment(), args.dagster_port, args.mlflow_port)


def run_results(args: Namespace) -> int:
    from pipeline.commands.results import newest_results, result_lines

    results = newest_results(layout_from_environment())
    print(json.dumps(results, indent=1) if args.json else "\n".join(result_lines(results)))
    return 0
