"""The protocol of a source of pages: what `collect` and the sensors ask of every kind.

A new kind is a subclass of `Source` in a file of its own and one line in sources.py. A kind has to be reproducible:
the same `digest` has to mean the same entries.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pipeline.corpus.collect.members import Member
from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.store.store import NOT_IDENTITY

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known
MOST_WEIGHT = 1000  # beyond that it is a mistake
MEDIA_TYPES = (
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
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source(ABC):
    """What all kinds have; every field but `name` is a key of the table."""

    kind: ClassVar[str]
    is_watched: ClassVar[bool] = False  # whether its files may change, so that a sensor looks at it

    name: str  # table name: becomes the asset pages/<name> and the names of its shards
    members: tuple[str, ...]  # globs relative to the folder or archive
    licence: str | None = None  # kept in every row; None = not declared
    note: str | None = field(default=None, metadata=NOT_IDENTITY)  # what it is, for people
    media_type: str | None = None  # one of MEDIA_TYPES, where the suffix of the files does not tell the truth
    text_key: str = "text"  # jsonl, json, csv, tsv, parquet: key or column of the text
    title_key: str | None = None  # likewise of the title
    url_key: str | None = None  # likewise of the address
    # for `filter`, see SourceRules: no part of what is collected. None = as the config of the filter says, () = none
    languages: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    rules: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    pii: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    # for `tokenize`: how often the documents stand in the train stream; 0 = not at all
    weight: float = field(default=1.0, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError("the name of a source holds a to z, 0 to 9 and single hyphens between them only")
        if self.media_type is not None and self.media_type not in MEDIA_TYPES:
            raise ValueError(f"media_type is {self.media_type!r}, expected one of {', '.join(MEDIA_TYPES)}")
        self.own_rules()  # which checks them
        if not 0 <= self.weight <= MOST_WEIGHT:
            raise ValueError(
                f"weight is {self.weight}, expected a number from 0 (leave out of train) to {MOST_WEIGHT}"
            )
        if all(glob.startswith("!") for glob in self.members):
            raise ValueError(
                'members takes no file: give at least one glob, for instance members = ["docs/**/*.html"]'
            )
        if bad := [
            glob for glob in self.members if glob.startswith(("/", "!/")) or ".." in glob.split("/") or not glob
        ]:
            raise ValueError(f"members {bad} lead outside; globs are relative to the folder or archive")

    def own_rules(self) -> SourceRules:
        """What this source says for itself."""
        return SourceRules(languages=self.languages, rules=self.rules, pii=self.pii)

    def below(self, folder: Path) -> "Source":
        """This source with its relative paths below `folder`, where sources.toml is."""
        return self

    @abstractmethod
    def snapshot(self) -> str:
        """The state of the source at this moment, found without reading what it holds.

        Raises ValueError when the source does not exist.
        """

    @abstractmethod
    def digest(self, cache: Path) -> str:
        """Identity of the bytes that `entries` reads; `cache` may keep what is needed to find it quickly."""

    @abstractmethod
    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        """Every member that the globs take, with its address, in a fixed order."""
