"""Downloads one pinned file over HTTP: verified, bounded, with retries, and cached completely or not at all.

In: an address, and a target path. Out: a file with the expected sha256, or an error with the reason. An interrupted
download is continued by the next call, of this process or of another one. Servers are not trusted: a file name cannot
leave its folder, a response is cut off at its limit, a redirect from a public server into a private network is not
followed, and a token is sent to no other server than the one it is meant for.
"""

import hashlib
import ipaddress
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pipeline.corpus.collect.network_errors import reason_of
from pipeline.corpus.collect.source import Progress
from pipeline.store.errors import SourceUnavailable
from pipeline.store.locks import only_one
from pipeline.store.redaction import redacted

if TYPE_CHECKING:
    from requests import Response, Session

log = logging.getLogger(__name__)
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two blocks
WAITS = (1.0, 4.0, 10.0)  # seconds before the second, third and fourth attempt
MAX_REDIRECTS = 10
BLOCK = 1 << 18
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~!%-]*")
# The plain bytes: a server that compresses them would change the sha256.
HEADERS = {"Accept-Encoding": "identity"}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
LOCK = ".lock"  # in the folder of a cached file, held by the process that downloads it
T = TypeVar("T")


def checked_sha256(sha256: str) -> str:
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 is {sha256!r}, expected 64 hexadecimal digits in lower case")
    return sha256


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_file(folder: Path, sha256: str) -> Path | None:
    """The file in `folder` with this sha256, or None; other files there are damaged and are deleted."""
    for path in sorted(folder.glob("[!.]*")):
        if sha256_of(path) == sha256:
            return path
        log.warning("%s does not have the sha256 of its folder and is downloaded again", path)
        path.unlink()
    return None


def fetched(folder: Path, name: str, sha256: str, write: Callable[[Path], None]) -> Path:
    """The file <folder>/<name> with this sha256, found there or written by `write`, which receives a temporary path.

    One process at a time writes; others wait and find the file. After a lost connection, a full disk or a kill, what
    was written stays, and `write` continues it in the next call. Raises ValueError if the content has another sha256,
    or if `name`, which a server may have sent, is not a plain file name; then nothing stays.
    """
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} is not a plain file name; nothing was saved")
    part = folder / f".{name}.part"
    with only_one(folder / LOCK, f"another run is downloading {name}; waiting for that run"):
        if (cached := cached_file(folder, sha256)) is not None:
            return cached
        is_continued = part.exists()
        try:
            if not is_continued or sha256_of(part) != sha256:
                write(part)
            if is_continued and sha256_of(part) != sha256:  # a power cut may have damaged what an earlier run wrote
                part.unlink()
                write(part)
            check_sha256(part, name, sha256)
        except ValueError:
            part.unlink(missing_ok=True)
            raise
        with part.open("rb") as written:
            os.fsync(written.fileno())
        return part.replace(folder / name)


def check_sha256(path: Path, name: str, sha256: str) -> None:
    """Raises ValueError if the content of `path`, which a user knows by `name`, has another sha256."""
    if (got := sha256_of(path)) != sha256:
        raise ValueError(
            f"{name} has sha256 {got}, but {sha256} is expected; it is not what was pinned, and it was not kept:"
            " find out why before you change sha256"
        )


def tried(attempt: Callable[[], T], what: str, *, advice: str, waits: tuple[float, ...] = WAITS) -> T:
    """The result of `attempt`, which is retried after each of `waits` seconds if the network or the server fails.

    Raises SourceUnavailable after the last attempt, or at once if a retry cannot succeed.
    """
    import requests

    for number, wait in enumerate((*waits, None)):
        try:
            return attempt()
        except requests.RequestException as error:
            if wait is None or not _may_pass(error):
                raise SourceUnavailable(f"{what} could not be fetched ({reason_of(error)}); {advice}") from error
            level = logging.INFO if number else logging.WARNING  # one line is enough
            log.log(level, "%s: %s; trying again for %g s", what, reason_of(error), sum(waits[number:]))
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def download(
    session: "Session",
    address: str,
    part: Path,
    progress: Progress,
    *,
    max_bytes: float = math.inf,
    own_headers: Mapping[str, str] = NO_HEADERS,
) -> None:
    """Download `address` to `part`, and resume an earlier attempt if the server supports it.

    `own_headers`, for instance a token, are sent to the server of `address` only, not to one that it redirects to.
    Raises ValueError for more than `max_bytes` and for a redirect that is not followed, and
    requests.RequestException for a truncated response.
    """
    import requests
    from urllib3.exceptions import HTTPError

    done = part.stat().st_size if part.exists() else 0
    headers = {**HEADERS, "Range": f"bytes={done}-"} if done else HEADERS
    with answered(session, address, headers, own_headers) as response:
        if response.status_code == 416:  # `part` is complete, or longer than the file on the server
            part.unlink()
            raise requests.ConnectionError("the server cannot resume the file", response=None)
        response.raise_for_status()
        done = done if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with part.open("ab" if done else "wb") as file:
            try:
                for block in response.raw.stream(BLOCK, decode_content=False):
                    done += len(block)
                    if max(done, total or 0) > max_bytes:
                        raise ValueError(f"{redacted(address)} is larger than max_download_mb={max_bytes / 1e6:g}")
                    file.write(block)
                    progress(done, total)
            except HTTPError as error:
                raise requests.ConnectionError(error) from error


@contextmanager
def answered(
    session: "Session", address: str, headers: Mapping[str, str], own_headers: Mapping[str, str]
) -> Iterator["Response"]:
    """The response after all redirects, each of which is checked before it is followed."""
    import requests

    server = urlsplit(address)[:2]  # scheme and host with port
    may_be_private = _is_private(address)  # the user chose it
    for _ in range(MAX_REDIRECTS + 1):
        own = own_headers if urlsplit(address)[:2] == server else {}
        auth = _as_it_is if own else None  # else a login in ~/.netrc would replace a token
        response = session.get(
            address, headers={**headers, **own}, auth=auth, timeout=TIMEOUT, stream=True, allow_redirects=False
        )
        with response:
            if not response.is_redirect:
                yield response
                return
            target = urljoin(address, response.headers["Location"])
            leads = f"{redacted(address)} leads to {redacted(target)}"
        if urlsplit(target).scheme not in ("http", "https"):
            raise ValueError(f"{leads}, which is not an address of http or https")
        if not may_be_private and _is_private(target):
            raise ValueError(
                f"{leads}, which is an address of a private network; if that is right, give that address itself"
            )
        address = target
    raise requests.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")


def _as_it_is(request: T) -> T:
    return request


def _is_private(address: str) -> bool:
    """Whether a server is on this machine or in a private network, by any of its addresses.

    A name that cannot be resolved here is known only to a proxy and counts as public. A response of a private server
    is never shown, and is kept only if it has the sha256 that the user gave.
    """
    host = urlsplit(address).hostname or ""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return not all(_is_global(ip) for ip in found)


def _is_global(ip: str) -> bool:
    address = ipaddress.ip_address(ip.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_global


def _may_pass(error: Any) -> bool:
    """Whether a retry can succeed; after a response such as 403 it cannot."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 425, 429) or response.status_code >= 500
