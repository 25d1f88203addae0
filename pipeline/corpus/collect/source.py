"""The protocol of a source of pages, which `collect` and the sensors use for every kind.

A new kind is a subclass of `Source` in a file of its own and one line in sources.py. A kind must be reproducible: the
same `digest` must mean the same entries.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from pipeline.corpus.collect.members import Member
from pipeline.corpus.collect.source_rules import Languages, Pii, Rules, SourceRules
from pipeline.store.settings import Text, check_values
from pipeline.store.store import NOT_IDENTITY

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
Progress = Callable[[int, int | None], None]  # bytes so far, total bytes if known
MediaType = Literal[
    "text/html",
    "text/plain",
    "text/markdown",
    "text/x-rst",
    "text/x-wiki",
    "text/x-source",
    "text/csv",
    "text/tab-separated-values",
    "message/rfc822",
    "application/pdf",
    "application/epub+zip",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/x-ipynb+json",
]
OptionalText = Annotated[str | None, MinLen(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(ABC):
    """Settings that all kinds have; every field except `name` is a key of the table."""

    kind: ClassVar[str]
    is_watched: ClassVar[bool] = False  # whether its files may change, so that it needs a sensor

    name: str  # table name: becomes the asset pages/<name> and the names of its shards
    members: Annotated[
        tuple[str, ...], "Globs of the files to read; a glob that starts with ! excludes files. See docs/data.md."
    ]
    licence: Annotated[OptionalText, "Licence of the texts, which is stored with every document."] = None
    note: Annotated[OptionalText, "Description of the source, shown with its asset in the graph."] = field(
        default=None, metadata=NOT_IDENTITY
    )
    media_type: Annotated[MediaType | None, "Media type of files whose suffix does not show their format."] = None
    text_key: Annotated[Text, "Key or column of the text in jsonl, json, csv, tsv and parquet files."] = "text"
    title_key: Annotated[OptionalText, "Key or column of the title in jsonl, json, csv, tsv and parquet."] = None
    url_key: Annotated[OptionalText, "Key or column of the address in jsonl, json, csv, tsv and parquet."] = None
    # for `filter` only (see SourceRules), not for collecting. None = as in the settings of `filter`, () = none
    languages: Languages = field(default=None, metadata=NOT_IDENTITY)
    rules: Rules = field(default=None, metadata=NOT_IDENTITY)
    pii: Pii = field(default=None, metadata=NOT_IDENTITY)
    weight: Annotated[
        float,
        Ge(0),
        Le(1000),  # more is a mistake
        "How often training reads the documents of this source: 0 leaves them out, 0.5 takes half of them, 2 reads"
        " each twice.",
    ] = field(default=1.0, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError("the name of a source may contain only a to z, 0 to 9 and single hyphens between them")
        check_values(self)
        self.own_rules()  # checks them
        if all(glob.startswith("!") for glob in self.members):
            raise ValueError(
                'members matches no file: give a glob without a leading !, for instance members = ["docs/**/*.html"]'
            )
        if bad := [
            glob for glob in self.members if glob.startswith(("/", "!/")) or ".." in glob.split("/") or not glob
        ]:
            raise ValueError(f"members {bad} lead out of the source; globs are relative to the folder or archive")

    def own_rules(self) -> SourceRules:
        """The settings of `filter` that this source overrides."""
        return SourceRules(languages=self.languages, rules=self.rules, pii=self.pii)

    def below(self, folder: Path) -> "Source":
        """This source with its relative paths below `folder`, where sources.toml is."""
        return self

    @abstractmethod
    def snapshot(self) -> str:
        """The current state of the source, found without reading its content.

        Raises ValueError if the source does not exist.
        """

    @abstractmethod
    def digest(self, cache: Path) -> str:
        """Identity of the bytes that `entries` reads; `cache` may contain what makes it quick to compute."""

    @abstractmethod
    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        """Every member that matches the globs, with its address, in a fixed order."""

    def downloads(self) -> tuple[str, ...]:
        """The sha256 of the files that it keeps in the cache."""
        return ()

    def candidates(self, cache: Path) -> Iterator[tuple[str, Member]]:
        """The members among which the globs choose, with their addresses, as far as nothing must be downloaded."""
        return iter(())
