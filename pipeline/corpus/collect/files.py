"""Source kind `files`: a folder, a single file or an archive on this machine.

A folder has a sensor. The digest of a file is cached with its size, its times, among them the time of its last change
(ctime), which no program can set, and its inode. It is computed again if one of them differs, and for a file that
changed so recently that a second change might have left them equal.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import xxhash

from pipeline.corpus.collect.members import (
    Member,
    address_of,
    file_state,
    is_archive,
    members_of,
    open_regular,
    selected,
    text_name,
)
from pipeline.corpus.collect.source import Progress, Source
from pipeline.store.settings import Text
from pipeline.store.shards import text_digest, write_text
from pipeline.store.store import room_for

SETTLED_SECONDS = 2  # a file younger than this may change again without a new time; FAT counts in steps of 2 s
HAS_CHANGE_TIME = os.name == "posix"  # elsewhere ctime is the time at which a file was created
BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesSource(Source):
    kind: ClassVar[str] = "files"
    is_watched: ClassVar[bool] = True

    path: Annotated[Text, "Folder, file or archive to read, absolute or relative to the folder of sources.toml."]
    members: Annotated[
        tuple[str, ...],
        "Globs of the files to read, relative to the folder or archive; a glob that starts with ! excludes files.",
    ] = ("**/*",)

    def below(self, folder: Path) -> "FilesSource":
        # normalised, so that the addresses of pages contain no `..`
        return replace(self, path=os.path.normpath((folder / self.path).expanduser().absolute()))

    def snapshot(self) -> str:
        """A digest of the names of all files and of what the file system knows about them."""
        states = ((name, _state(path) if path else refused) for name, path, refused in self._files())
        return text_digest(*(f"{name.encode('utf-8', 'surrogateescape')!r} {state}" for name, state in states))

    def digest(self, cache: Path) -> str:
        memory = cache / "file_digests" / f"{text_digest(self.path)}.json"
        known = _known(memory)
        now: dict[str, list[Any]] = {}
        parts: list[str | bytes] = []
        for name, path, refused in self._files():
            state = _state(path) if path else None
            entry = known.get(name)
            if path is None or state is None:
                digest = f"not read: {refused}"
            else:
                digest = entry[1] if entry and entry[0] == state else _digest_or_fault(path)
                if HAS_CHANGE_TIME and time.time_ns() - max(state[1:3]) > SETTLED_SECONDS * 10**9:
                    now[name] = [state, digest]
            parts += [name.encode("utf-8", "surrogateescape"), digest]
        if now != known:
            with room_for("collect", memory):
                write_text(memory, json.dumps(now))
        return text_digest(*parts)

    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        path = self._existing()
        base = self.base(path)
        return ((base + address_of(member.name), member) for member in self._selected(path))

    def candidates(self, cache: Path) -> Iterator[tuple[str, Member]]:
        path = self._existing()
        base = self.base(path)
        return ((base + address_of(member.name), member) for member in members_of(path))

    def base(self, path: Path) -> str:
        """The beginning of the addresses of all members."""
        if path.is_dir():
            return path.as_uri() + "/"
        return f"{path.as_uri()}!/" if is_archive(path) else path.parent.as_uri() + "/"

    def _existing(self) -> Path:
        path = Path(self.path)
        if not path.exists():
            raise ValueError(
                f"source `{self.name}`: path {path} does not exist; a relative path counts from the folder of"
                " sources.toml"
            )
        if not path.is_dir() and not path.is_file():
            raise ValueError(f"source `{self.name}`: path {path} is neither a folder nor a file")
        return path

    def _selected(self, path: Path) -> Iterator[Member]:
        return selected(members_of(path), self.members, f"{path} (source `{self.name}`)")

    def _files(self) -> list[tuple[str, str | None, str]]:
        """Name and path of the files that determine the pages: of the file or archive itself, or of the members.

        A member that is refused has a reason instead of a path, because its content is never read.
        """
        path = self._existing()
        if not path.is_dir():
            return [(text_name(path.name), os.path.realpath(path), "")]
        files = ((m.name, m.path, f"{m.refused} {m.detail}") for m in self._selected(path))
        return sorted(files, key=lambda file: file[0])


def _known(memory: Path) -> dict[str, Any]:
    """The digests of an earlier call; none if they cannot be read, so that all are computed again."""
    try:
        known = json.loads(memory.read_text("utf-8"))
        return known if all(len(entry) == 2 for entry in known.values()) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _state(path: str) -> list[int] | None:
    """Size, modification time, change time, inode; None for a file that is gone."""
    try:
        return list(file_state(path))
    except OSError:
        return None


def _digest_or_fault(path: str) -> str:
    digest = xxhash.xxh3_128()
    try:
        with open_regular(path) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:  # `collect` drops it as unreadable
        return f"unreadable {error.errno}"
    return digest.hexdigest()
