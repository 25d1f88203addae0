"""`gristmill stage`, `train` and `evaluate`: single stages from a shell, without Dagster.

In: folders of earlier outputs, or raw pages. Out: a finished folder where --out says, which the next command takes.
What is remembered a shard lies in the store of the data folder, so that the same work is not done twice. A stage
that is run again into the same folder goes on, or says that nothing has changed.
"""

import importlib
import re
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.settings import parse_settings
from pipeline.layout import Layout, folder_or_current, layout_from_environment
from pipeline.progress import current_show, displayed
from pipeline.stages.engine import LocalProcesses
from pipeline.stages.records import Handle
from pipeline.stages.store import RECORD, Built, Store, read_handle


@dataclass(frozen=True, kw_only=True, slots=True)
class Runnable:
    """Where a stage lies, and the stages whose outputs it reads, in the order of its inputs."""

    module: str
    stage: str
    config: str
    reads: tuple[str, ...] = ()
    recipe: str = ""  # class that wraps the config, where the stage wants more than that

    def load(self) -> tuple[Any, Any]:
        module = importlib.import_module(f"pipeline.stages.{self.module}")
        return getattr(module, self.stage), getattr(module, self.config)

    def settings(self, cfg: Any) -> Any:
        """What the stage is built with."""
        module = importlib.import_module(f"pipeline.stages.{self.module}")
        return getattr(module, self.recipe)(config=cfg) if self.recipe else cfg


RUNNABLE = {
    "clean": Runnable(module="clean", stage="CLEAN", config="CleanConfig", reads=("collect",)),
    "signals": Runnable(module="signals", stage="MEASURE", config="SignalsConfig", reads=("clean",)),
    "filter": Runnable(
        module="filter", stage="FILTER", config="FilterConfig", reads=("clean", "signals"), recipe="FilterRecipe"
    ),
    "dedup": Runnable(module="dedup", stage="DEDUP", config="DedupConfig", reads=("filter",)),
    "split": Runnable(module="split", stage="SPLIT", config="SplitConfig", reads=("dedup",)),
    "tokenizer": Runnable(module="tokenizer", stage="TOKENIZER", config="TokenizerConfig", reads=("split",)),
    "tokenize": Runnable(module="tokenize", stage="TOKENIZE", config="TokenizeConfig", reads=("split", "tokenizer")),
    "train": Runnable(module="pretrain", stage="PRETRAIN", config="PretrainConfig", reads=("tokenize", "tokenizer")),
}
EVALUATIONS = {  # by the stages that made the model and the data
    ("pretrain", "tokenize"): Runnable(
        module="evaluate", stage="EVALUATE_FOUNDATION", config="FoundationEvaluationConfig"
    ),
    ("finetune", "examples"): Runnable(
        module="evaluate", stage="EVALUATE_CLASSIFICATION", config="ClassificationEvaluationConfig"
    ),
}


def run_stage(args: Namespace) -> int:
    layout, out = layout_from_environment(), Path(args.out).absolute()
    with displayed() as display:
        if args.name == "collect":
            cfg = parse_settings(_collect_config(), args.set)
            display.begin("collect")
            built = _collected(layout, args, _raw_path(args.inputs), cfg, out)
        else:
            runnable = RUNNABLE[args.name]
            stage, config = runnable.load()
            cfg = runnable.settings(parse_settings(config, args.set))
            display.begin(args.name)
            handles = _handles(layout, args.name, args.inputs, args)
            built = _store(layout, args).build(stage, cfg, *handles, directory=out)
        display.end(_summary(built))
    return 0


def run_train(args: Namespace) -> int:
    from pipeline.stages.pretrain import pretrain_recipe

    layout = layout_from_environment()
    stage, config = RUNNABLE["train"].load()
    recipe = pretrain_recipe(parse_settings(config, args.set))
    handles = _handles(layout, "train", [args.tokens, args.tokenizer], args)
    with displayed() as display:
        display.begin("train")
        built = _store(layout, args).build(stage, recipe, *handles, directory=Path(args.out).absolute())
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
    cfg = parse_settings(config, args.set)
    with displayed() as display:
        display.begin("evaluate")
        built = _store(layout, args).build(stage, cfg, model, data, directory=Path(args.out).absolute())
        display.end(_summary(built))
    print((built.handle.directory / "report.md").read_text())
    return 0


def _store(layout: Layout, args: Namespace) -> Store:
    return Store(root=layout.store, engine=LocalProcesses(n_workers=args.workers), show=current_show())


def _handles(layout: Layout, name: str, inputs: list[str], args: Namespace) -> list[Handle]:
    """The inputs of stage `name` in the order in which it takes them. Raw pages are collected first."""
    reads = RUNNABLE[name].reads
    handles: list[Handle] = []
    for text in inputs:
        path = Path(text).absolute()
        if "collect" in reads and path.exists() and not (path / RECORD).exists():
            handles.append(_collected(layout, args, path, _collect_config()(), None).handle)
        else:
            handles.append(read_handle(folder_or_current(layout, text)))
    for handle in handles:
        if handle.stage not in reads:
            raise ValueError(
                f"{handle.directory} is an output of `{handle.stage}`; `{name}` reads the output of"
                f" {' and '.join(f'`{read}`' for read in reads)}"
            )
    given = [handle.stage for handle in handles]
    for read in reads:
        if given.count(read) != 1 and not (read == "collect" and handles):
            raise ValueError(f"`{name}` needs one output of `{read}`, got {given.count(read)}")
    return sorted(handles, key=lambda handle: reads.index(handle.stage))


def _raw_path(inputs: list[str]) -> Path:
    if len(inputs) != 1:
        raise ValueError(f"`collect` reads one folder, file or archive of raw pages, got {len(inputs)}")
    return Path(inputs[0]).absolute()


def _collect_config() -> Any:
    from pipeline.stages.collect.collect import CollectConfig

    return CollectConfig


def _collected(layout: Layout, args: Namespace, path: Path, cfg: Any, directory: Path | None) -> Built:
    """The pages of a raw folder, file or archive, as a source of kind `files` that is named after it."""
    from pipeline.stages.collect.collect import collect
    from pipeline.stages.collect.sources import FilesSource

    if not path.exists():
        raise ValueError(f"{path} does not exist")
    name = re.sub(r"[^a-z0-9]+", "-", path.name.split(".")[0].lower()).strip("-") or "pages"
    source = FilesSource(name=name, path=str(path))
    return collect(_store(layout, args), source, layout.cache, cfg, directory=directory)


def _summary(built: Built) -> str:
    """For instance "1,204 kept of 1,300: short 96"."""
    handle, counts = built.handle, built.counts
    rows = f"{handle.rows:,} rows"
    if counts:
        dropped = ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts.dropped.items()))
        rows = f"{counts.kept:,} kept of {counts.rows_in:,}" + (f"; dropped: {dropped}" if dropped else "")
    return f"{rows} in {handle.directory}" + (" (unchanged)" if built.unchanged else "")
