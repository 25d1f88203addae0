"""Formats the output of `gristmill trace`, as text or as JSON.

In: the traces of pages, steps and texts. Out: lines for a terminal of 100 columns (one heading per page, one line per
stage, with its evidence indented below), and objects for --json, where nothing is shortened.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.tables import table_lines
from pipeline.provenance.exposure import ModelExposure
from pipeline.provenance.trace import DROPPED, REMOVED, PageTrace, TraceStep
from pipeline.provenance.trace_evidence import evidence_lines
from pipeline.provenance.trace_text import ExampleTrace, TextMatch
from pipeline.provenance.training_steps import StepContent, StepDocument

Names = Mapping[Path, str]  # folder of a checkpoint -> its name for people
INDENT = " " * 27  # below the text of a stage
MOST_STEPS = 12  # steps of a model that are listed
MOST_DOCUMENTS = 40  # documents of a training step that are listed
PREVIEW = 60  # characters of an example


def page_lines(page: PageTrace, names: Names, denied: str | None = None) -> Iterator[str]:
    """`denied` is the entry of the page in the deny list."""
    if page.match is not None:
        yield match_line(page.match)
    yield page.url or "(URL unknown: the outputs that contained it were removed)"
    yield f"  page {page.page_id}" + "".join(f", document {one}" for one in page.document_ids)
    for step in page.steps:
        yield from step_lines(step)
    yield from model_lines(page, names)
    if denied is not None:
        yield f"  {'forget':<14} {'denied':<10}{denied}; no later run includes it"


def match_line(match: TextMatch) -> str:
    if match.how == "equal":
        return "The text is the whole of this document:"
    if match.how == "search":
        return "This document contains the text:"
    return f"{match.containment:.0%} of the text's runs of words are in this document:"


def example_lines(example: ExampleTrace, names: Names) -> Iterator[str]:
    yield f"labelled example {example.example_id} of {example.asset}"
    outcome = "dropped" if example.split is None else example.split
    detail = f": {example.reason}" if example.reason else f", label {example.label}"
    yield f"  {'examples':<14} {outcome:<10}{example.where} row {example.row:,}{detail}"
    for i, model in enumerate(example.models):
        use = "trained" if example.split == "train" else "not seen"
        name = names.get(model, f"{model.parent.name} {model.name[:8]}")
        yield f"  {'models' if i == 0 else '':<14} {use:<10}{name}"


def example_object(example: ExampleTrace, names: Names) -> dict[str, Any]:
    return plain(example) | {"models": [{"name": names.get(one), "directory": str(one)} for one in example.models]}


def step_lines(step: TraceStep) -> Iterator[str]:
    head = f"  {step.stage:<14} {step.outcome:<10}"
    if step.outcome == REMOVED:
        yield f"{head}its output was removed, with its evidence for the page"
        return
    tokens = "" if step.n_tokens is None else f": {step.n_tokens:,} tokens"
    reason = (
        "" if step.reason is None else f": {step.reason}" + ("" if step.score is None else f" ({step.score:.4g})")
    )
    yield f"{head}{step.where} row {step.row:,}{tokens}{reason}"
    for line in evidence_lines(step.stage, step.evidence):
        yield f"{INDENT}{line}"


def model_lines(page: PageTrace, names: Names) -> Iterator[str]:
    if not page.models and page.steps and page.steps[-1].outcome != DROPPED:
        yield f"  {'models':<14} none      no finished model was trained on token shards that contain it"
    for i, model in enumerate(page.models):
        steps = seen_steps(model)
        outcome = "trained" if len(steps) else "not seen"
        name = names.get(model.directory, f"{model.stage} {model.fingerprint[:8]}")
        yield f"  {'models' if i == 0 else '':<14} {outcome:<10}{name}: {steps_text(model, steps)}"
        if model.base is not None and model.base_directory is not None:
            base = names.get(model.base_directory, model.base[:8])
            yield f"{INDENT}through {base}, from which it was made"


def seen_steps(model: ModelExposure) -> np.ndarray:
    return np.unique(np.concatenate([seen.steps for seen in model.documents]))


def steps_text(model: ModelExposure, steps: np.ndarray) -> str:
    """For instance "3 of 30 steps: 4, 17, 28"."""
    if not len(steps):
        sides = sorted({seen.side for seen in model.documents})
        held = sides != ["train"]
        return f"held out ({', '.join(sides)})" if held else f"in its shards, not reached in {model.n_steps:,} steps"
    listed = ", ".join(f"{step:,}" for step in steps.tolist())
    if len(steps) > MOST_STEPS:
        listed = f"first {steps[0]:,}, last {steps[-1]:,} (--json lists them)"
    return f"{len(steps):,} of {model.n_steps:,} steps: {listed}"


def page_object(page: PageTrace, names: Names) -> dict[str, Any]:
    return {
        "page_id": page.page_id,
        "url": page.url,
        "document_ids": page.document_ids,
        "match": plain(page.match),
        "stages": [plain(step) for step in page.steps],
        "models": [model_object(model, names) for model in page.models],
    }


def model_object(model: ModelExposure, names: Names) -> dict[str, Any]:
    steps = seen_steps(model).tolist()
    return {
        "name": names.get(model.directory),
        **{name: plain(getattr(model, name)) for name in ("stage", "fingerprint", "directory", "n_steps", "base")},
        "tokens": str(model.tokens),
        "n_steps_seen": len(steps),
        "first_step": steps[0] if steps else None,
        "last_step": steps[-1] if steps else None,
        "documents": [plain(seen) for seen in model.documents],
    }


def plain(value: Any) -> Any:
    """The value as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def joined(blocks: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of all blocks, separated by empty lines."""
    for i, block in enumerate(blocks):
        if i:
            yield ""
        yield from block


def step_content_lines(content: StepContent, model: str) -> Iterator[str]:
    """Sums first, then the documents, sorted by number of tokens."""
    steps = (
        f"step {content.first:,}" if content.first == content.last else f"steps {content.first:,}-{content.last:,}"
    )
    n_documents = len(content.documents)
    yield f"{model}, {steps} of {content.n_steps:,}: {n_documents:,} {content.kind}, {content.n_tokens:,} tokens"
    if content.note:
        yield f"  {content.note}"
    for field in ("source", "licence") if content.kind == "documents" else ("label",):
        yield ""
        rows = [[value, f"{n:,}", f"{tokens:,}"] for value, n, tokens in content.sums(field)]
        yield from (f"  {line}" for line in table_lines([field, content.kind, "tokens"], rows, right=(1, 2)))
    yield ""
    ordered = sorted(content.documents, key=lambda one: -one.n_tokens)
    rows = [
        [f"{one.n_tokens:,}", one.licence or one.label or "not known", _name(one)] for one in ordered[:MOST_DOCUMENTS]
    ]
    second = "licence" if content.kind == "documents" else "label"
    yield from (f"  {line}" for line in table_lines(["tokens", second, content.kind], rows, right=(0,)))
    if n_documents > MOST_DOCUMENTS:
        yield f"  and {n_documents - MOST_DOCUMENTS:,} more (--json lists them)"


def step_content_object(content: StepContent, model: Path) -> dict[str, Any]:
    fields = ("source", "licence") if content.kind == "documents" else ("label",)
    sums = {
        f"by_{field}": [{field: value, "documents": n, "tokens": tokens} for value, n, tokens in content.sums(field)]
        for field in fields
    }
    return {"model": str(model), "tokens": content.n_tokens, **sums, **plain(content)}


def _name(document: StepDocument) -> str:
    if document.preview is not None:
        return " ".join(document.preview.split())[:PREVIEW]
    return document.url or f"document {document.document_id}"
