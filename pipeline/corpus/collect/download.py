"""One file over HTTP, checked: what all registries of packages share.

In: an address, and where the bytes go. Out: a file whose sha256 is the expected one, or an error that says why not.
Names and sizes that a server sends are not trusted: a file name stays within its folder, an answer ends at its limit.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from pipeline.corpus.collect.sources import PackageSource
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from requests import Response, Session

TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between two blocks
BLOCK = 1 << 18
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~!%-]*")
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known
Fetch = Callable[[PackageSource, Path, Progress], Path]  # source, folder -> the file in it


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def checked_file(folder: Path, name: str, sha256: str) -> Iterator[Path]:
    """A temporary path that becomes <folder>/<name> when it holds the bytes with this sha256.

    Raises ValueError when it does not, and when `name`, which a server may have sent, is no plain name.
    """
    if not FILE_NAME.fullmatch(name):
        raise ValueError(f"the registry names a file {name[:200]!r}, which is no name for a file; nothing was kept")
    with replacing(folder / name) as part:
        yield part
        if (got := sha256_of(part)) != sha256:
            raise ValueError(
                f"{name} has sha256 {got}, but {sha256} is expected; it is not what was pinned:"
                " find out why before you change sha256"
            )


def download(session: "Session", address: str, part: Path, progress: Progress) -> None:
    """The bytes behind `address` in `part`. An answer that was cut off is a requests.RequestException."""
    with session.get(address, timeout=TIMEOUT, stream=True) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total, done = int(length) if length.isdecimal() else None, 0
        with part.open("wb") as file:
            for block in response.iter_content(BLOCK):
                file.write(block)
                done += len(block)
                progress(done, total)


def bounded_content(response: "Response", max_bytes: int, what: str) -> bytes:
    """All of an answer. ValueError when it is larger than any honest one."""
    blocks, done = [], 0
    for block in response.iter_content(BLOCK):
        done += len(block)
        if done > max_bytes:
            raise ValueError(f"the answer for {what} is larger than {max_bytes / 1e6:.0f} MB; is this a registry?")
        blocks.append(block)
    return b"".join(blocks)


def with_login_of(address: str, registry: str) -> str:
    """`address` with the user and password of `registry`, where both are of one server and it has none itself."""
    target, known = urlsplit(address), urlsplit(registry)
    same_server = (target.scheme, target.netloc) == (known.scheme, known.netloc.rpartition("@")[2])
    return urlunsplit(target._replace(netloc=known.netloc)) if same_server else address


def may_pass(error: Any) -> bool:
    """Whether a further attempt has a chance: not after an answer such as 403."""
    response = getattr(error, "response", None)
    return response is None or response.status_code in (408, 425, 429) or response.status_code >= 500


def reason_of(error: Exception) -> str:
    """The last cause in one line; the outer ones repeat addresses and may hold a password."""
    text = str(error.args[0] if error.args else error)
    reason = text.rpartition("Caused by ")[2].rstrip(")")
    return f"{type(error).__name__}: {without_password(reason)}"[:300]


def without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
