"""Writes the blocks of a page as text with their structure, in the notation of Markdown.

In: the blocks to keep, in document order. Out: text. Headings begin with #, items of lists with "- " or their number,
data tables are rows between |, listings are fenced with their line breaks and indentation, everything else is a
paragraph. Tables that only lay out a page (they contain headings, listings, tables or long texts) become paragraphs.
The text is otherwise unchanged and not escaped, except for a | inside a cell.
"""

from itertools import groupby

from pipeline.corpus.clean.extraction import fence_around
from pipeline.corpus.clean.html_blocks import HEADINGS, Block, Item, Row, Table, row_of

MAX_CELL_CHARACTERS = 1_000  # a longer cell contains running text
MAX_CELLS = 200  # per row


def structured(blocks: list[Block]) -> str:
    parts: list[str] = []
    table: Table | None = None  # of the previous part, if that was a row
    begun: Item | None = None  # list item of the previous part
    for row, members in groupby(blocks, key=row_of):
        group = list(members)
        line = None if row is None else _row_line(row, group)
        if row is not None and line is not None:
            parts.append(("\n" if table is row.table else "\n\n") + line)
            if table is not row.table:
                parts.append("\n| " + " | ".join(["---"] * row.n_cells) + " |")
            table, begun = row.table, None
            continue
        for block in group:
            item = block.place.item
            parts.append("\n" if item is not None and begun is not None else "\n\n")
            parts.append(_block_text(block, item, item is not begun))
            table, begun = None, item
    return "".join(parts).strip("\n")


def _row_line(row: Row, members: list[Block]) -> str | None:
    """The cells of a row, or None if it is not a row of data."""
    if row.n_cells > MAX_CELLS:
        return None
    cells = [""] * row.n_cells
    for block in members:
        if block.place.cell < 0:
            return None
        text = " ".join(block.text.split()).replace("|", "\\|")
        cells[block.place.cell] = f"{cells[block.place.cell]} {text}".strip()
    if max(map(len, cells)) > MAX_CELL_CHARACTERS:
        return None
    return "| " + " | ".join(cells) + " |"


def _block_text(block: Block, item: Item | None, opens_item: bool) -> str:
    tag, text = block.place.tag, block.text
    if tag == "pre":
        text = _listing(text)
    elif tag in HEADINGS:
        text = f"{'#' * int(tag[1])} {' '.join(text.split())}"
    if item is None:
        return text
    margin = "  " * min(item.depth, 8)
    first = item.marker if opens_item and tag != "pre" else " " * len(item.marker)
    return margin + first + text.replace("\n", "\n" + margin + " " * len(item.marker))


def _listing(text: str) -> str:
    lines = [line.rstrip() for line in text.expandtabs(4).replace("\r\n", "\n").split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    fence = fence_around("\n".join(lines))
    return "\n".join([fence, *lines, fence])
