"""`gristmill trace`: shows what happened to a page or a text at each stage, and what was in a training step.

In: a URL, its end, a page id, a document id or a text; or a model and its steps. Out: the decision of every stage
with its evidence, and the models that were trained on it; or the documents of the steps. torch, MLflow and Dagster
are not loaded for it.
"""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.commands.trace_lines import (
    example_lines,
    example_object,
    joined,
    page_lines,
    page_object,
    step_content_lines,
    step_content_object,
)
from pipeline.corpus.collect.left_out import left_out
from pipeline.corpus.collect.sources import read_sources
from pipeline.provenance.trace import PageTrace, trace, trace_text
from pipeline.provenance.training_steps import content_of_steps
from pipeline.store.layout import Layout, all_current, all_entries, existing_layout, folder_or_current
from pipeline.tasks.declared import declared_assets

MOST_BYTES = 80_000_000  # limit for a text from stdin
STEPS = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


def run_trace(args: Namespace) -> int:
    layout = existing_layout()
    if args.step is not None:
        if args.what is not None:
            raise ValueError(f"--step MODEL STEP shows a training step and cannot be combined with {args.what!r}")
        return _run_steps(layout, *args.step, as_json=args.json)
    if args.what is None:
        raise ValueError(
            "nothing to trace: give a URL, the end of one, a page id, a document id or a text; or --step"
        )
    handles, names = all_current(layout, declared_assets(layout)), model_names(layout)
    if args.what == "-":
        text = sys.stdin.buffer.read(MOST_BYTES).decode(errors="replace")
        pages, examples = trace_text(layout.store, handles, text, teller(), args.seconds)
    else:
        try:
            pages, examples = trace(layout.store, handles, args.what, teller(), args.seconds)
        except ValueError as error:
            if sentences := left_out(read_sources(layout.sources_toml).values(), layout.cache, args.what):
                raise ValueError("; ".join(sentences)) from error
            raise
    denied = denied_pages(layout, pages)
    if args.json:
        found = {
            "pages": [page_object(page, names) | {"denied": denied.get(page.page_id)} for page in pages],
            "examples": [example_object(one, names) for one in examples],
        }
        print(json.dumps(found, indent=1))
    else:
        blocks = [page_lines(page, names, denied.get(page.page_id)) for page in pages]
        write(joined([*blocks, *(example_lines(one, names) for one in examples)]))
    return 0


def denied_pages(layout: Layout, pages: Iterable[PageTrace]) -> dict[str, str]:
    """Page id -> since when and why it is on the deny list, for denied pages."""
    if not layout.denied.exists():
        return {}
    from pipeline.corpus.deny_list import read_denials

    denials = read_denials(layout.denied)
    return {
        page.page_id: denial.told()
        for page in pages
        for denial in denials
        if denial.url == page.url or denial.page_id == page.page_id or denial.document_id in page.document_ids
    }


def _run_steps(layout: Layout, model: str, steps: str, *, as_json: bool) -> int:
    if (match := STEPS.fullmatch(steps.replace(",", ""))) is None:
        raise ValueError(f"--step {model} {steps}: expected a step such as 1234, or a range such as 1200-1234")
    first, last = int(match[1]), int(match[2] or match[1])
    folder = _model_folder(layout, model)
    from pipeline.tasks.kind import kind_of

    content = content_of_steps(layout.store, folder, first, last, teller(), kind_of)
    if as_json:
        print(json.dumps(step_content_object(content, folder), indent=1))
    else:
        write(step_content_lines(content, model))
    return 0


def _model_folder(layout: Layout, model: str) -> Path:
    """A folder, an asset, or a registered model, which is tried last because MLflow takes seconds to load."""
    try:
        return folder_or_current(layout, model)
    except ValueError as error:
        from pipeline.tracking.registry import registered_names

        named = [
            ("champion" not in name, folder)
            for fingerprint, names in registered_names(layout).items()
            for name in names
            for folder in layout.store.glob(f"*/{fingerprint}")
            if model in (name, *name.split(" (")[:1], name.partition(" ")[0])
        ]
        if not named:
            raise error
        return min(named)[1]  # a name without a version means the champion


def model_names(layout: Layout) -> dict[Path, str]:
    """Folder -> the asset whose output it is, or was."""
    names: dict[Path, str] = {}
    for entry in all_entries(layout):
        names[layout.store / entry["folder"]] = entry["asset"]
        for folder in entry["earlier"]:
            names.setdefault(layout.store / folder, f"{entry['asset']}, an earlier one")
    return names


def teller() -> Callable[[str], None]:
    """Reports on stderr what takes seconds; for the indexes, of which there is one per output, only once."""
    told = set()

    def say(text: str) -> None:
        shown = (
            "indexing outputs that were built since the last trace (once)" if text.startswith("indexing") else text
        )
        if shown not in told:
            print(f"gristmill: {shown}", file=sys.stderr)
        told.add(shown)

    return say


def write(lines: Iterable[str]) -> None:
    """Remove control characters: text of pages must not reach the terminal as commands."""
    for line in lines:
        print("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line))
