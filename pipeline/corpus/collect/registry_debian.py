"""Archives of Debian packages (and Ubuntu's): a .deb file, found through the index of its suite.

In: the archives that apt uses (/etc/apt/sources.list, sources.list.d/*.list and *.sources), or those that the
environment variable GRISTMILL_DEBIAN_MIRROR names, and a pinned source. Out: its file. apt itself is not needed, and
scripts of a package are never run, because nothing is installed.

The signature of an index is not checked: it only says where the file lies, whose sha256 is pinned. An archive keeps
the newest version of a suite only, so that a version that was pinned may go.
"""

import gzip
import logging
import lzma
import os
import platform
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from pipeline.corpus.collect.download import TIMEOUT, Fetch, Progress, checked_file, download
from pipeline.corpus.collect.sources import PackageSource
from pipeline.store.errors import SourceUnavailable

if TYPE_CHECKING:
    from requests import Session

log = logging.getLogger(__name__)
MIRROR_VARIABLE = "GRISTMILL_DEBIAN_MIRROR"
APT = Path("/etc/apt")
MAX_INDEX = 2_000_000_000  # bytes, unpacked; Debian 12 has 50 MB
MAX_LINE = 1 << 20  # bytes of a line of an index
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "i686": "i386"}  # others: equal names
OPENERS: dict[str, Callable[..., Any]] = {"xz": lzma.open, "gz": gzip.open}
FIELD = re.compile(rb"(Package|Version|Filename|SHA256): *([^\s]+)\s*")


@dataclass(frozen=True, slots=True)
class Suite:
    """One component of one suite of an archive."""

    archive: str  # address
    suite: str
    component: str

    def index(self, architecture: str, suffix: str) -> str:
        where = f"dists/{quote(self.suite)}/{quote(self.component)}/binary-{architecture}/Packages.{suffix}"
        return f"{self.archive.rstrip('/')}/{where}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A file that an archive has."""

    package: str
    version: str
    sha256: str
    address: str


def connect() -> Fetch:
    return partial(_fetch, suites())


def offers(packages: Collection[str], where: Iterable[Suite] | None = None) -> Iterator[Offer]:
    """All files of `packages` in the suites, one index after the other.

    Raises SourceUnavailable when no suite has an index.
    """
    from requests import Session

    where = suites() if where is None else tuple(where)
    names = {package.encode() for package in packages}
    n_indexes = 0
    with Session() as session:
        for suite in where:
            if (found := _offers_of(session, suite, names)) is not None:
                n_indexes += 1
                yield from found
    if not n_indexes:
        raise SourceUnavailable(
            f"no index of packages in {_listed(where)}; check /etc/apt/sources.list.d, or set {MIRROR_VARIABLE}"
        )


def _fetch(where: tuple[Suite, ...], source: PackageSource, folder: Path, progress: Progress) -> Path:
    from requests import Session

    others: list[Offer] = []
    for offer in offers([source.package], where):
        if (offer.version, offer.sha256) == (source.version, source.sha256):
            name = f"{source.package}_{source.version.rpartition(':')[2]}.deb"
            with Session() as session, checked_file(folder, name, source.sha256) as part:
                download(session, offer.address, part, progress)
            return folder / name
        others.append(offer)
    raise ValueError(_not_offered(source, others, where))


def _not_offered(source: PackageSource, others: list[Offer], where: tuple[Suite, ...]) -> str:
    if not others:
        return f"package `{source.package}` does not exist in {_listed(where)}"
    there = ", ".join(f"{offer.version} with sha256 {offer.sha256}" for offer in others[:5])
    if any(offer.version == source.version for offer in others):
        return f"no file of {source.package} {source.version} has the sha256 {source.sha256}; there is {there}"
    return (
        f"{source.package} {source.version} is not in {_listed(where)}, which keep the newest version only; there is"
        f" {there}: pin that one"
    )


def _listed(where: Iterable[Suite]) -> str:
    return ", ".join(dict.fromkeys(f"{suite.suite} ({suite.component})" for suite in where))


def _offers_of(session: "Session", suite: Suite, names: Collection[bytes]) -> list[Offer] | None:
    """The files of the packages `names` in a suite; None where the suite has no index."""
    import requests
    from urllib3.exceptions import HTTPError

    machine = platform.machine()
    for suffix, opener in OPENERS.items():
        address = suite.index(ARCHITECTURES.get(machine, machine), suffix)
        with session.get(address, timeout=TIMEOUT, stream=True) as response:
            if response.status_code == 404:
                continue
            response.raise_for_status()
            try:
                with opener(response.raw) as index:
                    return list(_offers(index, names, suite.archive))
            except HTTPError as error:
                raise requests.ConnectionError(str(error)) from error
            except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
                raise ValueError(
                    f"the index of {suite.suite} ({suite.component}) is broken ({error}); run again or choose another"
                    " mirror"
                ) from error
    log.warning("%s (%s) has no index of packages", suite.suite, suite.component)
    return None


def _offers(index: BinaryIO, names: Collection[bytes], archive: str) -> Iterator[Offer]:
    fields: dict[bytes, bytes] = {}
    n_bytes = 0
    while True:
        line = index.readline(MAX_LINE)
        n_bytes += len(line)
        if n_bytes > MAX_INDEX:
            raise OSError(f"larger than {MAX_INDEX / 1e6:.0f} MB")
        if match := FIELD.fullmatch(line):
            fields[match[1]] = match[2]
        elif not line.strip():  # a paragraph ends
            if fields.get(b"Package") in names and len(fields) == 4:
                package, version, path, sha256 = (
                    fields[key].decode("utf-8", "replace") for key in (b"Package", b"Version", b"Filename", b"SHA256")
                )
                yield Offer(package, version, sha256, f"{archive.rstrip('/')}/{quote(path, safe='/+~')}")
            fields = {}
        if not line:
            return


def suites(apt: Path = APT) -> tuple[Suite, ...]:
    """What GRISTMILL_DEBIAN_MIRROR names, else what apt uses. SourceUnavailable where there is neither."""
    if mirror := os.environ.get(MIRROR_VARIABLE):
        if not (found := [suite for line in mirror.split(";") for suite in _of_line(f"deb {line}")]):
            raise ValueError(
                f'{MIRROR_VARIABLE} is expected as "ADDRESS SUITE COMPONENT...", for instance with the suite bookworm'
                " and the component main, and an address that begins with http:// or https://; several are kept apart"
                " by semicolons"
            )
        return tuple(dict.fromkeys(found))
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    lines = [line for path in lists if path.is_file() for line in _text(path).splitlines()]
    stanzas = [_text(path) for path in sorted((apt / "sources.list.d").glob("*.sources"))]
    found = [suite for line in lines for suite in _of_line(line)]
    found += [suite for text in stanzas for stanza in re.split(r"\n\s*\n", text) for suite in _of_stanza(stanza)]
    if not found:
        raise SourceUnavailable(
            "no archive of Debian packages is known, because this machine has no apt sources; set the environment"
            f' variable {MIRROR_VARIABLE} to "ADDRESS SUITE COMPONENT..."'
        )
    return tuple(dict.fromkeys(found))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _of_line(line: str) -> list[Suite]:
    """`deb [options] ADDRESS SUITE COMPONENT...`, the format of sources.list."""
    words = re.sub(r"\[[^\]]*\]", " ", line.partition("#")[0]).split()
    if len(words) < 4 or words[0] != "deb":
        return []
    return _suites([words[1]], [words[2]], words[3:])


def _of_stanza(stanza: str) -> list[Suite]:
    """The format of *.sources: `Key: value`, and lines that go on begin with a space."""
    values: dict[str, list[str]] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith((" ", "\t")):
            key, _, line = line.partition(":")
        values.setdefault(key.strip().lower(), []).extend(line.split())
    if "deb" not in values.get("types", []) or values.get("enabled") == ["no"]:
        return []
    return _suites(values.get("uris", []), values.get("suites", []), values.get("components", []))


def _suites(addresses: Iterable[str], names: list[str], components: list[str]) -> list[Suite]:
    """Archives on other than web servers are left out, such as cdrom:."""
    web = [address for address in addresses if address.startswith(("http://", "https://"))]
    return [Suite(address, name, component) for address in web for name in names for component in components]
