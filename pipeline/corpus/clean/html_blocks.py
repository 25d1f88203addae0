"""Splits an HTML page into blocks: pieces of text that a browser displays separately, each with its place.

In: a parsed tree. Out: `Block`s in document order. A block is a run of inline text inside one block-level element; a
<pre> is one block with its line breaks. A place has what html_choice.py judges by (tags and class names around it)
and what html_structure.py writes (heading, list item, table cell). Scripts, form fields and permalinks give no
blocks.

One pass without recursion, so that depth costs nothing. Class names are read as sets of words, see CLASS_WORDS.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

from pipeline.corpus.clean.html_tree import is_not_shown
from pipeline.corpus.clean.list_numbers import BULLET, Numbering

LINE_BREAK = "\x1a"  # represents <br> until the white space of a block is collapsed
SKIPPED = frozenset(
    {
        "script",
        "style",
        "noscript",
        "template",
        "svg",
        "iframe",
        "object",
        "embed",
        "canvas",
        "head",
        "select",
        "option",
        "textarea",
        "input",
        "math",
        "video",
        "audio",
        "map",
        "applet",
        "datalist",
    }
)
BLOCK_LEVEL = frozenset(
    {
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "dialog",
        "dir",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "formula",
        "frame",
        "frameset",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hgroup",
        "hr",
        "html",
        "legend",
        "li",
        "main",
        "menu",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    }
)
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
WHOLE_PAGES = frozenset({"html", "body", "form"})  # their class names describe the page, not a part of it
PERMALINKS = ("\u00b6", "#", "\u00a7", "\U0001f517", "")

# Features by tag or ARIA role; the position in the tuple is the bit.
TAGS = (
    "nav",
    "footer",
    "header",
    "aside",
    "main",
    "article",
    "form",
    "button",
    "table",
    "li",
    "dl",
    "section",
    "blockquote",
    "figure",
    "label",
    "details",
    "dialog",
)
TAG_BITS = {tag: 1 << i for i, tag in enumerate(TAGS)} | {
    tag: 1 << TAGS.index(like) for tag, like in {"ul": "li", "ol": "li"}.items()
}
ROLE_BITS = {
    role: 1 << TAGS.index(like)
    for role, like in {
        "navigation": "nav",
        "menu": "nav",
        "menubar": "nav",
        "menuitem": "nav",
        "tablist": "nav",
        "contentinfo": "footer",
        "banner": "header",
        "complementary": "aside",
        "main": "main",
        "article": "article",
        "search": "form",
        "form": "form",
        "button": "button",
        "dialog": "dialog",
        "alertdialog": "dialog",
    }.items()
}
# Features by parts of class names and ids, as site builders use them.
CLASS_WORDS = {
    "nav": r"nav|menu|breadcrumb|pagination|pager|toc|tabs?\b",
    "footer": r"foot(?!note)|copyright|colophon|legal",
    "header": r"header|masthead|topbar|top-bar|(?<!code-)toolbar",
    "side": r"side|rail|widget|column-right",
    "related": r"relat|recommend|similar|trending|popular|also|more-|latest|recent|upsell|cross|carousel|slider"
    r"|suggest|featured",
    "share": r"share|sharing|social|follow|facebook|twitter|\bprint",
    "comment": r"comment(?!ary|ator)|disqus|respond|discussion",
    "reply": r"repl|post|message|answer|thread|topic",
    "overlay": r"cookie|consent|gdpr|popup|modal|overlay|banner|promo|dialog|drawer|alert|notice|toast",
    "ads": r"\bad\b|\bads?[-_]|advert|sponsor|dfp|outbrain|taboola",
    "signup": r"newsletter|subscri|sign-?up|login|signin|register|cta|optin",
    "meta": r"meta|byline|author|date|time|tag|categor|breadcrumb|info|label|badge",
    "content": r"content|article|entry|body|story|text|prose|rich|rte|wysiwyg|markdown",
    "main": r"main|primary|single|page",
    "product": r"product|desc|detail|spec|feature|summary|overview|tab-?panel|accordion",
    "item": r"card|item|grid|list|tile|result|collection",
    "review": r"review|rating|testimonial|quote|feedback",
    "form": r"form|search|filter|sort|facet|cart|checkout|wishlist|btn|button|quantity|swatch|variant",
    "hidden": r"hidden|sr-only|visually|screen-reader|skip|invisible|hide|collapse|offscreen",
    "price": r"price|cost|amount|sku|stock|shipping|delivery",
    "faq": r"faq|question|answer|accordion",
    "hero": r"hero|jumbotron|intro|lead|title|heading|headline",
}
CLASSES = tuple(CLASS_WORDS)
HIDDEN = 1 << CLASSES.index("hidden")
# Class names of visitors' comments, in several languages, and what is no comment although its name says so.
COMMENT_NAME = re.compile(r"comment(?!ary|ator)|komment(?!ator)|comentari|reactie|disqus", re.IGNORECASE)
NO_COMMENT_NAME = re.compile(
    r"topic|message|forum|review|rating|feedback|fdbk|answer|question"  # posts of forums, opinions of buyers
    r"|(?:^|[\s_-])(?:no|has|with|enable|allow|show|open|closed?|latest|recent|popular)[-_]?comment"
    r"|comments?[-_](?:open|closed|count|number|link|off|on)\b",
    re.IGNORECASE,
)
LINE_BREAKS = re.compile(f" ?{LINE_BREAK} ?")
STANZAS = re.compile(r"\n{3,}")
_PATTERNS = tuple(re.compile(pattern) for pattern in CLASS_WORDS.values())
MAX_CLASS_CHARACTERS = 400  # per attribute; longer ones are not written by people


@dataclass(slots=True, eq=False)
class Item:
    """A list item: `marker` is "- " or "3. ", `depth` is 0 if the list is not inside another one."""

    marker: str
    depth: int


@dataclass(slots=True, eq=False)
class Table:
    is_layout: bool = False  # contains headings, code or tables: not a data table


@dataclass(slots=True, eq=False)
class Row:
    table: Table
    is_header: bool = False
    n_cells: int = 0


@dataclass(slots=True, eq=False)
class Place:
    """A block-level element.

    `tags`: bits of TAGS of it and its ancestors. Bits of CLASSES: `own` of it, `classes` of it and its parent,
    `around` of it and its ancestors.
    """

    tag: str
    tags: int = 0
    own: int = 0
    classes: int = 0
    around: int = 0
    depth: int = 0
    signature: tuple[str, str] = ("", "")
    item: Item | None = None
    row: Row | None = None
    cell: int = -1
    outer_list: "Place | None" = None  # the outermost list that contains it
    numbering: Numbering | None = None  # of the innermost list that contains it
    comment: "Place | None" = None  # the innermost element around it that is called a comment, or itself
    above: "Place | None" = None  # the element around it
    first: int = 0  # the number of blocks before it
    end: int = 0  # the number of blocks before its end


@dataclass(slots=True, eq=False)
class Block:
    text: str
    link_characters: int
    place: Place


@dataclass(slots=True)
class _Reading:
    places: list[Place] = field(default_factory=lambda: [Place("body")])
    blocks: list[Block] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    link_characters: int = 0
    n_links: int = 0  # open <a>

    def add(self, text: str | None) -> None:
        if text:
            self.pieces.append(text)
            if self.n_links:
                self.link_characters += len(text.strip())

    def begin(self, place: Place) -> None:
        self.flush()
        place.first = len(self.blocks)
        self.places.append(place)

    def flush(self) -> None:
        if not self.pieces:
            return
        text = " ".join("".join(self.pieces).split())
        if LINE_BREAK in text:
            text = STANZAS.sub("\n\n", LINE_BREAKS.sub("\n", text)).strip("\n")
        if text:
            self.blocks.append(Block(text, self.link_characters, self.places[-1]))
        self.pieces, self.link_characters = [], 0


def blocks_of(tree: Any, *, with_noscript: bool = False, with_hidden: bool = True) -> list[Block]:
    """The blocks of a page; `with_noscript` includes what a page shows if scripts do not run.

    Inline text that is hidden is left out. A hidden block is one that a script may show, such as the text of a tab:
    it is left out without `with_hidden`, otherwise its place tells that it is hidden.
    """
    reading = _Reading()
    skipped = SKIPPED - {"noscript"} if with_noscript else SKIPPED
    # a page with a second <html> has a second root, which may contain its text
    for root in [tree, *tree.itersiblings(tag="html")]:
        _read(reading, root, skipped, BLOCK_LEVEL if with_hidden else frozenset())
        reading.flush()
        reading.places[0].end = len(reading.blocks)
        del reading.places[1:]
    return reading.blocks


def _read(reading: _Reading, root: Any, skipped: frozenset[str], shown: frozenset[str]) -> None:
    """`shown`: tags of elements that are read although they are hidden."""
    import lxml.etree

    walk = lxml.etree.iterwalk(root, events=("start", "end"))
    passed = None  # the last element that was not read
    for event, element in walk:
        tag = element.tag
        if event == "end":
            if element is passed:
                reading.add(element.tail)
            else:
                _close(reading, element, tag)
        elif (
            tag in skipped or (tag == "a" and _is_permalink(element)) or (tag not in shown and is_not_shown(element))
        ):
            if tag in BLOCK_LEVEL:
                reading.flush()
            passed = element
            walk.skip_subtree()
        elif tag == "pre":
            reading.begin(_place(reading.places[-1], element, tag))
            if listing := "".join(element.itertext()):
                reading.blocks.append(Block(listing, 0, reading.places[-1]))
            walk.skip_subtree()
        else:
            _open(reading, element, tag)


def _open(reading: _Reading, element: Any, tag: str) -> None:
    if tag in BLOCK_LEVEL or _is_comment(tag):
        reading.begin(_place(reading.places[-1], element, tag))
    elif tag == "br":
        reading.pieces.append(LINE_BREAK)
    elif tag == "a":
        reading.n_links += 1
    elif tag == "button":
        reading.pieces.append(" ")
    reading.add(element.text)


def _close(reading: _Reading, element: Any, tag: str) -> None:
    if tag in BLOCK_LEVEL or _is_comment(tag):
        reading.flush()
        reading.places.pop().end = len(reading.blocks)
    elif tag == "a":
        reading.n_links -= 1
    elif tag == "button":
        reading.pieces.append(" ")
    reading.add(element.tail)


def _place(parent: Place, element: Any, tag: str) -> Place:
    attributes = element.attrib
    classes = attributes.get("class", "")
    # the id of a heading or of the section below it repeats the words of the heading
    is_section = tag in HEADINGS or (tag == "section" and not classes) or classes == "section"
    name = f"{classes} {'' if is_section else attributes.get('id', '')}"[:MAX_CLASS_CHARACTERS]
    own = _class_bits(name) if name != " " and tag != "pre" else 0  # a listing's class tells its language
    if attributes.get("aria-hidden") == "true" or is_not_shown(element):
        own |= HIDDEN
    role = attributes.get("role", "")
    place = Place(
        tag,
        parent.tags | TAG_BITS.get(tag, 0) | ROLE_BITS.get(role, 0),
        own,
        own | parent.own,
        own | parent.around,
        parent.depth + 1,
        (tag, name),
        parent.item,
        parent.row,
        parent.cell,
        parent.outer_list,
        parent.numbering,
        parent.comment,
        parent,
    )
    if _is_comment_name(classes[:MAX_CLASS_CHARACTERS]) or (
        role == "comment"
        or attributes.get("itemprop") == "comment"
        or "comment" in attributes.get("data-testid", "")
        or _is_comment(tag)
    ):
        place.comment = place if tag not in WHOLE_PAGES else None
    _set_part(place, parent, element, tag)
    return place


def _set_part(place: Place, parent: Place, element: Any, tag: str) -> None:
    """What a place is of a list or a table."""
    if tag in ("ol", "ul", "menu", "dir"):
        place.numbering = Numbering.of(element)
    if place.outer_list is None and tag in ("ul", "ol", "dl"):
        place.outer_list = place
    if tag == "li":
        marker = BULLET if parent.numbering is None else parent.numbering.marker(element)
        place.item = Item(marker, 0 if parent.item is None else parent.item.depth + 1)
    elif tag in HEADINGS or tag == "pre" or tag == "table":
        if parent.row is not None:
            parent.row.table.is_layout = True
        if tag == "table":
            place.row, place.cell = Row(Table()), -1
    elif tag == "tr" and parent.row is not None:
        place.row, place.cell = Row(parent.row.table), -1
    elif tag in ("td", "th") and parent.row is not None:
        place.cell = parent.row.n_cells
        parent.row.n_cells += 1
        parent.row.is_header = tag == "th" and (place.cell == 0 or parent.row.is_header)


@lru_cache(maxsize=20_000)
def _is_comment_name(name: str) -> bool:
    return COMMENT_NAME.search(name) is not None and NO_COMMENT_NAME.search(name) is None


def _is_comment(tag: str) -> bool:
    """Whether a site has defined an element for comments: <site-comment>."""
    return "-" in tag and "comment" in tag


@lru_cache(maxsize=20_000)
def _class_bits(name: str) -> int:
    bits = 0
    for word in name.lower().split():
        bits |= _word_bits(word)
    return bits


@lru_cache(maxsize=50_000)
def _word_bits(word: str) -> int:
    return sum(1 << i for i, pattern in enumerate(_PATTERNS) if pattern.search(word))


def _is_permalink(link: Any) -> bool:
    name = link.get("class")
    if not name or not ("headerlink" in name or "anchor" in name):
        return False
    return "".join(islice(link.itertext(), 4)).strip() in PERMALINKS


def row_of(block: Block) -> Row | None:
    """The row of a data table that contains the block, or None."""
    row = block.place.row
    return None if row is None or row.table.is_layout or row.n_cells < 2 else row
