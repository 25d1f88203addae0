"""All text of an HTML page without menus, with its structure: chapters of a book, HTML parts of a mail.

In: the page as text. Out: Markdown-like text: headings with '#', lists with '- ' or numbers, tables as rows `| a | b
|`, code with its line breaks. Nothing is dropped by a score, because books consist of what extraction for web pages
(html_text.py) takes for boilerplate, such as short chapters or lists of persons.

A well-formed page is parsed as XML, because HTML takes `<title/>` for an opening tag, any other as HTML. The tree is
walked with an explicit stack, so its depth needs no recursion.
"""

import html
import re
from typing import Any

from pipeline.corpus.clean.html_blocks import BLOCK_LEVEL
from pipeline.corpus.clean.zip_parts import local_name, xml_tree

HEADINGS = {f"h{level}": level for level in range(1, 7)}
DROPPED = frozenset({"head", "script", "style", "template", "noscript", "svg", "iframe", "object", "audio", "video"})
NO_BLOCKS = frozenset(
    {"dialog", "dir", "frame", "frameset", "hgroup", "legend", "menu"}
)  # not found in books and mail
ROW_PARTS = frozenset({"tbody", "td", "tfoot", "th", "thead"})  # of a table that only lays out a page
BLOCKS = BLOCK_LEVEL - NO_BLOCKS - ROW_PARTS
NAMED_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]{1,31});")
XML_ENTITIES = frozenset({"amp", "lt", "gt", "quot", "apos"})
XML_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
WHITE = re.compile(r"[ \t\r\n\f]+")
WHITE_RUN = re.compile(r"[ \t]{2,}")
LINE_SPACE = re.compile(r" *\n *")
MAX_HEADING_CHARACTERS = 300  # a longer one is a paragraph in large type


def xhtml_text(page: str) -> tuple[str | None, str]:
    """Returns (title, text); both may be empty."""
    root = _tree(page)
    if root is None:
        return None, ""
    title = next((_flat(element) for element in root.iter() if local_name(element) == "title"), None)
    return title or None, _Renderer().text(root)


def table_row(cells: list[str]) -> str:
    """A row of a Markdown table; characters that would end a cell or the row are removed from the cells."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _tree(page: str) -> Any | None:
    from lxml import etree  # type: ignore[attr-defined]  # a C extension without types
    from lxml import html as lxml_html

    page = XML_DECLARATION.sub("", page.replace("\0", ""))  # it declares an encoding, but the page is already decoded
    root = xml_tree(NAMED_ENTITY.sub(_character, page).encode(errors="replace"))
    if root is not None:
        return root
    parser = lxml_html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        return lxml_html.document_fromstring(page.encode(errors="replace"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None


def _character(match: re.Match[str]) -> str:
    """Replaces named characters: XML has five of them, HTML two thousand."""
    return match[0] if match[1] in XML_ENTITIES else html.escape(html.unescape(match[0]), quote=False)


def _flat(element: Any) -> str:
    return " ".join("".join(_texts(element)).split())


def _texts(element: Any) -> list[str]:
    """Text pieces below `element`, without the content of entities and comments."""
    pieces = []
    for node in element.iter():
        if isinstance(node.tag, str) and node.text:
            pieces.append(node.text)
        if node is not element and node.tail:
            pieces.append(node.tail)
    return pieces


class _Renderer:
    """Walks a tree; `blocks` contains finished blocks, `pieces` the block that is being written."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.pieces: list[str] = []
        self.prefix = ""  # of the block that is being written: '## ', '- '
        self.lists: list[int | None] = []  # counter of each open list; None = without numbers
        self.was_tight = False  # whether the last block was an item of a list

    def text(self, root: Any) -> str:
        # (element, leaving): an element is visited twice, before and after its content
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            element, leaving = stack.pop()
            name = local_name(element).lower()
            if leaving:
                self._leave(name)
            elif name == "pre":
                self._code(element)
            elif name == "table" and self._is_data(element):
                self._table(element)
            elif name and name not in DROPPED:
                self._enter(element, name)
                stack.append((element, True))
                stack.extend((child, False) for child in reversed(element))
                continue
            if element.tail and element is not root:
                self.pieces.append(WHITE.sub(" ", element.tail))
        self._finish()
        return "\n".join(self.blocks)

    def _enter(self, element: Any, name: str) -> None:
        if name in BLOCKS:
            self._finish()
        if name in HEADINGS:
            self.prefix = "#" * HEADINGS[name] + " "
        elif name in ("ul", "ol"):
            self.lists.append(0 if name == "ol" else None)
        elif name == "li":
            self.prefix = self._item_prefix()
        elif name in ("br", "hr"):
            self.pieces.append("\n")
        elif name in ("td", "th"):
            self.pieces.append(" ")
        if element.text:
            self.pieces.append(WHITE.sub(" ", element.text))

    def _leave(self, name: str) -> None:
        if name in BLOCKS:
            self._finish()
        if name in ("ul", "ol") and self.lists:
            self.lists.pop()

    def _item_prefix(self) -> str:
        if not self.lists or self.lists[-1] is None:
            return "  " * max(0, len(self.lists) - 1) + "- "
        self.lists[-1] += 1
        return "  " * (len(self.lists) - 1) + f"{self.lists[-1]}. "

    def _finish(self) -> None:
        """End the block that is being written, if it has visible text."""
        block = LINE_SPACE.sub("\n", WHITE_RUN.sub(" ", "".join(self.pieces))).strip()
        self.pieces = []
        if not block:
            return
        if self.prefix.startswith("#"):
            block = " ".join(block.split())
            self.prefix = self.prefix if len(block) <= MAX_HEADING_CHARACTERS else ""
        self._add(
            self.prefix + block, tight=self.prefix.lstrip().startswith("-") or self.prefix.strip()[:1].isdigit()
        )
        self.prefix = ""

    def _add(self, block: str, *, tight: bool = False) -> None:
        """Add a block; there is no blank line between items of a list."""
        if self.blocks and not (tight and self.was_tight):
            self.blocks.append("")
        self.blocks.append(block)
        self.was_tight = tight

    def _code(self, element: Any) -> None:
        self._finish()
        for line_break in element.iter():
            if local_name(line_break).lower() == "br":
                line_break.tail = "\n" + (line_break.tail or "")
        code = "".join(_texts(element)).strip("\r\n")
        if code.strip():
            self._add(code.rstrip())

    def _is_data(self, table: Any) -> bool:
        """Whether it is a data table. A layout table contains tables or headings, or has a single column."""
        names = [local_name(node).lower() for node in table.iterdescendants()]
        if "table" in names or any(name in HEADINGS for name in names):
            return False
        return any(_n_cells(row) > 1 for row in table.iterdescendants() if local_name(row).lower() == "tr")

    def _table(self, table: Any) -> None:
        self._finish()
        rows = []
        for row in table.iterdescendants():
            name = local_name(row).lower()
            if name == "caption" and (caption := _flat(row)):
                self._add(caption)
            elif name == "tr":
                rows.append(table_row([_flat(cell) for cell in row if local_name(cell).lower() in ("td", "th")]))
        self._add("\n".join(rows))


def _n_cells(row: Any) -> int:
    return sum(local_name(cell).lower() in ("td", "th") for cell in row)
