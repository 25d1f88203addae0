"""Small files of every format, written by the tests themselves; the fixture `writers` gives these functions."""

import io
import json
import zipfile
from email.message import EmailMessage
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SENTENCE = "The miller carried the grain to the mill, and the wheel turned with the water of the river."
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MATH = "http://schemas.openxmlformats.org/officeDocument/2006/math"
PDF_FONTS = {"F1": "Helvetica", "F2": "Courier", "F3": "Helvetica-Bold"}


def zip_file(parts: dict[str, str | bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression, compresslevel=1) as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return file.getvalue()


def pdf_line(text: str, x: float, y: float, size: float = 11, font: str = "F1") -> str:
    shown = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /{font} {size} Tf {x} {y} Td ({shown}) Tj ET"


def pdf(
    pages: list[str], *, title: str | None = None, outline: list[tuple[str, int]] | None = None, encrypt: bool = False
) -> bytes:
    """A PDF of pages that are content streams; `outline` holds (title, page) of top level entries."""
    objects: list[bytes] = []

    def add(body: str | bytes) -> int:
        objects.append(body.encode("latin-1") if isinstance(body, str) else body)
        return len(objects)

    catalog, tree = add(""), add("")
    fonts = {key: add(f"<</Type/Font/Subtype/Type1/BaseFont/{name}>>") for key, name in PDF_FONTS.items()}
    resources = "".join(f"/{key} {number} 0 R" for key, number in fonts.items())
    kids = []
    for stream in pages:
        content = stream.encode("latin-1")
        body = add(b"<</Length %d>>\nstream\n" % len(content) + content + b"\nendstream")
        page = f"<</Type/Page/Parent {tree} 0 R/MediaBox[0 0 595 842]/Resources<</Font<<{resources}>>>>"
        kids.append(add(f"{page}/Contents {body} 0 R>>"))
    objects[tree - 1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(f'{k} 0 R' for k in kids)}]>>".encode()
    root = f"<</Type/Catalog/Pages {tree} 0 R"
    if outline:
        first = len(objects) + 2
        last = first + len(outline) - 1
        holder = add(f"<</Type/Outlines/First {first} 0 R/Last {last} 0 R/Count {len(outline)}>>")
        for i, (name, page) in enumerate(outline):
            following = f"/Next {first + i + 1} 0 R" if i + 1 < len(outline) else ""
            add(f"<</Title({name})/Parent {holder} 0 R{following}/Dest[{kids[page]} 0 R/Fit]>>")
        root += f"/Outlines {holder} 0 R"
    objects[catalog - 1] = f"{root}>>".encode()
    trailer = f"/Root {catalog} 0 R"
    if title is not None:
        trailer += f"/Info {add(f'<</Title({title})>>')} 0 R"
    if encrypt:
        key = "00" * 32
        trailer += f"/Encrypt {add(f'<</Filter/Standard/V 1/R 2/O<{key}>/U<{key}>/P -4>>')} 0 R/ID[<{key}><{key}>]"
    return _pdf_file(objects, trailer)


def _pdf_file(objects: list[bytes], trailer: str) -> bytes:
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n" % number + body + b"\nendobj\n")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    end = f"trailer\n<</Size {len(objects) + 1}{trailer}>>\nstartxref\n{out.tell()}\n%%EOF\n"
    out.write((head + end).encode())
    return out.getvalue()


def pdf_page(lines: list[str], *, top: float = 760, step: float = 14, size: float = 11, font: str = "F1") -> str:
    return "\n".join(pdf_line(line, 72, top - i * step, size, font) for i, line in enumerate(lines))


def epub(chapters: dict[str, str], *, title: str = "The Mill", extra: dict[str, str | bytes] | None = None) -> bytes:
    """A book with its chapters, XHTML by href, in the order of the spine."""
    items = "".join(
        f'<item id="c{i}" href="{href}" media-type="application/xhtml+xml"/>' for i, href in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    package = f"""<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata
 xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>
<manifest>{items}</manifest><spine>{spine}</spine></package>"""
    container = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>
<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
    parts: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": container,
        "OPS/book.opf": package,
        **{f"OPS/{href}": page for href, page in chapters.items()},
    }
    return zip_file({**parts, **(extra or {})})


def xhtml(body: str, *, doctype: str = "") -> str:
    head = '<?xml version="1.0" encoding="utf-8"?>'
    return (
        f'{head}{doctype}<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'
    )


def docx(body: str, *, parts: dict[str, str | bytes] | None = None) -> bytes:
    """A word processor file whose body is WordprocessingML with the prefix w, and Office Math with the prefix m."""
    document = f'<w:document xmlns:w="{WORD}" xmlns:m="{MATH}"><w:body>{body}</w:body></w:document>'
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    relations = f'<Relationships><Relationship Id="r1" Type="{relation}" Target="word/document.xml"/></Relationships>'
    return zip_file({"_rels/.rels": relations, "word/document.xml": document, **(parts or {})})


def docx_paragraph(text: str, properties: str = "") -> str:
    return f'<w:p><w:pPr>{properties}</w:pPr><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def mail(subject: str = "Of the mill", text: str = SENTENCE) -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "miller@example.org", "baker@example.org"
    message.set_content(text)
    return message


def mbox(messages: list[bytes]) -> bytes:
    line = b"From miller@example.org Mon Jan  1 10:00:00 2024\n"
    return b"".join(line + message.replace(b"\nFrom ", b"\n>From ") + b"\n\n" for message in messages)


def parquet(columns: dict[str, list[Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def notebook(cells: list[dict[str, Any]]) -> bytes:
    metadata = {"kernelspec": {"language": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()
