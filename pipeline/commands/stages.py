"""`gristmill stage`, `train` and `evaluate`: single stages from a shell, without Dagster.

In: folders of earlier outputs, or raw pages. Out: a finished folder where --out says, which the next command takes.
What is remembered a shard lies in the store of the data folder, so that the same work is not done twice. A stage
that is run again into the same folder goes on, or says that nothing has changed.
"""

import importlib
import re
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.launch import launch
from pipeline.corpus.deny_list import deny_list
from pipeline.store.engine import LocalProcesses
from pipeline.store.layout import Layout, folder_or_current, layout_from_environment
from pipeline.store.progress import current_show, displayed
from pipeline.store.records import Handle
from pipeline.store.settings import read_assignments
from pipeline.store.store import RECORD, Built, Launch, Stage, Store, read_handle


@dataclass(frozen=True, slots=True)
class Reads:
    """An input: outputs of one of these stages, `least` to `most` of them (None = any number)."""

    stages: tuple[str, ...]
    least: int = 1
    most: int | None = 1

    def __str__(self) -> str:
        stages = " or ".join(f"`{stage}`" for stage in self.stages)
        return stages if self.least == self.most else f"{stages} (if wanted)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Runnable:
    """Where a stage lies, and what it reads, in the order of its inputs."""

    module: str
    stage: str
    config: str
    reads: tuple[Reads, ...] = ()
    recipe: str = ""  # class that wraps the config, where the stage wants more than that

    def load(self) -> tuple[Any, Any]:
        module = importlib.import_module(f"pipeline.{self.module}")
        return getattr(module, self.stage), getattr(module, self.config)

    def settings(self, cfg: Any, **more: Any) -> Any:
        """What the stage is built with."""
        module = importlib.import_module(f"pipeline.{self.module}")
        return getattr(module, self.recipe)(config=cfg, **more) if self.recipe else cfg


PAGES, DOCUMENTS, SIGNALS = Reads(("collect",), most=None), Reads(("clean",)), Reads(("signals",))
FILTERED, ACCEPTED = Reads(("filter",)), Reads(("dedup",), least=0, most=None)
UNIQUE, CORPUS = Reads(("dedup", "dedup_lines")), Reads(("dedup", "dedup_lines", "decontaminate"))
EXAMPLES = Reads(("examples",), least=0, most=None)
DIVIDED, TOKENIZER, TOKENS = Reads(("split",)), Reads(("tokenizer",)), Reads(("tokenize",))
RUNNABLE = {
    "clean": Runnable(module="corpus.clean.stage", stage="CLEAN", config="CleanConfig", reads=(PAGES,)),
    "signals": Runnable(module="corpus.signals.stage", stage="MEASURE", config="SignalsConfig", reads=(DOCUMENTS,)),
    "filter": Runnable(
        module="corpus.filter.stage",
        stage="FILTER",
        config="FilterConfig",
        reads=(DOCUMENTS, SIGNALS),
        recipe="FilterRecipe",
    ),
    "dedup": Runnable(module="corpus.dedup.stage", stage="DEDUP", config="DedupConfig", reads=(FILTERED, ACCEPTED)),
    "dedup_lines": Runnable(
        module="corpus.dedup_lines.stage", stage="DEDUP_LINES", config="DedupLinesConfig", reads=(Reads(("dedup",)),)
    ),
    "decontaminate": Runnable(
        module="corpus.decontaminate.stage",
        stage="DECONTAMINATE",
        config="DecontaminateConfig",
        reads=(UNIQUE, EXAMPLES),
        recipe="DecontaminateRecipe",
    ),
    "split": Runnable(module="corpus.split.stage", stage="SPLIT", config="SplitConfig", reads=(CORPUS,)),
    "tokenizer": Runnable(
        module="corpus.tokens.tokenizer", stage="TOKENIZER", config="TokenizerConfig", reads=(DIVIDED,)
    ),
    "tokenize": Runnable(
        module="corpus.tokens.tokenize",
        stage="TOKENIZE",
        config="TokenizeConfig",
        reads=(DIVIDED, TOKENIZER),
        recipe="TokenizeRecipe",
    ),
    "train": Runnable(
        module="training.pretrain", stage="PRETRAIN", config="PretrainConfig", reads=(TOKENS, TOKENIZER)
    ),
}
EVALUATIONS = {  # by the stages that made the model and the data
    ("pretrain", "tokenize"): Runnable(
        module="evaluation.foundation", stage="EVALUATE_FOUNDATION", config="FoundationEvaluationConfig"
    ),
    ("finetune", "examples"): Runnable(
        module="evaluation.foundation", stage="EVALUATE_CLASSIFICATION", config="ClassificationEvaluationConfig"
    ),
}


def run_stage(args: Namespace) -> int:
    layout, out = layout_from_environment(), Path(args.out).absolute()
    with displayed() as display:
        if args.name == "collect":
            cfg = read_assignments(_collect_config(), args.set)
            display.begin("collect")
            built = _collected(layout, args, _raw_path(args.inputs), cfg, out)
        else:
            runnable = RUNNABLE[args.name]
            stage, config = runnable.load()
            if args.name == "tokenizer":
                stage = _with_packages(stage, layout)
            cfg = read_assignments(config, args.set)
            display.begin(args.name)
            given = _handles(layout, args.name, args.inputs, args)
            more = {"tasks": _task_names(given)} if args.name == "decontaminate" else {}
            store = _store(layout, args)
            handles = [handle for _, handle in given]
            handles += deny_list(store, layout.denied) if args.name == "filter" else ()
            built = store.build(stage, runnable.settings(cfg, **more), *handles, directory=out)
        display.end(_summary(built))
    return 0


def run_train(args: Namespace) -> int:
    from pipeline.training.pretrain import pretrain_recipe

    layout = layout_from_environment()
    stage, config = RUNNABLE["train"].load()
    cfg = read_assignments(config, args.set)
    handles = [handle for _, handle in _handles(layout, "train", [args.tokens, args.tokenizer], args)]
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
    if (model.stage, data.stage) not in EVALUATIONS:
        raise ValueError(
            f"{model.directory} is an output of `{model.stage}`, {data.directory} of `{data.stage}`; expected"
            f" {' or '.join(f'{model} and {data}' for model, data in EVALUATIONS)}"
        )
    stage, config = EVALUATIONS[model.stage, data.stage].load()
    cfg = read_assignments(config, args.set)
    with displayed() as display:
        display.begin("evaluate")
        built = _store(layout, args).build(stage, cfg, model, data, directory=Path(args.out).absolute())
        display.end(_summary(built))
    print((built.handle.directory / "report.md").read_text())
    return 0


def _store(layout: Layout, args: Namespace) -> Store:
    return Store(root=layout.store, engine=LocalProcesses(n_workers=args.workers), show=current_show())


def _launch(devices: int) -> Launch:
    """A process a device, of torchrun."""
    return lambda order: launch("pipeline.training.process", [str(order)], devices)


def _handles(layout: Layout, name: str, inputs: list[str], args: Namespace) -> list[tuple[str, Handle]]:
    """What was given and the output it means, in the order in which stage `name` takes them.

    Raw pages are collected first.
    """
    reads = RUNNABLE[name].reads
    given: list[tuple[str, Handle]] = []
    for text in inputs:
        path = Path(text).absolute()
        if PAGES in reads and path.exists() and not (path / RECORD).exists():
            given.append((text, _collected(layout, args, path, _collect_config()(), None).handle))
        else:
            given.append((text, read_handle(folder_or_current(layout, text))))
    for _, handle in given:
        if not any(handle.stage in read.stages for read in reads):
            raise ValueError(
                f"{handle.directory} is an output of `{handle.stage}`; `{name}` reads the output of"
                f" {' and '.join(map(str, reads))}"
            )
    ordered = []
    for read in reads:
        own = [one for one in given if one[1].stage in read.stages]
        if not read.least <= len(own) <= (len(own) if read.most is None else read.most):
            raise ValueError(f"`{name}` needs one output of {read}, got {len(own)}")
        ordered += own
    return ordered


def _task_names(given: list[tuple[str, Handle]]) -> tuple[str, ...]:
    """Of examples: the name of the asset `<task>_examples`, or of the folder."""
    names = (Path(text).name.removesuffix("_examples") for text, handle in given if handle.stage == "examples")
    return tuple(names)


def _with_packages(stage: Stage, layout: Layout) -> Stage:
    """The stage `tokenizer` with the folder that published vocabularies are fetched into."""
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
    """The pages of a raw folder, file or archive, as a source of kind `files` that is named after it."""
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
