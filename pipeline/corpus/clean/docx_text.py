"""The text of a word processor file (docx, Office Open XML).

In: the bytes of the file. Out: `Extracted`: paragraphs, headings by their style ('#', by outline level), lists ('- '
or their numbers, docx_lists.py), tables as rows `| a | b |`, code by its style, formulas (omml_text.py), footnotes
and endnotes after the text as `[^1]: ...`. The title is taken from the properties, otherwise from the first paragraph
of style Title or the first heading. Not kept: hidden text, tables of contents, pictures, headers and footers,
comments, deleted text of tracked changes, field codes.

The parts are not read by python-docx, because it has no limit on the unpacked size of a part and no footnotes.
Source: ECMA-376 part 1, sections 17.3 (paragraphs), 17.4 (tables), 17.9 (numbering), 17.11 (footnotes).
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.clean.docx_lists import DEEPEST, Lists, Numbering, read_lists
from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.html_superscripts import on_one_line
from pipeline.corpus.clean.omml_text import formula
from pipeline.corpus.clean.word_elements import OFF, child_of, switch_of, value_of, whole
from pipeline.corpus.clean.xhtml_text import table_row
from pipeline.corpus.clean.zip_parts import Parts, Unusable, attribute, joined, local_name

EXTRACTOR = "docx"
DOCUMENT_RELATION = "/officeDocument"
SKIPPED = frozenset(
    {
        "del",
        "moveFrom",
        "instrText",
        "delText",
        "delInstrText",
        "rPr",
        "pPr",
        "tblPr",
        "tblGrid",
        "trPr",
        "tcPr",
        "sectPr",
        "sdtPr",
        "Fallback",
        "annotationRef",
        "commentReference",
    }
)
HEADING_STYLE = re.compile(r"heading ([1-9])", re.IGNORECASE)
CODE_STYLE = re.compile(r"code|preformatted|source|macro text|plain text|verbatim", re.IGNORECASE)
CONTENTS_STYLE = "toc "  # lines of a table of contents, which repeat headings and page numbers
IS_RAISED = {"superscript": True, "subscript": False}
MAX_STYLES_ABOVE = 20  # styles are based on other styles; a hostile file can contain a cycle


@dataclass(frozen=True, slots=True)
class _Style:
    name: str
    level: int | None  # outline level from 1; None = not a heading
    numbering: Numbering | None
    is_hidden: bool | None  # None = as the paragraph or the document says


@dataclass(slots=True)
class _Reader:
    """What paragraphs refer to; `notes` contains the notes that the text refers to."""

    styles: dict[str, _Style]
    lists: Lists
    notes: dict[tuple[str, str], int] = field(default_factory=dict)  # (kind, id) -> number shown
    title: str | None = None
    heading: str | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    kind: str = "paragraph"  # paragraph, item, code: no blank line between two items or two lines of code


def docx_text(content: bytes) -> Extracted:
    """The text of a docx. Never raises for a broken one: `reason` is unreadable, encrypted, no_text or too_large."""
    try:
        parts = Parts(content)
        name = _document_name(parts)
        folder = posixpath.dirname(name)
        body = next((e for e in parts.tree(name) if local_name(e) == "body"), None)
        if body is None:
            raise Unusable("unreadable")
        reader = _Reader(_styles(parts, folder), _lists(parts, folder))
        text = _text_of(list(_blocks(body, reader)))
        notes = _notes(parts, folder, reader)
        title = _property_title(parts) or reader.title or reader.heading
    except Unusable as unusable:
        return Extracted("", extractor=EXTRACTOR, reason=unusable.reason)
    except RecursionError:  # elements nested a thousand levels deep
        return Extracted("", extractor=EXTRACTOR, reason="unreadable")
    text = "\n\n".join(piece for piece in (text, *notes) if piece.strip())
    return Extracted(text, title=title, extractor=EXTRACTOR, reason=None if text else "no_text")


def _document_name(parts: Parts) -> str:
    if "_rels/.rels" in parts:
        for relation in parts.tree("_rels/.rels"):
            if (attribute(relation, "Type") or "").endswith(DOCUMENT_RELATION):
                name = joined("", (attribute(relation, "Target") or "").lstrip("/"))
                if name in parts:
                    return name
    return "word/document.xml"


def _property_title(parts: Parts) -> str | None:
    if "docProps/core.xml" not in parts:
        return None
    titles = (e.text for e in parts.tree("docProps/core.xml") if local_name(e) == "title")
    return " ".join((next(titles, None) or "").split()) or None


def _styles(parts: Parts, folder: str) -> dict[str, _Style]:
    name = posixpath.join(folder, "styles.xml")
    if name not in parts:
        return {}
    elements = {attribute(e, "styleId") or "": e for e in parts.tree(name) if local_name(e) == "style"}
    return {key: _style(key, elements) for key in elements}


def _style(key: str, elements: dict[str, Any]) -> _Style:
    """The style with the properties that it inherits from the styles it is based on."""
    name = value_of(elements[key], "name") or key
    level, numbering, is_hidden = None, None, None
    for _ in range(MAX_STYLES_ABOVE):
        element = elements.get(key)
        if element is None:
            break
        above = value_of(element, "name") or key
        if level is None and (match := HEADING_STYLE.fullmatch(above)):
            level = int(match[1])
        if level is None and (outline := whole(value_of(element, "pPr", "outlineLvl"))) is not None and outline < 9:
            level = outline + 1
        numbering = numbering or _numbering(child_of(element, "pPr"))
        is_hidden = switch_of(element, "rPr", "vanish") if is_hidden is None else is_hidden
        key = value_of(element, "basedOn") or ""
    return _Style(name, 1 if name.lower() == "title" else level, numbering, is_hidden)


def _numbering(properties: Any | None) -> Numbering | None:
    numbering = None if properties is None else child_of(properties, "numPr")
    key = None if numbering is None else value_of(numbering, "numId")
    return None if numbering is None or key is None else (key, min(DEEPEST, whole(value_of(numbering, "ilvl")) or 0))


def _lists(parts: Parts, folder: str) -> Lists:
    name = posixpath.join(folder, "numbering.xml")
    return read_lists(parts.tree(name)) if name in parts else Lists()


def _blocks(container: Any, reader: _Reader) -> Iterator[_Block]:
    """Paragraphs and tables of a body, a cell, a note or a text box, also inside wrapping elements."""
    for element in container:
        name = local_name(element)
        if name == "p":
            yield from _paragraph(element, reader)
        elif name == "tbl":
            rows = list(_rows(element, reader))
            if rows:
                yield _Block("\n".join(rows))
        elif name and name not in SKIPPED:  # sdt, ins, customXml
            yield from _blocks(element, reader)


def _rows(table: Any, reader: _Reader) -> Iterator[str]:
    for row in table.iter():
        if local_name(row) == "tr" and _nearest(row, "tbl") is table and not switch_of(row, "trPr", "hidden"):
            cells = [cell for cell in row.iter() if local_name(cell) == "tc" and _nearest(cell, "tr") is row]
            texts = [" ".join(block.text for block in _blocks(cell, reader)) for cell in cells]
            if any(text.strip() for text in texts):
                yield table_row(texts)


def _nearest(element: Any, name: str) -> Any | None:
    return next((above for above in element.iterancestors() if local_name(above) == name), None)


def _paragraph(element: Any, reader: _Reader) -> Iterator[_Block]:
    pieces: list[str] = []
    boxes: list[Any] = []
    properties = child_of(element, "pPr")
    style = reader.styles.get((None if properties is None else value_of(properties, "pStyle")) or "")
    _collect(element, reader, pieces, boxes, is_hidden=bool(style and style.is_hidden))
    raw = "".join(pieces)
    if style is not None and style.name.lower().startswith(CONTENTS_STYLE):
        return
    is_code = style is not None and CODE_STYLE.search(style.name) is not None
    text = raw.rstrip() if is_code else raw.strip()
    if is_code:
        yield _Block(text, "code")
    elif text:
        yield _shaped(text, style, properties, reader)
    for box in boxes:
        yield from _blocks(box, reader)


def _shaped(text: str, style: _Style | None, properties: Any | None, reader: _Reader) -> _Block:
    own = None if properties is None else whole(value_of(properties, "outlineLvl"))
    level = own + 1 if own is not None and own < 9 else style.level if style else None
    numbering = _numbering(properties) or (style.numbering if style else None)
    if numbering is not None and numbering[0] == "0":  # 17.9.18: list 0 removes a paragraph from its list
        numbering = None
    if level:
        heading = " ".join(text.split())
        reader.heading = reader.heading or heading
        if style and style.name.lower() == "title":
            reader.title = reader.title or heading
        number = reader.lists.mark(numbering) if numbering and reader.lists.is_counted(numbering) else ""
        return _Block("#" * min(level, 6) + " " + number + heading)
    if numbering is None:
        return _Block(text)
    return _Block("  " * numbering[1] + reader.lists.mark(numbering) + text, "item")


def _collect(element: Any, reader: _Reader, pieces: list[str], boxes: list[Any], *, is_hidden: bool) -> None:
    """Add the visible text of `element` to `pieces`; text boxes inside it follow after the paragraph.

    `is_hidden` is what the style of the paragraph says of runs that say nothing themselves.
    """
    for child in element:
        match local_name(child):
            case "r" if _is_hidden_run(child, reader, is_hidden):
                continue
            case "r" if (align := value_of(child, "rPr", "vertAlign")) in IS_RAISED:
                own: list[str] = []
                _collect(child, reader, own, boxes, is_hidden=is_hidden)
                pieces.append(on_one_line("".join(pieces[-3:]), "".join(own), is_raised=IS_RAISED[align]))
            case "oMath":
                pieces.append(formula(child))
            case "docPr" if (attribute(child, "hidden") or "0").lower() not in OFF:
                return  # a hidden text box
            case "t":
                pieces.append(child.text or "")
            case "tab" | "ptab":
                pieces.append("\t")
            case "br" | "cr":
                pieces.append("\n")
            case "noBreakHyphen":
                pieces.append("-")
            case "footnoteReference" | "endnoteReference" as name:
                note = (name.removesuffix("Reference"), attribute(child, "id") or "")
                pieces.append(f"[^{reader.notes.setdefault(note, len(reader.notes) + 1)}]")
            case "txbxContent":
                boxes.append(child)
            case name if name and name not in SKIPPED:
                _collect(child, reader, pieces, boxes, is_hidden=is_hidden)


def _is_hidden_run(run: Any, reader: _Reader, is_hidden: bool) -> bool:
    """Hidden text (17.3.2.41) of the run itself, of its style, or of the style of its paragraph."""
    own = switch_of(run, "rPr", "vanish")
    if own is None:
        style = reader.styles.get(value_of(run, "rPr", "rStyle") or "")
        own = style.is_hidden if style else None
    return is_hidden if own is None else own


def _text_of(blocks: list[_Block]) -> str:
    lines: list[str] = []
    before = "paragraph"
    for block in blocks:
        if lines and not (block.kind == before != "paragraph"):
            lines.append("")
        lines.append(block.text)
        before = block.kind
    return "\n".join(lines)


def _notes(parts: Parts, folder: str, reader: _Reader) -> list[str]:
    """The notes that the text refers to, in the order of their numbers."""
    found: dict[int, str] = {}
    for kind in ("footnote", "endnote"):
        name = posixpath.join(folder, f"{kind}s.xml")
        if name not in parts:
            continue
        for note in parts.tree(name):
            number = reader.notes.get((kind, attribute(note, "id") or ""))
            if number is not None and (text := " ".join(block.text for block in _blocks(note, reader))):
                found[number] = f"[^{number}]: {text}"
    return [found[number] for number in sorted(found)]
