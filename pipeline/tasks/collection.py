"""The documents that a task answers from, as its table in tasks.toml names them.

In: the keys `documents` and `embedder` of a table. Out: a `Collection`: the corpus, sources of sources.toml, or a
source of this task alone, which is no part of the training corpus. A mistake raises a ValueError that names file,
table, key and what is allowed.
"""

from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.url import UrlSource
from pipeline.store.chain import OF_PASSAGES, OF_SOURCE, SOURCE, TASK
from pipeline.store.settings import did_you_mean, read

CORPUS = "corpus"  # value of the key `documents`, and asset
DOCUMENTS, EMBEDDER = "documents", "embedder"  # keys
OF_PAGES, OF_TEXTS = f"{TASK}_pages", f"{TASK}_documents"  # assets
INLINE: dict[str, type[Source]] = {"path": FilesSource, "package": PackageSource, "url": UrlSource, "urls": UrlSource}
LISTS = {"url": "urls"}  # key of a table -> setting of the source
FILTERED = ("languages", "rules", "pii", "weight")  # settings of the training corpus
FORMS = (
    'expected "corpus", a list of sources of sources.toml, or a source of this task alone, such as'
    ' { path = "manuals" }'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """The documents of the task `task`, and the encoder that makes vectors of them."""

    task: str
    embedder: str  # asset
    sources: tuple[str, ...] = ()  # tables of sources.toml
    inline: Source | None = None  # neither this nor sources: the corpus

    @property
    def is_corpus(self) -> bool:
        return not self.sources and self.inline is None

    @property
    def pages(self) -> dict[str, str]:
        """Parameter of an asset -> asset of the pages that the documents are made from; none for the corpus."""
        if self.inline is not None:
            return {"pages": OF_PAGES.replace(TASK, self.task)}
        return {f"pages_{name.replace('-', '_')}": OF_SOURCE.replace(SOURCE, name) for name in self.sources}

    @property
    def documents(self) -> str:
        """The asset whose rows are cut into passages."""
        return CORPUS if self.is_corpus else OF_TEXTS.replace(TASK, self.task)

    @property
    def assets(self) -> list[str]:
        """The assets that only this task has, up to the passages."""
        own = [] if self.is_corpus else [self.documents]
        pages = list(self.pages.values()) if self.inline is not None else []
        return [*pages, *own, OF_PASSAGES.replace(TASK, self.task)]

    @property
    def needs(self) -> list[str]:
        """The assets of others that it reads."""
        return [self.embedder, *([CORPUS] if self.is_corpus else []), *(self.pages.values() if self.sources else ())]


def read_collection(task: str, table: Mapping[str, Any], embedder: str, folder: Path, where: str) -> Collection:
    """The collection of a table at `where`, in a file of `folder`."""
    if DOCUMENTS not in table:
        raise ValueError(f"{where}: {DOCUMENTS} is missing, {FORMS}")
    given = table[DOCUMENTS]
    if given == CORPUS:
        return Collection(task=task, embedder=embedder)
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        return Collection(
            task=task, embedder=embedder, inline=_inline(task, given, folder, f"{where}, key {DOCUMENTS}")
        )
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ValueError(f"{where}: {DOCUMENTS} is {given!r}, {FORMS}")
    if len(set(given)) < len(given):
        raise ValueError(f"{where}: {DOCUMENTS} names a source twice: {', '.join(given)}")
    return Collection(task=task, embedder=embedder, sources=tuple(given))


def _inline(task: str, given: Mapping[str, Any], folder: Path, where: str) -> Source:
    found = [key for key in INLINE if key in given]
    if len(found) != 1:
        raise ValueError(f"{where}: got {dict(given)!r}, expected one of the keys {', '.join(INLINE)}")
    if wrong := [key for key in FILTERED if key in given]:
        raise ValueError(
            f"{where}: {wrong[0]} is a setting of the training corpus, and these documents are no part of it: no"
            " filter drops or changes them; remove the key"
        )
    values = {LISTS.get(key, key): value for key, value in given.items()}
    lists = ("urls", "members")
    values = {key: [value] if key in lists and isinstance(value, str) else value for key, value in values.items()}
    return read(INLINE[found[0]], values, where, name=source_name(task)).below(folder)


def source_name(task: str) -> str:
    """The name of the source that a task has for itself: that of the task, in the form of names of sources."""
    return "-".join(part for part in task.split("_") if part)


def refuse_unknown_documents(collections: Iterable[Collection], sources: Names[str], path: Path) -> None:
    """Raises ValueError when a task answers from a source that sources.toml does not declare."""
    for one in collections:
        if unknown := [name for name in one.sources if name not in sources]:
            hint = did_you_mean(unknown[0], [*sources, CORPUS])
            raise ValueError(
                f"{path}: [{one.task}]: {DOCUMENTS} names {unknown[0]!r}, which is no table of sources.toml{hint};"
                f" {FORMS}"
            )
