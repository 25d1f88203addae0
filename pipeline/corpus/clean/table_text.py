"""Rows of delimited text (csv, tsv), whoever wrote it, and a whole table as text.

In: lines of text. Out: records, one after the other, or `Extracted` with a row `| a | b |` for each.

A quote that is opened and never closed would swallow the rest of a file. So a record is taken back when its quotes
do not stand where RFC 4180 wants them, when it gets longer than MAX_RECORD_CHARACTERS, and, if it spans several
lines, when it has another number of cells than the first record: its first line is then read with quotes as plain
signs, and reading goes on at the next line.
"""

import re

from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.xhtml_text import table_row
from pipeline.corpus.csv_records import ROW_END, SNIFFED_CHARACTERS, records, sniffed_delimiter

EXTRACTOR = "table"
WORD = re.compile(r"\w")


def table_text(text: str, delimiter: str | None = None) -> Extracted:
    """The whole table; lines as they are where no delimiter can be seen."""
    text = ROW_END.sub("\n", text)
    delimiter = delimiter or sniffed_delimiter(text[:SNIFFED_CHARACTERS])
    if delimiter is None:
        return Extracted(text, extractor=EXTRACTOR, reason=None if WORD.search(text) else "no_text")
    rows = records(text.split("\n"), delimiter)
    filled = [table_row(cells) for cells in rows if any(cell.strip() for cell in cells)]
    return Extracted("\n".join(filled), extractor=EXTRACTOR, reason=None if filled else "no_text")
