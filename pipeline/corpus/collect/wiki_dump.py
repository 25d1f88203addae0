"""Articles of a MediaWiki XML dump, streamed.

In: the XML as an open, untrusted file. Out: `Article` for every page element, with a reason if it is not an article
(a redirect, a page of another namespace, an empty one), and one `Broken` if the XML ends too early. Each article
carries what the dump says about its wiki, the names of the namespaces, because its links can't be read without them.
Entities are never expanded, nothing is fetched, and the size of a page element is bounded.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.corpus.charsets import ERRORS, xml_codec
from pipeline.corpus.clean.wiki_names import folded
from pipeline.corpus.clean.zip_parts import local_name
from pipeline.corpus.collect.unpacking import Rewound

HEAD_BYTES = 1000  # in which XML declares its encoding

# In each language the word differs; it is written in capitals, or in a script without them.
REDIRECT = re.compile(r"\s*#\s*(?P<word>[^\W\d_]+)\s*:?\s*\[\[[^\]\n]+\]\][^\n]{0,200}\s*")
LONGEST_NAME = 100  # characters of the name of a namespace
MOST_NAMESPACES = 500


@dataclass(frozen=True, slots=True)
class Article:
    title: str
    text: str
    reason: str | None  # reason why it is dropped, None if it is kept
    context: str | None = None  # JSON object with the names of the namespaces by their keys


@dataclass(frozen=True, slots=True)
class Broken:
    reason: str
    detail: str


class _TooLarge(Exception):
    """More bytes than allowed were read without the end of a page element."""


class _Bounded:
    """The stream, which fails after more than `max_bytes` bytes without the end of a page."""

    def __init__(self, stream: Any, codec: str | None, max_bytes: int):
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder(codec)(ERRORS) if codec else None
        self.max_bytes = max_bytes
        self.since_page = 0

    def read(self, size: int = -1) -> bytes:
        if self.since_page > self.max_bytes:
            raise _TooLarge
        block = self.stream.read(size)
        self.since_page += len(block)
        # an incomplete character alone would look like the end
        while self.decoder is not None and block:
            if text := self.decoder.decode(block):
                return text.encode()
            block = self.stream.read(size)
        return block


def read_articles(stream: BinaryIO, max_bytes: int) -> Iterator[Article | Broken]:
    """Every page of the dump in order; at most one Broken, as the last item."""
    from lxml import etree  # type: ignore[attr-defined]  # a C extension without types

    head = stream.read(HEAD_BYTES)
    codec = xml_codec(head)
    bounded = _Bounded(io.BufferedReader(Rewound(head, stream)), codec, max_bytes)
    path: list[str] = []
    namespaces: dict[str, str] = {}
    context: str | None = None
    try:
        elements = etree.iterparse(
            bounded,
            events=("start", "end"),
            encoding="utf-8" if codec else None,  # whatever the declaration says
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
        )
        for event, element in elements:
            name = local_name(element)
            if event == "start":
                path.append(name)
                if path == [name] and name != "mediawiki":
                    yield Broken("unsupported", f"XML that begins with <{name[:100]}>, not with <mediawiki>")
                    return
                continue
            path.pop()
            if path == ["mediawiki"]:
                if name == "siteinfo":
                    namespaces = _namespaces(element)
                    context = json.dumps({"namespaces": namespaces}, ensure_ascii=False) if namespaces else None
                elif name == "page":
                    yield _article(element, namespaces, context)
                bounded.since_page = 0
            if path == ["mediawiki"] or name == "revision":
                _forget(element, itself=name != "revision")
    except _TooLarge:
        yield Broken("too_large", f"a page of the dump holds more than {max_bytes} bytes")
    except etree.XMLSyntaxError as error:
        yield Broken("unreadable", str(error))


def _namespaces(siteinfo: Any) -> dict[str, str]:
    """Key -> name, of all namespaces but that of the articles."""
    found = {}
    for element in siteinfo.iter("{*}namespace"):
        key, name = element.get("key") or "", (element.text or "").strip()
        if name and re.fullmatch(r"-?[0-9]{1,6}", key) and len(name) <= LONGEST_NAME:
            found[key] = name
    return dict(list(found.items())[:MOST_NAMESPACES])


def _article(page: Any, namespaces: dict[str, str], context: str | None) -> Article:
    title = page.findtext("{*}title") or ""
    namespace = page.findtext("{*}ns")
    text = page.findtext("{*}revision/{*}text") or ""
    if page.find("{*}redirect") is not None or _is_redirect(text):
        return Article(title, text, "redirect")
    prefix, colon, _ = title.partition(":")
    is_elsewhere = namespace is None and bool(colon) and folded(prefix) in set(map(folded, namespaces.values()))
    if namespace not in (None, "0") or is_elsewhere:
        return Article(title, text, "other_namespace")
    return Article(title, text, None if text.strip() else "empty", context)


def _is_redirect(text: str) -> bool:
    if text[:20].lstrip().upper().startswith("#REDIRECT"):
        return True
    match = REDIRECT.fullmatch(text[:1000])
    return match is not None and match["word"] == match["word"].upper()


def _forget(element: Any, *, itself: bool) -> None:
    """Free the elements read so far: a dump, and even the history of one page, may be larger than memory."""
    if itself:
        element.clear()
    while (previous := element.getprevious()) is not None:
        if not itself and local_name(previous) != "revision":
            break
        element.getparent().remove(previous)
