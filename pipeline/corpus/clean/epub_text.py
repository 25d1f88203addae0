"""The text of an electronic book (EPUB 2 and 3), chapter by chapter in reading order.

In: the bytes of the file. Out: `Extracted`: the title in the package file, and the text of every item of the spine
with headings, lists, tables and code (xhtml_text.py). Pictures, style and the table of contents of EPUB 3 are
dropped. A book whose spine is missing or empty is read in the order of its manifest; an item that is missing in the
file is skipped. Sources: EPUB 3.3, sections 4.2 (container), 5 (package) and 4.2.6.3.2 (encryption).
"""

import posixpath
from typing import Any

from pipeline.corpus.charsets import XHTML
from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.xhtml_text import xhtml_text
from pipeline.corpus.clean.zip_parts import Parts, Unusable, attribute, joined, local_name
from pipeline.corpus.shown_text import markup_as_shown
from pipeline.corpus.text_repair import decode

EXTRACTOR = "epub"
CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
PAGE_TYPES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document")


def epub_text(content: bytes) -> Extracted:
    """The text of a book. Never raises for a broken one: `reason` is unreadable, encrypted, no_text or too_large."""
    try:
        parts = Parts(content)
        package = _package_name(parts)
        root = parts.tree(package)
        chapters = _chapters(parts, root, posixpath.dirname(package))
    except Unusable as unusable:
        return Extracted("", extractor=EXTRACTOR, reason=unusable.reason)
    text = "\n\n".join(chapter for chapter in chapters if chapter.strip())
    return Extracted(text, title=_title(root), extractor=EXTRACTOR, reason=None if text else "no_text")


def _package_name(parts: Parts) -> str:
    if CONTAINER in parts:
        for element in parts.tree(CONTAINER).iter():
            path = attribute(element, "full-path") if local_name(element) == "rootfile" else None
            if path and joined("", path) in parts:
                return joined("", path)
    packages = sorted(name for name in parts.names() if name.lower().endswith(".opf"))
    if not packages:
        raise Unusable("unreadable")
    return packages[0]


def _title(root: Any) -> str | None:
    for element in root.iter():
        if local_name(element) == "title" and (title := " ".join((element.text or "").split())):
            return title
    return None


def _chapters(parts: Parts, root: Any, folder: str) -> list[str]:
    """The texts of the pages that are in the file. Raises Unusable if none is readable."""
    names = [name for name in _reading_order(root, folder) if name in parts]
    encrypted = _encrypted(parts)
    readable = [name for name in names if name not in encrypted]
    if not names:
        raise Unusable("unreadable")
    if not readable:
        raise Unusable("encrypted")
    return [_chapter(parts.read(name)) for name in readable]


def _reading_order(root: Any, folder: str) -> list[str]:
    pages, spine = {}, []
    for element in root.iter():
        name = local_name(element)
        if name == "item" and (attribute(element, "media-type") or "").strip().lower() in PAGE_TYPES:
            is_contents = "nav" in (attribute(element, "properties") or "").split()
            if not is_contents and (href := attribute(element, "href")):
                pages[attribute(element, "id")] = joined(folder, href)
        elif name == "itemref":
            spine.append(attribute(element, "idref"))
    ordered = [pages[item] for item in spine if item in pages] or list(pages.values())
    return list(dict.fromkeys(ordered))


def _encrypted(parts: Parts) -> set[str]:
    """Names of the parts listed in encryption.xml: often fonts, but pages only if the book is locked."""
    if ENCRYPTION not in parts:
        return set()
    references = (e for e in parts.tree(ENCRYPTION).iter() if local_name(e) == "CipherReference")
    return {joined("", attribute(reference, "URI") or "") for reference in references}


def _chapter(content: bytes) -> str:
    text, _ = decode(content, XHTML)
    return "" if text is None else xhtml_text(markup_as_shown(text))[1]
