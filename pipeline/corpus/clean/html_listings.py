"""Writes every listing of an HTML page into its tree as one <pre> of plain text, with a line for each line.

In: the tree of a page. Out: the same tree. In a <pre>, an element that browsers display as a block or that its class
calls a line is a line, whether a line break stands between two of them or not; numbers of lines are left out. Tables
and editors that show code without a <pre> become one, and so does a <code> of several lines.

Covers the markup of Pygments (Sphinx, GitHub Pages), Rouge, Chroma, Prism, Shiki, highlight.js, SyntaxHighlighter
(Confluence), Crayon, the pages of GitHub and GitLab, WeChat, and the editors CodeMirror, Monaco and Ace.
"""

import re
from itertools import islice
from typing import Any

LISTINGS = (
    "//pre | //xmp | //listing | //plaintext | //code[contains(., '\n') or .//br or .//span or .//div][@class]"
    " | //*[self::div or self::table][contains(@class, 'syntaxhighlighter') or contains(@class, 'CodeMirror-code')"
    " or contains(@class, 'cm-content') or contains(@class, 'view-lines') or contains(@class, 'ace_text-layer')"
    " or contains(@class, 'crayon-pre') or contains(@class, 'file-line-container')"
    " or contains(@class, 'react-code-lines') or contains(@class, 'hljs-ln')]"
)
NUMBERED = (
    "//*[contains(@class, 'gutter') or contains(@class, 'ine-num') or contains(@class, 'ineno')"
    " or contains(@class, 'inenum') or contains(@class, 'ln') or contains(@class, 'blob-num')"
    " or contains(@class, 'crayon-num') or contains(@class, 'rouge')]"
)
TAGS = ("pre", "code", "xmp", "listing", "plaintext")
EDITORS = ("syntaxhighlighter", "CodeMirror-code", "cm-content", "view-lines", "ace_text-layer", "crayon-pre")
EDITORS += (
    "file-line-container",
    "react-code-lines",
    "hljs-ln",
)  # classes of what shows code without any of these tags
NUMBER_CLASS = re.compile(
    r"gutter|line-?num|lineno|CodeMirror-linenumber|(?:^|\s)(?:ln|lnt|blob-num|crayon-nums?)(?:\s|$)|hljs-ln-n"
)
CODE_CLASS = re.compile(r"language-|\blang-|hljs|prettyprint|brush|highlight|sourceCode|(?:^|\s)code(?:\s|$)")
LINE_CLASS = re.compile(
    r"(?:^|[\s_-])(?:line|cl)(?:[\s\d]|$)|token-line|code-?line|view-line|ace_line|cm-line|hljs-ln-line"
)
LINE_STYLE = re.compile(r"display\s{0,9}:\s{0,9}(?:block|grid|flex)")
LINE_TAGS = frozenset(
    {"div", "p", "li", "tr", "pre", "dt", "dd", "section", "article", "blockquote"} | {f"h{i}" for i in range(1, 7)}
)
ROWS = frozenset({"table", "tbody", "thead", "tfoot", "tr", "ol", "ul"})
CELLS = frozenset({"td", "th"}) | ROWS
NOT_CODE = frozenset({"script", "style", "button", "select", "textarea", "svg", "template", "math"})
EDITOR_CLASS = re.compile(r"monaco|\bace_|CodeMirror|\bcm-|syntaxhighlighter|crayon|react-code|highlight|chroma")
MAX_LISTINGS = 20_000
MAX_ABOVE = 12  # ancestors


def write_listings(root: Any, classes: str) -> None:
    """`classes` has the class names of the elements of the tree."""
    if next(root.iter(*TAGS), None) is None and not any(name in classes for name in EDITORS):
        return
    if NUMBER_CLASS.search(classes):
        _drop_numbers(root)
    _drop_counts(root)
    gone = set[Any]()
    for element in root.xpath(LISTINGS)[:MAX_LISTINGS]:
        if element in gone or not _is_listing(element):
            continue
        inside = list(element.iterdescendants())
        gone.update(inside)
        if inside or element.tag != "pre":
            _replace(element, listing(element))


def _is_listing(element: Any) -> bool:
    if element.tag == "code":
        return CODE_CLASS.search(element.get("class", "")) is not None and "\n" in listing(element)
    if element.tag in ("div", "table"):
        return next(element.iter("pre"), None) is None or "CodeMirror-code" in element.get("class", "")
    return True


def _replace(element: Any, text: str) -> None:
    name, tail = element.get("class"), element.tail
    element.clear()
    element.tag, element.text, element.tail = "pre", text, tail
    if name:
        element.set("class", name)


class _Lines:
    """The text of a listing; `due` is the number of line breaks before what follows."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.due = 0
        self.is_begun = False  # whether the open line has text
        self.is_block = False  # whether the last line is an element that browsers display as a block

    def add(self, text: str) -> None:
        if self.due and not text.strip() and "\n" in text:  # the line breaks between the elements of two lines
            self.due = self.due if self.is_block else text.count("\n")
            return
        if self.due and not self.is_block and text.startswith("\n"):
            self.due = 0
        self._end_lines()
        self.pieces.append(text)
        self.is_begun = True

    def open(self) -> None:
        if not self.due and self.pieces and not self.pieces[-1].endswith("\n"):
            self.due = 1
        self._end_lines()
        self.is_begun = False

    def close(self, *, is_block: bool) -> None:
        if not self.due and self.is_begun and self.pieces[-1].endswith("\n"):
            self.pieces[-1] = self.pieces[-1][:-1]
        self.due, self.is_block = max(1, self.due), is_block

    def _end_lines(self) -> None:
        if self.due:
            self.pieces.append("\n" * self.due)
        self.due = 0


def listing(element: Any) -> str:
    """The lines of a listing, without what is not code."""
    import lxml.etree

    lines = _Lines()
    open_elements: list[bool] = []  # whether each is a line
    has_code_lines = _has_code_lines(element)
    walk = lxml.etree.iterwalk(element, events=("start", "end"))
    for event, part in walk:
        if event == "start":
            is_code = part.tag not in NOT_CODE
            is_line = is_code and part is not element and _is_line(part, has_code_lines)
            open_elements.append(is_line)
            if is_line:
                lines.open()
            if not is_code:
                walk.skip_subtree()
            elif text := "\n" if part.tag == "br" else part.text:
                is_between = part.tag in ROWS or (len(part) > 0 and part[0].tag in LINE_TAGS)
                if text.strip() or not is_between:
                    lines.add(text)
        else:
            if open_elements.pop():
                lines.close(is_block=part.tag in LINE_TAGS)
            tail = None if part is element else part.tail
            if tail and (tail.strip() or part.tag not in CELLS):
                lines.add(tail)
    return "".join(lines.pieces)


def _is_line(element: Any, is_code_line: bool) -> bool:
    tag = element.tag
    if tag in LINE_TAGS:
        return True
    if tag == "code":
        return is_code_line
    if tag != "span":
        return False
    name = element.get("class")
    return bool(
        (name and LINE_CLASS.search(name))
        or (name is None and element.get("data-line") is not None)
        or ((style := element.get("style")) and LINE_STYLE.search(style))
    )


def _has_code_lines(element: Any) -> bool:
    """Whether a <pre> has a <code> for each line, with nothing but line breaks between."""
    children = list(islice(element, 3))
    return (
        len(children) > 1
        and all(child.tag == "code" for child in element)
        and not (element.text or "").strip()
        and all(not (tail := child.tail or "") or (not tail.strip() and "\n" in tail) for child in element)
    )


def _drop_numbers(root: Any) -> None:
    """Numbers of lines, known by the class of their element."""
    for element in root.xpath(NUMBERED):
        is_numbered = NUMBER_CLASS.search(element.get("class")) and _is_numbers(element)
        if is_numbered and any(map(_contains_code, islice(element.iterancestors(), MAX_ABOVE))):
            element.clear(keep_tail=True)
            element.tag = element.tag if element.tag in CELLS else "span"  # no line of its own


def _drop_counts(root: Any) -> None:
    """Numbers that count the lines of the listing beside them."""
    rows = [next(pre.iterancestors("tr"), None) for pre in islice(root.iter("pre"), MAX_LISTINGS)]
    for row in dict.fromkeys(row for row in rows if row is not None):
        cells = [cell for cell in islice(row, 3) if cell.tag in ("td", "th")]
        if len(cells) == 2 and _is_count("\n".join(cells[0].itertext()).split()):
            cells[0].clear(keep_tail=True)


def _contains_code(element: Any) -> bool:
    return element.tag in ("pre", "code", "table") or EDITOR_CLASS.search(element.get("class") or "") is not None


def _is_numbers(element: Any) -> bool:
    text = "".join(element.itertext())
    return not text.strip(" \t\n\r\u00a0|:.") or all(word.strip("|:.").isdigit() for word in text.split())


def _is_count(words: list[str]) -> bool:
    if len(words) < 2 or not all(word.isdigit() and len(word) < 9 for word in words):
        return False
    first = int(words[0])
    return all(int(word) == first + i for i, word in enumerate(words))
