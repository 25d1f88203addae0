"""One pinned file over HTTP: checked, bounded, tried again, and in the cache whole or not at all.

In: an address, and where the bytes go. Out: a file whose sha256 is the expected one, or an error that says why not.
What a server sends is not trusted: a file name stays within its folder, an answer ends at its limit, and a redirect
does not lead from a public server into a private network.
"""

import hashlib
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pipeline.corpus.collect.source import Progress
from pipeline.store.errors import SourceUnavailable
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from requests import Response, Session

log = logging.getLogger(__name__)
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two blocks
WAITS = (1.0, 4.0, 10.0)  # seconds before the second, third and fourth attempt
MAX_REDIRECTS = 10
BLOCK = 1 << 18
SHA256 = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~!%-]*")
# The bytes as they are: a server that packs them would change the sha256.
HEADERS = {"Accept-Encoding": "identity"}
T = TypeVar("T")


def checked_sha256(sha256: str) -> str:
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 is {sha256!r}, expected 64 hexadecimal digits in lower case")
    return sha256


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_file(folder: Path, sha256: str) -> Path | None:
    """The file in `folder` that has this sha256; others, which are damaged, are deleted."""
    for path in sorted(folder.glob("[!.]*")):
        if sha256_of(path) == sha256:
            return path
        log.warning("%s does not have the sha256 of its folder and is fetched again", path)
        path.unlink()
    return None


@contextmanager
def checked_file(folder: Path, name: str, sha256: str) -> Iterator[Path]:
    """A temporary path that becomes <folder>/<name> when it holds the bytes with this sha256.

    Raises ValueError when it does not, and when `name`, which a server may have sent, is no plain name.
    """
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} is not a plain file name; nothing was saved")
    with replacing(folder / name) as part:
        yield part
        if (got := sha256_of(part)) != sha256:
            raise ValueError(
                f"{name} has sha256 {got}, but {sha256} is expected; it is not what was pinned:"
                " find out why before you change sha256"
            )


def tried(attempt: Callable[[], T], what: str, *, advice: str, waits: tuple[float, ...] = WAITS) -> T:
    """What `attempt` returns; a fault of the network or the server is tried again after each of `waits` seconds.

    Raises SourceUnavailable after the last attempt, and at once where a further one has no chance.
    """
    import requests

    for wait in (*waits, None):
        try:
            return attempt()
        except requests.RequestException as error:
            if wait is None or not _may_pass(error):
                raise SourceUnavailable(f"{what} could not be fetched ({_reason_of(error)}); {advice}") from error
            log.warning("%s: %s; next attempt in %g s", what, _reason_of(error), wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def download(session: "Session", address: str, part: Path, max_bytes: int, progress: Progress) -> None:
    """The bytes behind `address` in `part`; what an earlier attempt left there is continued where the server can.

    Raises ValueError for more than `max_bytes` and for a redirect that is not followed. An answer that was cut off
    is a requests.RequestException.
    """
    import requests
    from urllib3.exceptions import HTTPError

    done = part.stat().st_size if part.exists() else 0
    headers = {**HEADERS, "Range": f"bytes={done}-"} if done else HEADERS
    with _response(session, address, headers) as response:
        if response.status_code == 416:  # all of it, or more than the server has now
            part.unlink()
            raise requests.ConnectionError("the server cannot continue the file", response=None)
        response.raise_for_status()
        done = done if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with part.open("ab" if done else "wb") as file:
            try:
                for block in response.raw.stream(BLOCK, decode_content=False):
                    done += len(block)
                    if max(done, total or 0) > max_bytes:
                        raise ValueError(f"{address} is larger than max_download_mb={max_bytes / 1e6:g} allows")
                    file.write(block)
                    progress(done, total)
            except HTTPError as error:
                raise requests.ConnectionError(error) from error


@contextmanager
def _response(session: "Session", address: str, headers: dict[str, str]) -> Iterator["Response"]:
    """The answer at the end of all redirects, each of which is checked before it is followed."""
    import requests

    may_be_private = _is_private(address)  # the user's own choice
    for _ in range(MAX_REDIRECTS + 1):
        response = session.get(address, headers=headers, timeout=TIMEOUT, stream=True, allow_redirects=False)
        with response:
            if not response.is_redirect:
                yield response
                return
            target = urljoin(address, response.headers["Location"])
            leads = f"{address} leads to {_without_login(target)}"
        if urlsplit(target).scheme not in ("http", "https"):
            raise ValueError(f"{leads}, which is not an address of http or https")
        if not may_be_private and _is_private(target):
            raise ValueError(
                f"{leads}, which is an address of a private network; if that is right, give that address itself"
            )
        address = target
    raise requests.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")


def _is_private(address: str) -> bool:
    """Whether a server is on this machine or in a private network, by any of its addresses.

    A name that cannot be resolved here is one that only a proxy knows, and counts as public. What a private server
    answers is never shown and never kept unless it has the sha256 that the user gave.
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
    """Whether a further attempt has a chance: not after an answer such as 403."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 425, 429) or response.status_code >= 500


def _reason_of(error: Exception) -> str:
    """The last cause in one line; the outer ones repeat addresses and may hold a password."""
    text = str(error.args[0] if error.args else error)
    reason = text.rpartition("Caused by ")[2].rstrip(")")
    return f"{type(error).__name__}: {_without_login(reason)}"[:300]


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
