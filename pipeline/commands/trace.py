"""`gristmill trace`: what became of a page or a text, and what was in a training step.

In: a URL, its end, a page id, a document id or a text; or a model and its steps. Out: the verdict of every stage with
its evidence, and the models that were trained on it; or the documents of the steps. torch, MLflow and Dagster are not
loaded for it.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from pipeline.commands.trace_lines import joined, page_lines, page_object
from pipeline.layout import Layout, all_current, all_entries, layout_from_environment


def run_trace(args: Namespace) -> int:
    from pipeline.stages.trace import trace

    layout = layout_from_environment()
    pages = trace(layout.store, all_current(layout), args.what, say)
    names = model_names(layout)
    if args.json:
        print(json.dumps([page_object(page, names) for page in pages], indent=1))
    else:
        write(joined(page_lines(page, names) for page in pages))
    return 0


def model_names(layout: Layout) -> dict[Path, str]:
    """Folder -> the asset that holds it, or held it before."""
    names: dict[Path, str] = {}
    for entry in all_entries(layout):
        names[layout.store / entry["folder"]] = entry["asset"]
        for folder in entry["earlier"]:
            names.setdefault(layout.store / folder, f"{entry['asset']}, an earlier one")
    return names


def say(text: str) -> None:
    print(f"gristmill: {text}", file=sys.stderr)


def write(lines: Iterable[str]) -> None:
    """Pages are not ours: what they hold must not reach the terminal as commands."""
    for line in lines:
        print("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line))
