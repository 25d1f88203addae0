"""What a file is that no page is made of, by its first bytes: a picture, an archive, a program, ...

In: the beginning of a file, its name, and where it is. Out: a drop reason and a description in words. Archives inside
a folder or another archive are not opened, because nothing would bound what they lead to and the globs of a source
could not name their members; those that can be read are told from broken ones.
"""

import io
import tarfile
import zipfile
from typing import Any

from pipeline.corpus.collect.members import ARCHIVE_SUFFIXES, UNREADABLE
from pipeline.corpus.collect.unpacking import Bounded, Budget

PICTURE, SOUND, PROGRAM, FONT = "picture", "audio_or_video", "executable", "font"
OFFICE, DATABASE, DATA, ARCHIVE = "office_file", "database", "binary_data", "archive"
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, reason, description
    (0, b"\x89PNG", PICTURE, "a PNG picture"),
    (0, b"\xff\xd8\xff", PICTURE, "a JPEG picture"),
    (0, b"GIF8", PICTURE, "a GIF picture"),
    (8, b"WEBP", PICTURE, "a WebP picture"),
    (0, b"II*\0", PICTURE, "a TIFF picture"),
    (0, b"MM\0*", PICTURE, "a TIFF picture"),
    (0, b"8BPS", PICTURE, "a Photoshop picture"),
    (0, b"\0\0\1\0", PICTURE, "an icon"),
    (0, b"\0\0\0\x0cjP", PICTURE, "a JPEG 2000 picture"),
    (0, b"AT&TFORM", PICTURE, "a DjVu picture"),
    (4, b"ftypavif", PICTURE, "an AVIF picture"),
    (4, b"ftyphei", PICTURE, "a HEIC picture"),
    (4, b"ftypmif1", PICTURE, "a HEIF picture"),
    (4, b"ftyp", SOUND, "an MP4 or QuickTime film or recording"),
    (0, b"ID3", SOUND, "an MP3 recording"),
    (0, b"\xff\xfb", SOUND, "an MP3 recording"),
    (0, b"\xff\xf3", SOUND, "an MP3 recording"),
    (0, b"\xff\xf1", SOUND, "an AAC recording"),
    (0, b"fLaC", SOUND, "a FLAC recording"),
    (0, b"OggS", SOUND, "an Ogg recording or film"),
    (8, b"WAVE", SOUND, "a WAV recording"),
    (8, b"AVI ", SOUND, "an AVI film"),
    (8, b"AIFF", SOUND, "an AIFF recording"),
    (0, b"MThd", SOUND, "a MIDI file"),
    (0, b"\x1aE\xdf\xa3", SOUND, "a Matroska or WebM film"),
    (0, b"FLV\1", SOUND, "a Flash film"),
    (0, b"\0\0\1\xba", SOUND, "an MPEG film"),
    (0, b"\0\0\1\xb3", SOUND, "an MPEG film"),
    (0, b"0&\xb2u", SOUND, "a Windows Media film or recording"),
    (0, b"\x7fELF", PROGRAM, "an ELF program or library"),
    (0, b"MZ", PROGRAM, "a Windows program or library"),
    (0, b"\xfe\xed\xfa\xce", PROGRAM, "a Mach-O program or library"),
    (0, b"\xfe\xed\xfa\xcf", PROGRAM, "a Mach-O program or library"),
    (0, b"\xce\xfa\xed\xfe", PROGRAM, "a Mach-O program or library"),
    (0, b"\xcf\xfa\xed\xfe", PROGRAM, "a Mach-O program or library"),
    (0, b"\xca\xfe\xba\xbe", PROGRAM, "a Java class or Mach-O program"),
    (0, b"\0asm", PROGRAM, "a WebAssembly module"),
    (0, b"dex\n", PROGRAM, "an Android program"),
    (0, b"wOFF", FONT, "a font"),
    (0, b"wOF2", FONT, "a font"),
    (0, b"OTTO", FONT, "a font"),
    (0, b"ttcf", FONT, "a font"),
    (0, b"\0\1\0\0\0", FONT, "a font"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OFFICE, "an older Office file"),
    (0, b"{\\rtf", OFFICE, "an RTF document"),
    (0, b"%!PS", OFFICE, "a PostScript file"),
    (0, b"SQLite format 3\0", DATABASE, "an SQLite database"),
    (0, b"\x89HDF", DATA, "an HDF5 file"),
    (0, b"\x93NUMPY", DATA, "a NumPy array"),
    (0, b"ARROW1", DATA, "an Arrow or Feather file"),
    (0, b"ORC", DATA, "an ORC file"),
    (0, b"Obj\1", DATA, "an Avro file"),
    (0, b"GGUF", DATA, "weights of a model"),
    (0, b"\x80\x02", DATA, "a pickle"),
    (0, b"\x80\x04", DATA, "a pickle"),
    (0, b"\x80\x05", DATA, "a pickle"),
    (0, b"PK\3\4", ARCHIVE, "a zip archive"),
    (0, b"PK\5\6", ARCHIVE, "an empty zip archive"),
    (257, b"ustar", ARCHIVE, "a tar archive"),
    (0, b"Rar!\x1a\x07", ARCHIVE, "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", ARCHIVE, "a 7z archive"),
    (0, b"MSCF", ARCHIVE, "a cabinet archive"),
    (0, b"!<arch>\n", ARCHIVE, "an ar archive"),
    (0, b"xar!", ARCHIVE, "a xar archive"),
    (0, b"\xed\xab\xee\xdb", ARCHIVE, "an RPM package"),
    (0, b"\x04\x22\x4d\x18", ARCHIVE, "an lz4 file"),
    (0, b"\x1f\x9d", ARCHIVE, "a file of compress"),
    (0, b"LZIP", ARCHIVE, "an lzip file"),
)
OFFICE_PARTS = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis.opendocument")  # first files of their zips
MORE_ARCHIVE_SUFFIXES = (".rar", ".7z", ".jar", ".egg", ".apk", ".xpi", ".tar.zst", ".tzst", ".cab")
CHECKED_BYTES = 20_000_000  # larger archives are not read to their end to see whether they are whole


def is_archive_name(name: str) -> bool:
    return name.endswith((*ARCHIVE_SUFFIXES, *MORE_ARCHIVE_SUFFIXES))


def kind_of(head: bytes) -> tuple[str, str] | None:
    """A reason and a description; None for what may be text."""
    if head.startswith(b"PK\3\4") and head[30:].startswith(OFFICE_PARTS):
        return OFFICE, "an Office or OpenDocument file"
    for offset, magic, reason, words in MAGIC:
        if head[offset:].startswith(magic):
            return reason, words
    if b"<svg" in head[:500].lower():
        return PICTURE, "an SVG picture"
    return (DATA, "binary data of an unknown format") if b"\0" in head else None


def archive_reason(stream: Any, words: str, *, inside: str) -> tuple[str, str]:
    """The reason for an archive inside a folder or an archive."""
    try:
        if words.endswith("zip archive"):
            content = stream.read(CHECKED_BYTES + 1)
            if len(content) <= CHECKED_BYTES:
                zipfile.ZipFile(io.BytesIO(content)).close()
        elif words == "a tar archive":
            _read_tar(stream)
    except (*UNREADABLE, ValueError) as error:
        return "broken_archive", f"{words} that is damaged: {error}"
    own_table = "unpack it, or give it a table of its own in sources.toml"
    return f"archive_in_{inside}", f"{words} inside {'an' if inside == 'archive' else 'a'} {inside}; {own_table}"


def _read_tar(stream: Any) -> None:
    budget = Budget(CHECKED_BYTES)
    try:
        with tarfile.open(fileobj=Bounded(stream, budget), mode="r|") as archive:
            while archive.next() is not None:
                archive.members.clear()  # type: ignore[attr-defined]
    except Exception:
        if budget.spent <= budget.most:
            raise
