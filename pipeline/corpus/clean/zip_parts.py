"""Reads the parts of a zipped XML document (epub, docx), with limits on their sizes.

In: the bytes of the file. Out: `Parts`, which returns a part by name, as bytes or as a parsed tree. No part is
unpacked to disk, all parts together give at most MAX_UNPACKED_BYTES, whatever sizes the file declares, and parsing
XML expands no entities and fetches nothing. All errors are raised as `Unusable` with the drop reason.
"""

import io
import posixpath
import zipfile
import zlib
from typing import Any
from urllib.parse import unquote

from pipeline.corpus.charsets import ERRORS, xml_codec

MAX_UNPACKED_BYTES = 100_000_000  # for all parts of one document together; a long novel has 2 MB of text
MAX_PARTS = 20_000
OLE_SIGNATURE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # older office files, and password-protected newer ones
ENCRYPTED_STREAM = "EncryptedPackage".encode(
    "utf-16-le"
)  # ECMA-376 part 4: the stream in which OLE wraps an encrypted zip
ENCRYPTED_BIT = 0x1
BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError)


class Unusable(Exception):
    """The reason why a document has no text: unreadable, encrypted, no_text or too_large."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Parts:
    """Files inside a zip by their normalised names. Raises only Unusable for a broken zip."""

    def __init__(self, content: bytes):
        if content.startswith(OLE_SIGNATURE):
            raise Unusable("encrypted" if ENCRYPTED_STREAM in content else "unreadable")
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
            infos = self._archive.infolist()
        except (*BROKEN, RuntimeError) as error:
            raise Unusable("unreadable") from error
        if len(infos) > MAX_PARTS:
            raise Unusable("too_large")
        self._infos = {posixpath.normpath(info.filename): info for info in infos}
        self._left = MAX_UNPACKED_BYTES

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def names(self) -> list[str]:
        return list(self._infos)

    def read(self, name: str) -> bytes:
        info = self._infos.get(name)
        if info is None:
            raise Unusable("unreadable")
        if info.flag_bits & ENCRYPTED_BIT:
            raise Unusable("encrypted")
        try:
            with self._archive.open(info) as part:
                content = part.read(self._left + 1)
        except (*BROKEN, RuntimeError) as error:
            raise Unusable("unreadable") from error
        if len(content) > self._left:
            raise Unusable("too_large")
        self._left -= len(content)
        return content

    def tree(self, name: str) -> Any:
        """The root element of an XML part."""
        root = xml_tree(self.read(name))
        if root is None:
            raise Unusable("unreadable")
        return root


def joined(folder: str, href: str) -> str:
    """The name of the part to which `href` refers, relative to `folder`. A name outside matches no part."""
    return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))


def xml_tree(content: bytes) -> Any | None:
    """The root element, None if the content is not XML; entities that the document defines are omitted."""
    from lxml import etree  # type: ignore[attr-defined]  # a C extension without types

    codec = xml_codec(content)
    parser = etree.XMLParser(
        encoding="utf-8" if codec else None,  # whatever the declaration says
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(content.decode(codec, ERRORS).encode() if codec else content, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None


def local_name(element: Any) -> str:
    """The tag without its namespace; empty for a comment, an entity or a processing instruction."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Any, name: str) -> str | None:
    """The value of an attribute, in any namespace."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return value
    return None
