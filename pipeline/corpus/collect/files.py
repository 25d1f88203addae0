"""Source kind `files`: a folder, a single file or an archive on this machine.

A folder has a sensor. The digest of a file is computed again only if its size or modification time changed.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

from pipeline.corpus.collect.members import Member, is_archive, members_of, selected
from pipeline.corpus.collect.source import Progress, Source
from pipeline.store.settings import Text
from pipeline.store.shards import file_digest, text_digest, write_text
from pipeline.store.store import room_for

SETTLED_SECONDS = 2  # a file younger than this may change again without a new mtime


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
        """A digest of names, sizes and modification times."""
        stats = ((path, path.lstat()) for path in self._files())
        return text_digest(*(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats))

    def digest(self, cache: Path) -> str:
        memory = cache / "file_digests" / f"{text_digest(self.path)}.json"
        known = json.loads(memory.read_text("utf-8")) if memory.exists() else {}
        now: dict[str, list[Any]] = {}
        parts: list[str] = []
        for path in self._files():
            stat = path.stat() if path.exists() else path.lstat()
            state = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(str(path))
            digest = entry[2] if entry and entry[:2] == state else _digest_or_fault(path)
            parts += [str(path), digest]
            if time.time() - stat.st_mtime > SETTLED_SECONDS:
                now[str(path)] = [*state, digest]
        if now != known:
            with room_for("collect", memory):
                write_text(memory, json.dumps(now))
        return text_digest(*parts)

    def entries(self, cache: Path, progress: Progress) -> Iterator[tuple[str, Member]]:
        path = self._existing()
        if path.is_dir():
            base = path.as_uri() + "/"
        else:
            base = f"{path.as_uri()}!/" if is_archive(path) else path.parent.as_uri() + "/"
        return ((base + quote(member.name), member) for member in self._selected(path))

    def _existing(self) -> Path:
        path = Path(self.path)
        if not path.exists():
            raise ValueError(
                f"source `{self.name}`: path {path} does not exist; a relative path counts from the folder of"
                " sources.toml"
            )
        return path

    def _selected(self, path: Path) -> Iterator[Member]:
        return selected(members_of(path), self.members, f"{path} (source `{self.name}`)")

    def _files(self) -> list[Path]:
        """The files that determine the pages: the file or archive, or the files of a folder that match the globs."""
        path = self._existing()
        if not path.is_dir():
            return [path]
        there = (path / member.name for member in self._selected(path))
        return sorted(file for file in there if file.is_symlink() or file.is_file())


def _digest_or_fault(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:  # `collect` drops it as unreadable
        return f"unreadable {error.errno}"
