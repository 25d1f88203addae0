"""The assets that the files of a data folder declare, without loading the graph.

In: a layout. Out: the names of the assets of the graph that sources.toml and tasks.toml describe. What else has an
output in the data folder was taken out of these files: it is no result any more, and `gristmill gc` removes it.
"""

from pipeline.corpus.collect.sources import read_sources
from pipeline.store.chain import CHAIN
from pipeline.store.layout import Layout
from pipeline.tasks.tasks_toml import read_tasks

OF_SOURCE = "pages"
OF_TASK = ("examples", "model", "evaluation")


def fixed_assets() -> set[str]:
    """Assets that every graph has."""
    return {link.asset for link in CHAIN} - {OF_SOURCE, *OF_TASK}


def declared_assets(layout: Layout) -> set[str]:
    """Raises ValueError when one of the files is invalid."""
    pages = {f"{OF_SOURCE}/{source}" for source in read_sources(layout.sources_toml)}
    of_tasks = {f"{task}_{part}" for task in read_tasks(layout.tasks_toml) for part in OF_TASK}
    return fixed_assets() | pages | of_tasks
