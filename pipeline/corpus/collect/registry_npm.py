"""The npm registry: the .tgz of a version of a package.

In: npm's settings (`npm config get registry`; without npm ~/.npmrc and npm_config_registry) and a pinned source. Out:
its file. Scripts of a package are never run, because nothing is installed. Of a login only one that stands in the
address is used.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from pipeline.corpus.collect.download import (
    TIMEOUT,
    Fetch,
    Progress,
    bounded_content,
    checked_file,
    download,
    with_login_of,
)
from pipeline.corpus.collect.sources import PackageSource
from pipeline.store.errors import SourceUnavailable

if TYPE_CHECKING:
    from requests import Session

MAX_LISTING = 256_000_000  # bytes; packages with thousands of versions have about 20 MB
ACCEPT = "application/vnd.npm.install-v1+json, application/json"  # the first leaves the read-me texts out
KEYS = ("registry", "proxy", "https-proxy", "cafile")
UNSET = ("", "null", "undefined")


def connect() -> Fetch:
    return partial(_fetch, _npm_settings())


def _fetch(npm: Mapping[str, str], source: PackageSource, folder: Path, progress: Progress) -> Path:
    from requests import Session

    registry = _registry_of(source.package, npm)
    with Session() as session:
        session.verify = npm.get("cafile", True)
        proxies = {"http": npm.get("proxy"), "https": npm.get("https-proxy") or npm.get("proxy")}
        session.proxies = {scheme: proxy for scheme, proxy in proxies.items() if proxy}
        address = _tarball(source, _listing(session, source, registry))
        name = f"{source.package.removeprefix('@').replace('/', '-')}-{source.version}.tgz"
        with checked_file(folder, name, source.sha256) as part:
            download(session, with_login_of(urljoin(registry, address), registry), part, progress)
    return folder / name


def _registry_of(package: str, npm: Mapping[str, str]) -> str:
    scope = package.partition("/")[0] if package.startswith("@") else ""
    registry = npm.get(f"{scope}:registry") or npm.get("registry")
    if registry is None:
        raise SourceUnavailable(
            f"{package}: no address of an npm registry is known; install npm, or set the environment variable"
            " npm_config_registry, or write a line `registry=...` into ~/.npmrc"
        )
    if not registry.startswith(("http://", "https://")):
        raise ValueError("the npm setting `registry` is no address that begins with http:// or https://")
    return registry.rstrip("/") + "/"


def _listing(session: "Session", source: PackageSource, registry: str) -> dict[str, Any]:
    """What the registry says of a package: its versions, each with its file."""
    address = registry + quote(source.package, safe="@")
    with session.get(address, headers={"Accept": ACCEPT}, timeout=TIMEOUT, stream=True) as response:
        if response.status_code == 404:
            raise ValueError(f"package `{source.package}` does not exist in the npm registry")
        response.raise_for_status()
        content = bounded_content(response, MAX_LISTING, source.package)
    try:
        listing = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the npm registry answers for `{source.package}` with something that is no JSON") from error
    return listing if isinstance(listing, dict) else {}


def _tarball(source: PackageSource, listing: Mapping[str, Any]) -> str:
    versions = listing.get("versions")
    if not isinstance(versions, dict) or not versions:
        raise ValueError(f"the npm registry lists no version of `{source.package}`")
    if source.version not in versions:
        newest = ", ".join(sorted(map(str, versions), key=_version_order)[-10:])
        raise ValueError(f"{source.package} has no version {source.version}; its newest are {newest}")
    entry = versions[source.version]
    dist = entry.get("dist") if isinstance(entry, dict) else None
    address = dist.get("tarball") if isinstance(dist, dict) else None
    if not isinstance(address, str) or not address:
        raise ValueError(f"the npm registry names no file of {source.package} {source.version}")
    return address


def _version_order(version: str) -> tuple[list[int], bool, str]:
    """1.2.0 < 1.10.0-beta < 1.10.0."""
    numbers, hyphen, _ = version.partition("-")
    return [int(part) for part in numbers.split(".") if part.isdecimal()], not hyphen, version


def _npm_settings() -> dict[str, str]:
    """Settings of npm by name: as npm itself tells them, else from its file and the environment."""
    settings = _settings_file(Path.home() / ".npmrc")
    if npm := shutil.which("npm"):
        answer = subprocess.run(
            [npm, "config", "get", *KEYS], capture_output=True, text=True, check=False, timeout=60
        )
        settings.update(_assignments(answer.stdout))
    for key in KEYS:  # the environment wins in npm, too
        name = f"npm_config_{key}".replace("-", "_")
        settings[key] = os.environ.get(name) or os.environ.get(name.upper()) or settings.get(key, "")
    return {key: value for key, value in settings.items() if value not in UNSET}


def _settings_file(path: Path) -> dict[str, str]:
    try:
        settings = _assignments(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):  # npm that is installed tells them all the same
        return {}
    return {key: value for key, value in settings.items() if key in KEYS or key.endswith(":registry")}


def _assignments(text: str) -> dict[str, str]:
    lines = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {key.strip(): value.strip().strip("\"'") for key, sep, value in lines if sep}
