"""Assets `<task>_pages`, `<task>_documents` and `<task>_passages`: the documents that a task answers from.

A task has pages of its own only if its table has a source for it alone, and documents of its own unless it answers
from the corpus. No filter drops or changes them: a short page of a manual must be found, and a telephone number may
be what is asked for.
"""

from dataclasses import asdict

import dagster as dg

from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.deny_list import deny_list
from pipeline.corpus.passages.stage import PASSAGES, PassagesConfig
from pipeline.defs.mill_asset import mill_asset
from pipeline.defs.pages import collected
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import ConfigFile
from pipeline.store.records import Checkpoint, Columns, Shards
from pipeline.tasks.collection import Collection
from pipeline.tasks.tasks_toml import Task
from pipeline.training.embed import EMBED, EmbedConfig

GROUP = "fine_tuning"


def collection_assets(task: Task, file: ConfigFile) -> list[dg.AssetsDefinition]:
    """The assets of the documents of a task; none if it reads no documents."""
    if task.collection is None:
        return []
    own = [passages(task, task.collection, file)]
    if not task.collection.is_corpus:
        own.insert(0, documents(task.collection, file))
    if (source := task.collection.inline) is not None:
        title = f"{source.note or task.name}: pages as collected, for this task alone."
        own.insert(0, collected(source, file, task.collection.pages["pages"], GROUP, title))
    return own


def documents(collection: Collection, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=collection.documents,
        group=GROUP,
        kinds={"parquet", "python"},
        config=CleanConfig,
        code=[CLEAN],
        ins=collection.pages,
    )
    def documents_of_task(
        context: dg.AssetExecutionContext, mill: dg.ResourceParam[Mill], cfg: CleanConfig, **pages: Shards
    ) -> dg.MaterializeResult[Shards]:
        """Texts extracted from the pages that the task answers from, repaired and not filtered.

        What cannot be read is kept with them, each page with its reason.
        """
        by_name = [pages[name] for name in sorted(pages)]  # so that their order in the table has no effect
        return mill.materialised(mill.build(context, CLEAN, cfg, *by_name))

    return documents_of_task


def passages(task: Task, collection: Collection, file: ConfigFile) -> dg.AssetsDefinition:
    @mill_asset(
        file,
        key=collection.assets[-1],
        group=GROUP,
        kinds={"parquet", "pytorch"},
        config=PassagesConfig,
        given=asdict(task.passages),
        code=[PASSAGES, EMBED],
        ins={"documents": collection.documents, "embedder": collection.embedder},
    )
    def passages_of_task(
        context: dg.AssetExecutionContext,
        mill: dg.ResourceParam[Mill],
        cfg: PassagesConfig,
        documents: Shards,
        embedder: Checkpoint,
    ) -> dg.MaterializeResult[Columns]:
        """Passages of the documents with their vectors. A changed document costs its own passages only."""
        denied = deny_list(mill.store(context), mill.layout.denied)
        cut = mill.build(context, PASSAGES, cfg, documents, embedder, *denied)
        return mill.materialised(cut, mill.build(context, EMBED, EmbedConfig(), cut.handle, embedder))

    return passages_of_task
