"""`gristmill stage`, `train` and `evaluate`: run single stages from a shell, without Dagster.

In: folders of earlier outputs, or raw pages. Out: a finished folder at --out, which the next command reads. Results
per shard are cached in the store of the data folder, so that no work is done twice. A stage that is run again into
the same folder continues, or reports that nothing has changed.
"""

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from model.training.launch import launch
from pipeline.corpus.deny_list import DENY_LIST, deny_list
from pipeline.store.chain import Link, Reads, link_of, run_by, side_inputs
from pipeline.store.engine import LocalProcesses
from pipeline.store.layout import Layout, folder_or_current, layout_from_environment
from pipeline.store.progress import current_show, displayed
from pipeline.store.records import Checkpoint, Handle
from pipeline.store.settings import read_assignments
from pipeline.store.store import RECORD, Built, Launch, Stage, Store, read_handle, read_record


def run_stage(args: Namespace) -> int:
    layout, out = layout_from_environment(), Path(args.out).absolute()
    with displayed() as display:
        if args.name == "collect":
            cfg = read_assignments(_collect_config(), args.set)
            display.begin("collect")
            built = _collected(layout, args, _raw_path(args.inputs), cfg, out)
        else:
            link = link_of(args.name)
            stage, config = link.load()
            if args.name == "tokenizer":
                stage = _with_packages(stage, layout)
            cfg = read_assignments(config, args.set)
            display.begin(args.name)
            given = _handles(layout, args.name, args.inputs, args)
            more = {"tasks": _task_names(given)} if args.name == "decontaminate" else {}
            store = _store(layout, args)
            handles = [_tokenizer_of(handle) if args.name == "tokenize" else handle for _, handle in given]
            if DENY_LIST.name in side_inputs(args.name) - {handle.stage for handle in handles}:
                handles += deny_list(store, layout.denied)
            built = store.build(stage, link.settings(cfg, **more), *handles, directory=out)
        display.end(_summary(built))
    return 0


def _tokenizer_of(handle: Handle) -> Handle:
    """The tokenizer of a model, which `tokenize` takes beside the corpus; any other output as it is."""
    from pipeline.corpus.tokens.tokenizer_files import tokenizer_in

    return tokenizer_in(handle) if isinstance(handle, Checkpoint) else handle


def run_train(args: Namespace) -> int:
    from pipeline.training.pretrain import pretrain_recipe

    layout = layout_from_environment()
    link = link_of(*run_by("train"))
    stage, config = link.load()
    cfg = read_assignments(config, args.set)
    handles = [handle for _, handle in _handles(layout, link.name, [args.tokens, args.tokenizer], args)]
    with displayed() as display:
        display.begin("train")
        store = replace(_store(layout, args), launch=_launch(cfg.devices) if cfg.devices > 1 else None)
        built = store.build(stage, pretrain_recipe(cfg), *handles, directory=Path(args.out).absolute())
        display.end(_summary(built))
    print("\n".join(f"{name} {value:.4g}" for name, value in sorted(built.record["measures"].items())))
    return 0


def run_evaluate(args: Namespace) -> int:
    layout = layout_from_environment()
    model, data = (read_handle(folder_or_current(layout, text)) for text in (args.model, args.data))
    evaluations = {
        stages: link
        for link in map(link_of, run_by("evaluate"))
        for stages in product(*(read.stages(link.name) for read in link.reads))
    }
    if (model.stage, data.stage) not in evaluations:
        raise ValueError(
            f"{model.directory} is an output of `{model.stage}`, {data.directory} of `{data.stage}`; expected"
            f" {' or '.join(' and '.join(stages) for stages in evaluations)}"
        )
    stage, config = _evaluation(model, evaluations[model.stage, data.stage])
    cfg = read_assignments(config, args.set)
    with displayed() as display:
        display.begin("evaluate")
        built = _store(layout, args).build(stage, cfg, model, data, directory=Path(args.out).absolute())
        display.end(_summary(built))
    print((built.handle.directory / "report.md").read_text("utf-8"))
    return 0


def _evaluation(model: Handle, link: Link) -> tuple[Stage, Any]:
    """The stage that evaluates a model, and its config; for a fine-tuned model it depends on the kind of task."""
    if link.stage:
        return link.load()
    from pipeline.evaluation.task import evaluation_stage
    from pipeline.tasks.kind import kind_of

    kind = kind_of(read_record(model.directory) or {})
    return evaluation_stage(kind), kind.evaluation


def _store(layout: Layout, args: Namespace) -> Store:
    return Store(root=layout.store, engine=LocalProcesses(n_workers=args.workers), show=current_show())


def _launch(devices: int) -> Launch:
    """Run one process per device, with torchrun."""
    return lambda order: launch("pipeline.training.process", [str(order)], devices)


def _handles(layout: Layout, name: str, inputs: list[str], args: Namespace) -> list[tuple[str, Handle]]:
    """The outputs that the arguments name, in the order in which stage `name` takes them.

    Raw pages are collected first.
    """
    link = link_of(name)
    reads = {read: read.stages(name) for read in link.reads}
    given: list[tuple[str, Handle]] = []
    for text in inputs:
        path = Path(text).absolute()
        if _reads_pages(link) and path.exists() and not (path / RECORD).exists():
            given.append((text, _collected(layout, args, path, _collect_config()(), None).handle))
        else:
            given.append((text, read_handle(folder_or_current(layout, text))))
    for _, handle in given:
        if not any(handle.stage in stages for stages in reads.values()):
            wanted = " and ".join(_told(read, stages) for read, stages in reads.items())
            raise ValueError(
                f"{handle.directory} is an output of `{handle.stage}`; `{name}` reads the output of {wanted}"
            )
    ordered = []
    for read, stages in reads.items():
        own = [one for one in given if one[1].stage in stages]
        if not read.least <= len(own) <= (len(own) if read.most is None else read.most):
            raise ValueError(f"`{name}` needs one output of {_told(read, stages)}, got {len(own)}")
        ordered += own
    return ordered


def _reads_pages(link: Link) -> bool:
    return any(read.what == "PAGE" for read in link.reads)


def _told(read: Reads, stages: Sequence[str]) -> str:
    names = " or ".join(f"`{stage}`" for stage in stages)
    return names if read.least == read.most else f"{names} (optional)"


def _task_names(given: list[tuple[str, Handle]]) -> tuple[str, ...]:
    """The name of examples: that of the asset `<task>_examples`, or of the folder."""
    names = (Path(text).name.removesuffix("_examples") for text, handle in given if handle.stage == "examples")
    return tuple(names)


def _with_packages(stage: Stage, layout: Layout) -> Stage:
    """The stage `tokenizer` with the folder in which published vocabularies are cached."""
    from pipeline.corpus.tokens.tokenizer import tokenizer_stage

    return tokenizer_stage(layout.cache)


def _raw_path(inputs: list[str]) -> Path:
    if len(inputs) != 1:
        raise ValueError(f"`collect` reads one folder, file or archive of raw pages, got {len(inputs)}")
    return Path(inputs[0]).absolute()


def _collect_config() -> Any:
    from pipeline.corpus.collect.stage import CollectConfig

    return CollectConfig


def _collected(layout: Layout, args: Namespace, path: Path, cfg: Any, directory: Path | None) -> Built:
    """The pages of a raw folder, file or archive, as a source of kind `files` with its name."""
    from pipeline.corpus.collect.sources import FilesSource
    from pipeline.corpus.collect.stage import collect

    if not path.exists():
        raise ValueError(f"{path} does not exist")
    name = re.sub(r"[^a-z0-9]+", "-", path.name.split(".")[0].lower()).strip("-") or "pages"
    source = FilesSource(name=name, path=str(path))
    return collect(_store(layout, args), source, layout.cache, cfg, directory=directory, denied=layout.denied)


def _summary(built: Built) -> str:
    """For instance "1,204 kept of 1,300: short 96"."""
    handle, counts = built.handle, built.counts
    rows = f"{handle.rows:,} rows"
    if counts:
        dropped = ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts.dropped.items()))
        rows = f"{counts.kept:,} kept of {counts.rows_in:,}" + (f"; dropped: {dropped}" if dropped else "")
    return f"{rows} in {handle.directory}" + (" (unchanged)" if built.unchanged else "")
