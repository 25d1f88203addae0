"""The files inside a folder or archive, by glob, with names that nobody trusts.

In: a folder, a file or an archive (ARCHIVE_SUFFIXES) and globs. Out: `Member`, one after the other. A member that
leads outside (absolute, `..`, a link, a device) or cannot be read is listed as refused with its reason; what begins
with a dot is not listed at all. Nothing is unpacked to disk.
"""

import difflib
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ARCHIVE_SUFFIXES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP_SUFFIXES = (".zip", ".whl")
UNREADABLE = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
    RuntimeError,
)
LONG_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MAX_HEADER = 1 << 20  # bytes
NAMES_REMEMBERED = 5000  # for the message when a glob takes nothing


@dataclass(frozen=True, slots=True)
class Member:
    name: str  # relative to the folder or archive, parts joined by "/"
    open: Callable[[], BinaryIO]  # may be called until the next member is asked for
    refused: str | None = None  # the reason, for a member that must not be opened


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def members_of(path: Path, *, strip_top: bool = False) -> Iterator[Member]:
    """All members of a folder, an archive or a single file; `strip_top` takes off the one folder of an sdist.

    ValueError names an archive that cannot be read, at the latest where its first damaged place is.
    """
    if path.is_dir():
        yield from _folder_members(path)
    elif is_archive(path):
        try:
            yield from _archive_members(path, strip_top)
        except UNREADABLE as error:
            detail = str(error).split("\n")[0].rstrip(":")
            raise ValueError(f"{path} is broken or no archive ({detail}); replace it by a good copy") from error
    else:
        yield Member(_text_name(path.name), lambda: path.open("rb"))


def selected(members: Iterable[Member], globs: tuple[str, ...], where: str) -> Iterator[Member]:
    """Those that the globs take. ValueError at the end when one of the globs took none."""
    takes = {glob: glob_regex(glob) for glob in globs if not glob.startswith("!")}
    leaves = [glob_regex(glob[1:]) for glob in globs if glob.startswith("!")]
    matched = Counter()
    names: list[str] = []
    for member in members:
        if len(names) < NAMES_REMEMBERED:
            names.append(member.name)
        hits = [glob for glob, regex in takes.items() if regex.fullmatch(member.name)]
        matched.update(hits)
        if hits and not any(regex.fullmatch(member.name) for regex in leaves):
            yield member
    if missed := [glob for glob in takes if not matched[glob]]:
        raise ValueError(_nothing_matched(missed[0], where, names, matched))


def glob_regex(glob: str) -> re.Pattern[str]:
    """`**/` spans any number of folders, `*`, `?` and `[...]` stay within one."""
    pieces = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", glob)
    return re.compile("".join(pieces.get(part) or _literal(part) for part in parts), re.DOTALL)


def _literal(part: str) -> str:
    if not part.startswith("["):
        return re.escape(part)
    inside = part[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}/]" if inside.startswith("!") else f"[{inside.replace('^', chr(92) + '^')}]"


def _nothing_matched(glob: str, where: str, names: list[str], matched: Counter) -> str:
    if not names:
        return f"{where} holds no file, so that `{glob}` takes nothing"
    close = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
    others = "".join(f"; `{other}` takes {n}" for other, n in matched.items())
    return f"no file of {where} matches `{glob}`{others}; there are for instance {', '.join(close)}"


def _folder_members(folder: Path) -> Iterator[Member]:
    refused: list[Member] = []

    def unreadable(error: OSError) -> None:
        refused.append(_refused(os.path.relpath(error.filename or folder, folder), "unreadable"))

    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*files, *(f for f in folders if (Path(root) / f).is_symlink())]):
            path = Path(root) / name
            relative = _text_name(path.relative_to(folder).as_posix())
            if name.startswith(".") or (path.is_dir() and path.resolve().is_relative_to(folder.resolve())):
                continue  # a link to a folder of this tree: its files are listed where they lie
            if not path.resolve().is_relative_to(folder.resolve()) or not (path.is_file() or not path.exists()):
                yield _refused(relative, "unsafe_member_name")
            else:
                yield Member(relative, lambda path=path: path.open("rb"))
    yield from refused


def _archive_members(path: Path, strip_top: bool) -> Iterator[Member]:
    suffix = path.suffix.lower()
    if suffix in ZIP_SUFFIXES:
        yield from _zip_members(path, strip_top)
    else:
        if suffix == ".tar":
            _check_tar_end(path)
        with tarfile.open(path, "r:*", tarinfo=_Header) as archive:
            yield from _tar_members(archive, strip_top)


def _zip_members(path: Path, strip_top: bool) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            yield from _archived(info.filename, strip_top, is_link, lambda info=info: archive.open(info))


def _tar_members(archive: tarfile.TarFile, strip_top: bool) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header in memory
        if not info.isdir():
            yield from _archived(info.name, strip_top, not info.isfile(), lambda info=info: _open(archive, info))


class _Header(tarfile.TarInfo):
    """Refuses long names that would fill the memory, which tarfile reads whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in LONG_HEADERS and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _check_tar_end(path: Path) -> None:
    """tarfile takes a file that was cut off for a shorter one; a whole one ends in zeros."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 512))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("its end is missing")


def _open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(info)
    assert file is not None  # only regular files come here
    return file  # type: ignore[return-value]


def _archived(name: str, strip_top: bool, is_special: bool, opener: Callable) -> Iterator[Member]:
    """At most one member: the outer name checked, its top folder and hidden ones taken off."""
    name = _text_name(name)
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name
    kept = [part for part in parts if part != ".."]
    kept = kept[1:] if strip_top and len(kept) > 1 and not outside else kept
    if not kept or any(part.startswith(".") for part in kept):
        return
    yield _refused("/".join(kept), "unsafe_member_name") if outside or is_special else Member("/".join(kept), opener)


def _refused(name: str, reason: str) -> Member:
    def opener() -> BinaryIO:
        raise PermissionError(f"{name} was refused: {reason}")

    return Member(name, opener, reason)


def _text_name(name: str) -> str:
    """`name` without the lone surrogates by which Python carries bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
