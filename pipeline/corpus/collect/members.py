"""Lists the files inside a folder or archive by glob; their names are not trusted.

In: a folder, a file or an archive (ARCHIVE_SUFFIXES) and globs. Out: `Member`, one after the other. A member that
leads outside (absolute, `..`, a link, a device) or cannot be read is listed as refused, with its reason; names that
begin with a dot are not listed at all. Nothing is unpacked to disk.
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
NAMES_REMEMBERED = 5000  # for the error message if a glob matches nothing


@dataclass(frozen=True, slots=True)
class Member:
    name: str  # relative to the folder or archive, parts joined by "/"
    open: Callable[[], BinaryIO]  # may be called until the next member is requested
    refused: str | None = None  # the reason, for a member that must not be opened


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def members_of(path: Path, *, strip_top: bool = False) -> Iterator[Member]:
    """All members of a folder, an archive or a single file; `strip_top` removes the top folder of an sdist.

    Raises ValueError for an unreadable archive, at the latest when its first damaged part is reached.
    """
    if path.is_dir():
        yield from _folder_members(path)
    elif is_archive(path):
        try:
            yield from _archive_members(path, strip_top)
        except UNREADABLE as error:
            detail = str(error).split("\n")[0].rstrip(":")
            raise ValueError(
                f"{path} is damaged or not an archive ({detail}); replace it with a good copy"
            ) from error
    else:
        yield Member(_text_name(path.name), lambda: path.open("rb"))


def selected(members: Iterable[Member], globs: tuple[str, ...], where: str) -> Iterator[Member]:
    """The members that match the globs. Raises ValueError at the end if one of the globs matched none."""
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
    """A pattern for a glob: `**/` spans any number of folders, `*`, `?` and `[...]` match within one folder."""
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
        return f"{where} contains no files, so `{glob}` matches nothing"
    close = difflib.get_close_matches(glob, names, n=3, cutoff=0.3) or names[:3]
    others = "".join(f"; `{other}` matches {n}" for other, n in matched.items())
    return f"no file of {where} matches `{glob}`{others}; its files are for instance {', '.join(close)}"


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
                continue  # a link to a folder of this tree, whose files are listed there
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
    """Rejects long names that would fill the memory, because tarfile reads them as a whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in LONG_HEADERS and header.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _check_tar_end(path: Path) -> None:
    """Rejects a truncated file, which tarfile accepts as a shorter one; a complete file ends in zeros."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 512))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("its end is missing")


def _open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(info)
    assert file is not None  # only regular files get here
    return file  # type: ignore[return-value]


def _archived(name: str, strip_top: bool, is_special: bool, opener: Callable) -> Iterator[Member]:
    """At most one member, with its name checked and the top folder removed; none if a part of its name is hidden."""
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
    """`name` without the lone surrogates by which Python represents bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
