"""The text of a PDF file, from its text layer, by pypdfium2.

In: the bytes of the file. Out: `Extracted`: paragraphs, headings, lists and code that pdf_layout.py finds in the
lines of all pages. A scanned file has no text layer and gives no_text; there is no character recognition. Not kept:
pictures, forms, annotations, attachments; a table becomes lines of words.

An unreadable page is skipped; the file is unreadable if all of its pages are.
"""

import ctypes
import re
from typing import TYPE_CHECKING

from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.pdf_layout import Line, Outline, laid_out

if TYPE_CHECKING:
    import pypdfium2 as pdfium

EXTRACTOR = "pdfium"
MAX_CHARACTERS = 50_000_000  # limit for all pages together
MAX_OUTLINE = 5000  # entries of the outline that are read
MAX_OUTLINE_DEPTH = 8
FONT_NAME_BYTES = 128
FIXED_PITCH = 1  # ISO 32000-1, table 123
FIXED_NAME = re.compile(rb"mono|courier|consol|typewriter|cmtt|lmtt|sftt|inconsolata", re.IGNORECASE)
LINE_END = re.compile(r"\r\n|\r|\n")
NO_TITLE = re.compile(r"untitled|title|microsoft (word|powerpoint) - .*|.*\.(docx?|tex|dvi|indd|pdf|pptx?|qxd)", re.I)


def pdf_text(content: bytes) -> Extracted:
    """The text of a PDF. Never raises for a broken one: `reason` is unreadable, encrypted, no_text or too_large."""
    import pypdfium2 as pdfium
    import pypdfium2.raw as raw

    _fault(b"")  # pdfium keeps the error of the previous file, and would report it for a file without pages
    try:
        document = pdfium.PdfDocument(content)
    except pdfium.PdfiumError:
        reason = "encrypted" if _fault(content) == raw.FPDF_ERR_PASSWORD else "unreadable"
        return Extracted("", extractor=EXTRACTOR, reason=reason)
    with document:
        pages, n_characters = [], 0
        for number in range(len(document)):
            lines = _page_lines(document, number)
            if lines is None:
                continue
            pages.append(lines)
            n_characters += sum(len(line.text) for line in lines)
            if n_characters > MAX_CHARACTERS:
                return Extracted("", extractor=EXTRACTOR, reason="too_large")
        if not pages:
            return Extracted("", extractor=EXTRACTOR, reason="unreadable")
        if not n_characters:
            return Extracted("", extractor=EXTRACTOR, reason="no_text")
        text, heading = laid_out(pages, _outline(document))
        return Extracted(text, title=_title(document) or heading, extractor=EXTRACTOR)


def _fault(content: bytes) -> int | None:
    """The error code with which pdfium rejects a file, or None."""
    import pypdfium2 as pdfium

    try:
        pdfium.PdfDocument(content).close()
    except pdfium.PdfiumError as error:
        return error.err_code
    return None


def _page_lines(document: "pdfium.PdfDocument", number: int) -> list[Line] | None:
    """The lines of a page in the order of the file; None for an unreadable page."""
    import pypdfium2 as pdfium

    try:
        page = document[number]
        height = page.get_height()
        text_page = page.get_textpage()
        text = text_page.get_text_range()
    except pdfium.PdfiumError:
        return None
    lines, start = [], 0
    for end_of_line in [*LINE_END.finditer(text), None]:
        end = len(text) if end_of_line is None else end_of_line.start()
        if words := text[start:end].strip():
            first = start + len(text[start:end]) - len(text[start:end].lstrip())
            lines.append(_line(text_page.raw, words, first, number, height))
        start = end if end_of_line is None else end_of_line.end()
    text_page.close()
    page.close()
    return lines


def _line(raw_page: object, words: str, first: int, number: int, height: float) -> Line:
    """`first` is the index of the first character; indices are exact except for characters beyond 16 bits."""
    start, end = _box(raw_page, first), _box(raw_page, first + len(words) - 1)
    return Line(
        text=words,
        page=number,
        left=start[0],
        right=max(end[1], start[1]),
        bottom=start[2],
        size=round(start[3] - start[2], 1),
        place=start[2] / height if height > 0 else 0.5,
        fixed=_is_fixed(raw_page, first) and _is_fixed(raw_page, first + len(words) - 1),
    )


def _is_fixed(raw_page: object, index: int) -> bool:
    """Whether a character is in a fixed-pitch font."""
    import pypdfium2.raw as raw

    flags, name = ctypes.c_int(), ctypes.create_string_buffer(FONT_NAME_BYTES)
    raw.FPDFText_GetFontInfo(raw_page, index, name, FONT_NAME_BYTES, flags)
    return bool(flags.value & FIXED_PITCH) or FIXED_NAME.search(name.value) is not None


def _box(raw_page: object, index: int) -> tuple[float, float, float, float]:
    """left, right, bottom and top of a character as its font draws it, in points."""
    import pypdfium2.raw as raw

    box = raw.FS_RECTF()
    if not raw.FPDFText_GetLooseCharBox(raw_page, index, box):
        return 0.0, 0.0, 0.0, 0.0
    return box.left, box.right, box.bottom, box.top


def _outline(document: "pdfium.PdfDocument") -> Outline:
    """(page, title) -> level of the headings in the outline of the file."""
    import pypdfium2 as pdfium

    outline: Outline = {}
    try:
        for number, bookmark in enumerate(document.get_toc(max_depth=MAX_OUTLINE_DEPTH)):
            target = bookmark.get_dest()
            if number >= MAX_OUTLINE:
                break
            if target is not None and (page := target.get_index()) is not None:
                outline.setdefault((page, "".join(bookmark.get_title().split()).casefold()), bookmark.level + 1)
    except (pdfium.PdfiumError, ValueError):  # a broken outline loses only the headings after the broken entry
        pass
    return outline


def _title(document: "pdfium.PdfDocument") -> str | None:
    """The title in the metadata, unless it is the default of a program."""
    title = " ".join(document.get_metadata_value("Title").split())
    return None if not title or NO_TITLE.fullmatch(title) else title
