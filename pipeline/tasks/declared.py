"""What the files of a data folder declare, without loading the graph, and what of it is not there.

In: a layout. Out: the names of the assets of the graph that sources.toml, models.toml and tasks.toml describe. What
else has an output in the data folder was taken out of these files: it is no result any more, and `gristmill gc`
removes it. And the paths and columns that the files name and that do not exist; only the beginning of a file is read
for that, and nothing is downloaded.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.sources import read_sources
from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.labelled_rows import check_beginning
from pipeline.corpus.tokens.vocabularies import PACKAGES
from pipeline.store.chain import SOURCE, assets_of_table, fixed_assets
from pipeline.store.layout import Layout
from pipeline.tasks.tasks_toml import Task, read_tasks
from pipeline.training.models_toml import ContinuedModel, Model, OpenModel, read_models, vocabularies
from pipeline.training.open_config import FolderWeights

HEADER_BYTES = 64_000  # of a labelled file, whose columns are looked at
MOST_FAULTS = 3  # that a message tells


def declared_assets(layout: Layout) -> set[str]:
    """Raises ValueError when one of the files is invalid."""
    pages = [assets_of_table(SOURCE, source) for source in read_sources(layout.sources_toml)]
    models = read_models(layout.models_toml).values()
    of_models = [*(model.assets for model in models), list(vocabularies(models))]
    of_tasks = [task.assets for task in read_tasks(layout.tasks_toml).values()]
    return fixed_assets().union(*pages, *of_models, *of_tasks)


def idle_assets_of(models: Collection[Model], tasks: Collection[Task]) -> list[str]:
    """Assets that are built only when they are named: those of the tasks of the showcase, and open models that no
    other task and no other model needs."""
    shown = [asset for task in tasks if task.showcase for asset in task.assets]
    needed = {model for task in tasks if not task.showcase for model in task.models}
    needed |= {one.base_asset for one in models if isinstance(one, ContinuedModel)}
    return [*shown, *(one.asset for one in models if isinstance(one, OpenModel) and one.asset not in needed)]


def idle_assets(layout: Layout) -> list[str]:
    """Those of the graph that `gristmill run` and the job demo leave out."""
    return idle_assets_of(read_models(layout.models_toml).values(), read_tasks(layout.tasks_toml).values())


def showcase_assets(tasks: Iterable[Task]) -> list[str]:
    """Every task on an open model, with what it reads: they need nothing of the corpus."""
    shown = [task for task in tasks if not task.reads_corpus]
    return sorted({asset for task in shown for asset in (*task.needs, *task.assets)})


def inline_sources(tasks: Iterable[Task]) -> list[Source]:
    """The sources that tasks have for themselves."""
    return [task.collection.inline for task in tasks if task.collection and task.collection.inline]


def watched_paths(layout: Layout) -> list[str]:
    """The paths of all sources that are files of this machine."""
    own = inline_sources(read_tasks(layout.tasks_toml).values())
    sources = [*read_sources(layout.sources_toml).values(), *own]
    return [source.path for source in sources if isinstance(source, FilesSource)]


def declared_downloads(layout: Layout) -> set[str]:
    """The sha256 of the downloads that the files name, and of published vocabularies; `gristmill gc` keeps them."""
    models, tasks = read_models(layout.models_toml).values(), read_tasks(layout.tasks_toml).values()
    named = [
        *read_sources(layout.sources_toml).values(),
        *PACKAGES.values(),
        *(data for task in tasks for data in task.all_data.values() if isinstance(data, Source)),
        *inline_sources(tasks),
        *(model.source for model in models if isinstance(model, OpenModel)),
    ]
    return {sha256 for one in named for sha256 in one.downloads()}


def refuse_missing(layout: Layout) -> None:
    """Raises ValueError when a path or column that the files name does not exist: with file, table and key."""
    faults = missing_inputs(layout)
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise ValueError("; ".join(faults[:MOST_FAULTS]) + more)


def missing_inputs(layout: Layout) -> list[str]:
    """One line for each path or column that does not exist."""
    faults = [
        f"{layout.sources_toml}: [{name}]: path {source.path} does not exist; it is relative to the folder of"
        " sources.toml"
        for name, source in read_sources(layout.sources_toml).items()
        if isinstance(source, FilesSource) and not Path(source.path).exists()
    ]
    faults += [
        f"{layout.models_toml}: [{name}]: folder {folder} is not a folder; it is relative to that of models.toml"
        for name, model in read_models(layout.models_toml).items()
        if (folder := _folder_of(model)) and not Path(folder).is_dir()
    ]
    for name, task in read_tasks(layout.tasks_toml).items():
        if fault := _fault_of_task(task):
            faults.append(f"{layout.tasks_toml}: [{name}]: {fault}")
    return faults


def _folder_of(model: Model) -> str | None:
    """The folder that an open model is read from, if it is one of this machine."""
    if isinstance(model, OpenModel) and isinstance(model.source, FolderWeights):
        return model.source.folder
    return None


def _fault_of_task(task: Task) -> str | None:
    for source in inline_sources([task]):
        if isinstance(source, FilesSource) and not Path(source.path).exists():
            return f"documents: path {source.path} does not exist; it is relative to the folder of tasks.toml"
    for key, data in task.all_data.items():
        if not isinstance(data, LabelledFile):
            continue
        if not data.path.is_file():
            return f"{key}: path {data.path} is not a file; it is relative to the folder of tasks.toml"
        try:
            check_beginning(task.kind, data.path, task.examples, HEADER_BYTES)
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())
    return None
