"""Lists the files inside a folder or archive by glob; their names are not trusted.

In: a folder, a file or an archive (ARCHIVE_SUFFIXES) and globs. Out: `Member`, one after the other. A member that
leads outside (absolute, `..`, a link), is no file (a FIFO, a socket, a device) or cannot be read is listed as
refused, with its reason, and is never opened; names that begin with a dot are not listed at all.

Names keep their identity: a byte that is not UTF-8 is a lone surrogate, as Python represents it, and `address_of`
writes it as that byte.
"""

import difflib
import errno
import functools
import io
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
from urllib.parse import quote

from pipeline.corpus.collect.unpacking import Bounded, most_unpacked, unpacked

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
    UnicodeDecodeError,  # a name in a zip that is marked as UTF-8 and is not
)
LONG_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MAX_HEADER = 1 << 20  # bytes
NAMES_REMEMBERED = 5000  # for the error message if a glob matches nothing
UTF8_NAME = 0x800  # flag of a zip member (APPNOTE 4.4.4)
SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True, slots=True)
class Member:
    name: str  # relative to the folder or archive, parts joined by "/"
    open: Callable[[], BinaryIO]  # may be called until the next member is requested
    refused: str | None = None  # the reason, for a member that must not be opened
    detail: str = ""  # what was found, for a refused member
    path: str | None = None  # of a file on this machine
    size: int = 0  # bytes, as it is stored
    is_portable: bool = True  # whether `open` may be called in another process


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def address_of(name: str) -> str:
    """`name` percent-encoded by its bytes, so that different names have different addresses."""
    return quote(name.encode("utf-8", "surrogateescape"))


def shown(name: str) -> str:
    """`name` for a message: control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def open_regular(path: str | Path) -> BinaryIO:
    """The file at `path`, which must be a regular file and no link; an OSError for anything else.

    It does not wait for the writer of a FIFO that was put in the place of the file after it was listed.
    """
    if not stat.S_ISREG(mode := os.lstat(path).st_mode):
        raise _not_a_file(path, mode)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NOCTTY", 0)
    handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
            raise _not_a_file(path, mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _not_a_file(path: str | Path, mode: int) -> OSError:
    kind = SPECIAL.get(stat.S_IFMT(mode), "a link" if stat.S_ISLNK(mode) else "a folder")
    return OSError(errno.EINVAL, f"expected a file, found {kind}", shown(str(path)))


def members_of(path: Path, *, strip_top: bool = False) -> Iterator[Member]:
    """All members of a folder, an archive or a single file; `strip_top` removes the top folder of an sdist.

    Raises ValueError for an unreadable archive, at the latest when its first damaged part is reached.
    """
    if path.is_dir():
        yield from _folder_members(path)
    elif is_archive(path):
        try:
            yield from _archive_members(path.resolve(), strip_top)
        except UNREADABLE as error:
            detail = str(error).split("\n")[0].rstrip(":")
            raise ValueError(
                f"{path} is damaged or not an archive ({detail}); replace it with a good copy"
            ) from error
    else:
        real = os.path.realpath(path)
        yield _file(text_name(path.name), real, path.stat().st_size)


def selected(members: Iterable[Member], globs: tuple[str, ...], where: str) -> Iterator[Member]:
    """The members that match the globs. Raises ValueError at the end if one of the globs matched none."""
    choice = Choice(globs)
    matched = Counter()
    names: list[str] = []
    for member in members:
        if len(names) < NAMES_REMEMBERED:
            names.append(member.name)
        hits = choice.hits(member.name)
        matched.update(hits)
        if hits and not choice.leaves(member.name):
            yield member
    if missed := [glob for glob in choice.takes if not matched[glob]]:
        raise ValueError(_nothing_matched(missed[0], where, names, matched))


class Choice:
    """Which names the globs of a source take."""

    def __init__(self, globs: tuple[str, ...]):
        self.takes = {glob: glob_regex(glob) for glob in globs if not glob.startswith("!")}
        self.left = {glob: glob_regex(glob[1:]) for glob in globs if glob.startswith("!")}

    def hits(self, name: str) -> list[str]:
        return [glob for glob, regex in self.takes.items() if regex.fullmatch(name)]

    def leaves(self, name: str) -> str | None:
        """The glob with ! that excludes `name`."""
        return next((glob for glob, regex in self.left.items() if regex.fullmatch(name)), None)


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
    there = ", ".join(map(shown, close))
    return f"no file of {where} matches `{glob}`{others}; its files are for instance {there}"


def _folder_members(folder: Path) -> Iterator[Member]:
    """Files of a folder before those of its subfolders, sorted by name. No entry is opened, and no link followed."""
    root, waiting = os.path.realpath(folder), [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(f"{root}/{inside}") as entries:
                there = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield refused_member(text_name(inside.rstrip("/") or "."), "unreadable", str(error.strerror))
            continue
        waiting += [f"{inside}{e.name}/" for e in reversed(there) if e.is_dir(follow_symlinks=False)]
        for entry in there:
            if not entry.is_dir(follow_symlinks=False):
                yield from _entry_member(entry, f"{inside}{entry.name}", root)


def _entry_member(entry: os.DirEntry, inside: str, root: str) -> Iterator[Member]:
    """The member of one entry, none for a link to a folder of this tree, whose files are listed there."""
    name, path = text_name(inside), entry.path
    try:
        if entry.is_symlink():
            path = os.path.realpath(path, strict=True)
        status = os.lstat(path)
    except OSError as error:
        gone = {errno.ENOENT: "a link to nothing", errno.ELOOP: "a link that leads in a circle"}
        if entry.is_symlink() and error.errno in gone:
            yield refused_member(name, "broken_link", gone[error.errno])
        else:
            yield refused_member(name, "unreadable", str(error.strerror))
        return
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        yield refused_member(name, "unsafe_member_name", "a link that leads out of the folder")
    elif stat.S_ISREG(status.st_mode):
        yield _file(name, path, status.st_size)
    elif not stat.S_ISDIR(status.st_mode):
        yield refused_member(name, "special_file", SPECIAL.get(stat.S_IFMT(status.st_mode), "no file"))


def _file(name: str, path: str, size: int) -> Member:
    return Member(name, functools.partial(open_regular, path), path=path, size=size)


def _archive_members(path: Path, strip_top: bool) -> Iterator[Member]:
    suffix = path.suffix.lower()
    if suffix in ZIP_SUFFIXES:
        yield from _zip_members(path, strip_top)
        return
    if suffix == ".tar":
        _check_tar_end(path)
    with open_regular(path) as file:
        stream = Bounded(unpacked(file), most_unpacked(path.stat().st_size), str(path))
        names = {"encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, **names) as archive:  # type: ignore[call-overload]
            yield from _tar_members(archive, strip_top)


def _zip_members(path: Path, strip_top: bool) -> Iterator[Member]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        state = file_state(path)
        for number, info in enumerate(archive.infolist()):
            if not info.is_dir():
                opener = functools.partial(_open_zipped, str(path), state, number)
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                yield from _archived(_zip_name(info), strip_top, is_link, opener, info.compress_size)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name; most tools write UTF-8, some without the flag that says so."""
    if info.flag_bits & UTF8_NAME or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _open_zipped(path: str, state: tuple[int, ...], number: int) -> BinaryIO:
    if file_state(path) != state:
        raise OSError(errno.ESTALE, "the archive has changed since it was listed", shown(path))
    archive = _zip_archive(path, state)
    return archive.open(archive.infolist()[number])  # type: ignore[return-value]


@functools.lru_cache(maxsize=1)
def _zip_archive(path: str, state: tuple[int, ...]) -> zipfile.ZipFile:
    """One archive per process stays open, because its directory is read as a whole when it is opened."""
    return zipfile.ZipFile(path)


def file_state(path: str | Path) -> tuple[int, ...]:
    """Changes whenever the content of a file changes: even `cp -p`, which copies the time of a file, sets ctime."""
    status = os.lstat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _tar_members(archive: tarfile.TarFile, strip_top: bool) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header in memory
        if not info.isdir():
            opener = functools.partial(_open_tarred, archive, info)
            yield from _archived(info.name, strip_top, not info.isfile(), opener, info.size, is_portable=False)


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
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - 512))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("its end is missing")


def _open_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    file = archive.extractfile(info)
    assert file is not None  # only regular files get here
    return file  # type: ignore[return-value]


def _archived(
    name: str, strip_top: bool, is_special: bool, opener: Callable, size: int, *, is_portable: bool = True
) -> Iterator[Member]:
    """At most one member, with its name checked and the top folder removed; none if a part of its name is hidden."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    outside = name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name
    kept = [part for part in parts if part != ".."]
    kept = kept[1:] if strip_top and len(kept) > 1 and not outside else kept
    if not kept or any(part.startswith(".") for part in kept):
        return
    if outside or is_special:
        what = "a name that leads out of the archive" if outside else "a link or a device"
        yield refused_member("/".join(kept), "unsafe_member_name", what)
    else:
        yield Member("/".join(kept), opener, size=size, is_portable=is_portable)


def refused_member(name: str, reason: str, detail: str) -> Member:
    return Member(name, functools.partial(io.BytesIO, b""), reason, detail)


def text_name(name: str) -> str:
    """`name` as UTF-8, whatever the encoding of file names is here; other bytes are lone surrogates."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")
