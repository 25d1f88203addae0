"""Source kind `url`: files at addresses, each pinned by its sha256: archives, dumps, tables or single documents.

An address is http, https or file, followed by its sha256 in the notation of pip:
`https://example.org/texts.zip#sha256=<64 hexadecimal digits>`. A downloaded file is cached as <cache>/<sha256>/<file
name>; nothing of it is run. The suffix of the name determines the format, as it does in a folder.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.corpus.collect.download import (
    FILE_NAME,
    WAITS,
    cached_file,
    checked_sha256,
    download,
    fetched,
    tried,
)
from pipeline.corpus.collect.members import Member, address_of, is_archive, members_of, selected
from pipeline.corpus.collect.source import Progress, Source
from pipeline.store.redaction import redacted
from pipeline.store.settings import Positive
from pipeline.store.shards import text_digest
from pipeline.store.store import NOT_IDENTITY

EXAMPLE = "https://example.org/texts.zip#sha256=<64 hexadecimal digits>"
MB = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlSource(Source):
    kind: ClassVar[str] = "url"

    urls: Annotated[tuple[str, ...], "Addresses to download, each followed by #sha256= and the digest of its file."]
    members: Annotated[
        tuple[str, ...],
        "Globs of the files to read, relative to each archive; a glob that starts with ! excludes files.",
    ] = ("**/*",)
    max_download_mb: Annotated[Positive, "Refuse to download files larger than this many megabytes."] = field(
        default=20_000.0, metadata=NOT_IDENTITY
    )

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        if not self.urls:
            raise ValueError(f"urls is empty, expected at least one address with its sha256, such as {EXAMPLE}")
        for url in self.urls:
            pinned(url)

    def snapshot(self) -> str:
        return text_digest(*(pinned(url).sha256 for url in self.urls))

    def digest(self, cache: Path) -> str:
        return self.snapshot()

    def downloads(self) -> tuple[str, ...]:
        return tuple(pinned(url).sha256 for url in self.urls)

    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        """The members of one file after the other; every glob must match a member of at least one file."""
        files = [pinned(url) for url in self.urls]
        file = files[0]

        def members() -> Iterator[Member]:
            nonlocal file
            for file in files:
                yield from members_of(fetch_pinned(file, cache, self.max_download_mb, progress))

        where = f"{', '.join(file.name for file in files)} (source `{self.name}`)"
        for member in selected(members(), self.members, where):
            yield file.address_of(member), member

    def candidates(self, cache: Path) -> Iterator[tuple[str, Member]]:
        for file in map(pinned, self.urls):
            if (path := cached_file(cache / file.sha256, file.sha256)) is not None:
                yield from ((file.address_of(member), member) for member in members_of(path))


@dataclass(frozen=True, slots=True)
class PinnedFile:
    address: str
    sha256: str
    name: str

    def address_of(self, member: Member) -> str:
        return f"{self.address}!/{address_of(member.name)}" if is_archive(Path(self.name)) else self.address


def pinned(url: str) -> PinnedFile:
    """The parts of an address with its sha256. A ValueError describes the part that is wrong."""
    address, mark, sha256 = url.partition("#sha256=")
    if not mark:
        raise ValueError(
            f"{redacted(url)!r} has no sha256, expected an address such as {EXAMPLE}; `sha256sum FILE` prints it"
        )
    try:
        checked_sha256(sha256)
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError as error:
        raise ValueError(f"{redacted(address)!r}: {error}") from error
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError(f"{redacted(address)!r} does not begin with http://, https:// or file://")
    if "@" in parts.netloc:
        raise ValueError(
            f"the address of {host} contains a user name or a password, which would be recorded with the pages;"
            " put the login into ~/.netrc"
        )
    if redacted(address) != address:
        raise ValueError(
            f"{redacted(address)!r} contains a secret, which would be recorded with the pages; download the file and"
            " declare it as a source of the kind `files`"
        )
    if parts.scheme == "file" and host not in (None, "localhost"):
        raise ValueError(
            f"{redacted(address)!r} is on another machine; expected an address such as file:///home/me/texts.zip"
        )
    if parts.scheme != "file" and not host:
        raise ValueError(f"{redacted(address)!r} has no host, expected an address such as {EXAMPLE}")
    name = parts.path.rpartition("/")[2]
    if not FILE_NAME.fullmatch(name):
        raise ValueError(
            f"{redacted(address)!r} does not end in the name of a file, whose suffix determines the format"
        )
    return PinnedFile(address, sha256, name)


def fetch_pinned(
    file: PinnedFile,
    cache: Path,
    max_download_mb: float,
    progress: Progress = lambda done, total: None,
    waits: tuple[float, ...] = WAITS,
) -> Path:
    """The path of the file, from the cache or downloaded from its address.

    Raises ValueError if it has another sha256, is too large or is redirected into a private network, and
    SourceUnavailable if it cannot be reached.
    """
    folder, max_bytes = cache / file.sha256, int(max_download_mb * MB)
    if (cached := cached_file(folder, file.sha256)) is not None:
        return cached

    def write(part: Path) -> None:
        if file.address.startswith("file:"):
            _copy(file.address, part, max_bytes)
        else:
            _download(file, part, max_bytes, progress, waits)

    return fetched(folder, file.name, file.sha256, write)


def _copy(address: str, part: Path, max_bytes: int) -> None:
    path = Path(url2pathname(urlsplit(address).path))
    if not path.is_file():
        raise ValueError(f"{address}: there is no such file")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{address} is larger than max_download_mb={max_bytes / MB:g}")
    shutil.copyfile(path, part)


def _download(file: PinnedFile, part: Path, max_bytes: int, progress: Progress, waits: tuple[float, ...]) -> None:
    from requests import Session

    advice = (
        f"check the address and the network and run again, or put the file with sha256 {file.sha256} into"
        f" {part.parent}"
    )
    with Session() as session:
        tried(
            lambda: download(session, file.address, part, progress, max_bytes=max_bytes),
            file.address,
            advice=advice,
            waits=waits,
        )
