"""The main text of an HTML page, without its menus, by trafilatura.

In: the page as decoded text, from anywhere. Out: (title, text); empty text when there is none. Two things are done
to the tree before extraction. Line breaks inside <pre>, before headings and after paragraphs are carried through as
marks, because extraction joins lines of code that stands in lists, and sets no blank lines in plain text. Permalinks
after headings are taken out.
"""

import re
from typing import Any

from pipeline.stages.extraction import Extracted

# Stand for a line break and an indenting space inside <pre>; a page that holds them itself is taken as it is.
BREAK, INDENT = "\u23ce", "\u2423"
PERMALINKS = ("\u00b6", "#", "\u00a7", "")
LEADING_SPACE = re.compile(r"\n( +)")


def html_text(page: str) -> Extracted:
    import trafilatura

    tree = trafilatura.load_html(page)
    if tree is None:
        return Extracted("", extractor="trafilatura")
    title = " ".join((tree.findtext(".//title") or "").split()) or None
    for link in tree.xpath("//a[contains(@class, 'headerlink') or contains(@class, 'anchor')]"):
        if (link.text_content() or "").strip() in PERMALINKS:
            link.drop_tree()
    marked = BREAK not in page and INDENT not in page
    if marked:
        _mark(tree)
    text = trafilatura.extract(
        tree,
        output_format="txt",
        include_comments=False,
        include_tables=True,
        include_links=False,
        with_metadata=False,
    )
    return Extracted(_unmarked(text or "") if marked else text or "", title=title, extractor="trafilatura")


def _mark(tree: Any) -> None:
    for heading in tree.xpath("//h1|//h2|//h3|//h4|//h5|//h6"):
        heading.text = BREAK + (heading.text or "")
    for paragraph in tree.xpath("//p[not(parent::li or parent::dd or parent::td or parent::th)]"):
        if len(paragraph):
            paragraph[-1].tail = (paragraph[-1].tail or "") + BREAK
        elif paragraph.text:
            paragraph.text += BREAK
    for block in list(tree.iter("pre")):
        for line_break in block.findall(".//br"):
            line_break.tail = "\n" + (line_break.tail or "")
        listing = block.text_content().strip("\n")
        for child in list(block):  # coloured pieces without a letter would get lost
            block.remove(child)
        block.text = f"{BREAK}{_marked(listing)}{BREAK}" if "\n" in listing else listing


def _marked(text: str) -> str:
    return LEADING_SPACE.sub(lambda m: "\n" + INDENT * len(m[1]), text.expandtabs(4)).replace("\n", BREAK)


def _unmarked(text: str) -> str:
    text = re.sub(rf" ?{BREAK} ?", "\n", text)
    return re.sub(rf"{INDENT} ?", " ", text)
