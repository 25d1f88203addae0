"""`gristmill ui`, `results` and `trace`: what the whole graph has come to.

In: parsed arguments. Out: text on stdout, and an exit code.
"""

import json
from argparse import Namespace

from pipeline.layout import all_current, layout_from_environment


def run_ui(args: Namespace) -> int:
    from pipeline.ui import serve

    return serve(layout_from_environment(), args.dagster_port, args.mlflow_port)


def run_results(args: Namespace) -> int:
    from pipeline.results import newest_results, result_lines

    results = newest_results(layout_from_environment())
    print(json.dumps(results, indent=1) if args.json else "\n".join(result_lines(results)))
    return 0


def run_trace(args: Namespace) -> int:
    from pipeline.stages.trace import trace, trace_lines

    for line in trace_lines(trace(all_current(layout_from_environment()), args.what)):
        print(line)
    return 0
