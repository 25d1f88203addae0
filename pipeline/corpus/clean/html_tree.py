"""Parses an HTML page and writes into its tree as text what a plain reading would lose or falsify.

In: the decoded text of a page. Out: a tree of plain tag names, in which formulas (html_formulas.py), raised and
lowered text (html_superscripts.py) and listings (html_listings.py) say in text what the page shows, and
ruby is without its readings. The frame that Project Gutenberg puts around its books is left out, as plain_text.py
leaves it out of a text. Both readers of HTML (html_text.py, xhtml_text.py) read it.

Ruby: a base text stays and its reading goes, with its brackets, because a sentence with both is not one that anybody
wrote. A page of XML is parsed as XML, because HTML takes `<title/>` for an opening tag, any other as HTML.
"""

import html
import re
from typing import Any

from pipeline.corpus.clean.html_formulas import write_formulas
from pipeline.corpus.clean.html_listings import write_listings
from pipeline.corpus.clean.html_superscripts import write_superscripts
from pipeline.corpus.clean.zip_parts import xml_tree

NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
LONG_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9:-]{0,60})\s[^<>]{100000,}>")
LARGE_PAGE, MANY_ATTRIBUTES = 500_000, 10_000  # characters; parsers take time with the square of the number
NAMED_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
XML_ENTITIES = frozenset({"amp", "lt", "gt", "quot", "apos"})
XML_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
NOT_SHOWN = re.compile(r"display\s{0,9}:\s{0,9}none|visibility\s{0,9}:\s{0,9}hidden", re.IGNORECASE)
MAX_STYLE_CHARACTERS = 400  # longer ones are not written by people
PREFIXED = ("m:math", "mml:math", "epub:switch")
READINGS = ("rt", "rp", "rtc")
PARTS_OF_RUBY = ("rb", *READINGS)


def readable(page: str) -> str:
    """A page without characters that are no text, and without the attributes of an element that has thousands."""
    page = NOT_TEXT.sub("", page)
    return page if len(page) < LARGE_PAGE else LONG_TAG.sub(_with_few_attributes, page)


def _with_few_attributes(tag: re.Match[str]) -> str:
    return f"<{tag[1]}>" if len(tag[0].split()) > MANY_ATTRIBUTES else tag[0]


def html_tree(page: str) -> tuple[Any | None, bool]:
    """The root of the tree, None for a page without elements, and whether formulas or readings were rewritten.

    `page` is the result of `readable`.
    """
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False)
    try:
        root = lxml.html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError, ValueError):  # only spaces, comments or declarations
        return None, False
    if next(root.iter(*PREFIXED), None) is not None:
        _drop_prefixes(root)
    return root, _rewrite(root, page)


def xhtml_tree(page: str) -> Any | None:
    """The root of the tree of a page that is well-formed XML; any other page is parsed as HTML."""
    import lxml.etree

    page = XML_DECLARATION.sub("", page.replace("\0", ""))  # it declares an encoding, but the page is already decoded
    root = xml_tree(NAMED_ENTITY.sub(_character, page).encode(errors="replace"))
    if root is None:
        return html_tree(readable(page))[0]
    lxml.etree.strip_elements(root, lxml.etree.Entity, lxml.etree.Comment, with_tail=False)
    _drop_prefixes(root)
    _rewrite(root, page)
    return root


def is_not_shown(element: Any) -> bool:
    """Whether the element itself says that browsers hide it; text that a search can find is shown."""
    hidden = element.get("hidden")
    style = element.get("style")
    is_hidden = hidden is not None and hidden.lower() != "until-found"
    return is_hidden or (style is not None and NOT_SHOWN.search(style[:MAX_STYLE_CHARACTERS]) is not None)


def _rewrite(root: Any, page: str) -> bool:
    classes = "\n".join(root.xpath("//@class", smart_strings=False))
    has_formulas, has_ruby = write_formulas(root, page, classes), _drop_readings(root)
    has_frame = ("pg-header" in page or "pg-footer" in page) and _drop_frame(root)
    write_superscripts(root)
    write_listings(root, classes)
    if "shadowrootmode" in page:  # the one kind of template that is shown
        for template in [element for element in root.iter("template") if element.get("shadowrootmode")]:
            template.tag = "div"
    return has_formulas or has_ruby or has_frame


def _character(match: re.Match[str]) -> str:
    """Replaces named characters: XML has five of them, HTML two thousand."""
    return match[0] if match[1] in XML_ENTITIES else html.escape(html.unescape(match[0]), quote=False)


def _drop_prefixes(root: Any) -> None:
    """The names of elements without their namespace, so that <m:math> and <math> are alike."""
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2].rpartition(":")[2].lower()


def _drop_frame(root: Any) -> bool:
    frame = root.xpath("//*[@id='pg-header' or @id='pg-footer']")
    for element in frame:
        element.clear(keep_tail=True)
    return bool(frame)


def _drop_readings(root: Any) -> bool:
    rubies = list(root.iter("ruby"))
    for ruby in rubies:
        for part in list(ruby.iter(*READINGS)):
            _drop_reading(part)
        for part in ruby.iter():
            part.text = part.text and _joined(part.text)
            part.tail = part.tail if part is ruby else part.tail and _joined(part.tail)
    return bool(rubies)


def _drop_reading(reading: Any) -> None:
    """Without the text of a reading; in HTML it ends where the next part begins, even inside it."""
    reading.text = None
    for child in list(reading):
        if child.tag not in PARTS_OF_RUBY:
            child.clear()
        elif reading.tag == "rtc":
            child.tail = None


def _joined(text: str) -> str:
    """Line breaks of the source between the parts of a ruby are no spaces."""
    return text.strip() if "\n" in text else text
