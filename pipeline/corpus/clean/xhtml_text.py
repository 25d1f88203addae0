"""All text of an HTML page without menus, with its structure: chapters of a book, HTML parts of a mail.

In: the page as text. Out: its title, and its text as html_structure.py writes that of a web page. Nothing is dropped
by a score, because books consist of what extraction for web pages (html_text.py) takes for boilerplate, such as short
chapters or lists of persons. Only what is hidden is left out: nothing in a book or a mail can show it.
"""

from pipeline.corpus.clean.html_structure import structured
from pipeline.corpus.clean.html_text import page_blocks
from pipeline.corpus.clean.html_tree import xhtml_tree


def xhtml_text(page: str) -> tuple[str | None, str]:
    """Returns (title, text); both may be empty."""
    root = xhtml_tree(page)
    if root is None:
        return None, ""
    title = next((" ".join("".join(element.itertext()).split()) for element in root.iter("title")), None)
    return title or None, structured(page_blocks(root, with_hidden=False)[0])


def table_row(cells: list[str]) -> str:
    """A row of a Markdown table; characters that would end a cell or the row are removed from the cells."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
