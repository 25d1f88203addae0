"""Parses delimited text (csv, tsv), including malformed files, and converts a whole table to text.

In: lines of text. Out: records, one after the other, or `Extracted` with one row `| a | b |` per record.

An unterminated quote would swallow the rest of a file. So a record is rejected if its quotes are not where RFC 4180
expects them, if it is longer than MAX_RECORD_CHARACTERS, or if it spans several lines and has a different number of
cells than the first record: then its first line is read with quotes as ordinary characters, and reading continues at
the next line.
"""

import re

from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.xhtml_text import table_row
from pipeline.corpus.csv_records import ROW_END, SNIFFED_CHARACTERS, records, sniffed_delimiter

EXTRACTOR = "table"
WORD = re.compile(r"\w")


def table_text(text: str, delimiter: str | None = None) -> Extracted:
    """The whole table; unchanged lines if there is no delimiter."""
    text = ROW_END.sub("\n", text)
    delimiter = delimiter or sniffed_delimiter(text[:SNIFFED_CHARACTERS])
    if delimiter is None:
        return Extracted(text, extractor=EXTRACTOR, reason=None if WORD.search(text) else "no_text")
    rows = records(text.split("\n"), delimiter)
    filled = [table_row(cells) for cells in rows if any(cell.strip() for cell in cells)]
    return Extracted("\n".join(filled), extractor=EXTRACTOR, reason=None if filled else "no_text")
