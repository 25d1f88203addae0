"""Word processor files: structure, footnotes, and every kind of broken file."""

import io

import pytest

from pipeline.corpus.clean.docx_text import docx_text
from pipeline.corpus.clean.zip_parts import ENCRYPTED_STREAM, MAX_UNPACKED_BYTES, OLE_SIGNATURE

NOTE = "<w:footnote w:id='7'><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:footnote>"


def test_docx_written_by_python_docx_keeps_headings_lists_and_tables():
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("The mill", 0)
    document.add_heading("Parts", 1)
    document.add_heading("Wheels", 2)
    document.add_paragraph("It ").add_run("grinds").bold = True
    for style, items in {"List Bullet": ["wheel", "stone"], "List Number": ["one", "two"]}.items():
        for item in items:
            document.add_paragraph(item, style=style)
    table = document.add_table(2, 2)
    for i, text in enumerate(["grain", "kg", "rye|oats", "1\n2"]):
        table.cell(i // 2, i % 2).text = text
    document.add_paragraph("def grind():\n    return 1", style="macro")
    document.core_properties.title = "Of mills"
    file = io.BytesIO()
    document.save(file)
    extracted = docx_text(file.getvalue())
    assert extracted.text == (
        "# The mill\n\n# Parts\n\n## Wheels\n\nIt grinds\n\n- wheel\n- stone\n1. one\n2. two\n\n"
        "| grain | kg |\n| rye\\|oats | 1 2 |\n\ndef grind():\n    return 1"
    )
    assert (extracted.title, extracted.extractor, extracted.reason) == ("Of mills", "docx", None)


def test_docx_footnotes_stand_after_the_text_and_deleted_text_does_not(writers):
    body = (
        "<w:p><w:r><w:t>A mill</w:t></w:r><w:r><w:footnoteReference w:id='7'/></w:r>"
        "<w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:ins><w:r><w:t> new</w:t></w:r></w:ins>"
        "<w:r><w:instrText>PAGE</w:instrText><w:tab/><w:t>end</w:t></w:r></w:p>"
    )
    content = writers.docx(
        body, parts={"word/footnotes.xml": f"<w:footnotes xmlns:w='{writers.WORD}'>{NOTE}</w:footnotes>"}
    )
    assert docx_text(content).text == "A mill[^1] new\tend\n\n[^1]: A note."


def test_docx_text_box_comes_once_and_tables_inside_cells_stay_in_their_cell(writers):
    box = "<w:txbxContent><w:p><w:r><w:t>boxed</w:t></w:r></w:p></w:txbxContent>"
    paragraph = f"<w:p><w:r><w:t>A mill</w:t><w:drawing>{box}</w:drawing><w:Fallback>{box}</w:Fallback></w:r></w:p>"
    inner = f"<w:tbl><w:tr><w:tc>{writers.docx_paragraph('inner')}</w:tc></w:tr></w:tbl>"
    cells = f"<w:tc>{writers.docx_paragraph('rye')}</w:tc><w:tc>{inner}</w:tc>"
    content = writers.docx(f"{paragraph}<w:tbl><w:tr>{cells}</w:tr></w:tbl>")
    assert docx_text(content).text == "A mill\n\nboxed\n\n| rye | \\| inner \\| |"


def test_docx_text_box_of_an_older_word_is_read(writers):
    box = f"<w:txbxContent>{writers.docx_paragraph('boxed')}</w:txbxContent>"
    content = writers.docx(
        f"<w:p><w:r><w:t>A mill</w:t><w:pict><shape><textbox>{box}</textbox></shape></w:pict></w:r></w:p>"
    )
    assert docx_text(content).text == "A mill\n\nboxed"


def test_docx_table_of_contents_is_left_out(writers):
    style = '<w:style w:styleId="T1"><w:name w:val="toc 1"/></w:style>'
    parts = {"word/styles.xml": f'<w:styles xmlns:w="{writers.WORD}">{style}</w:styles>'}
    contents = writers.docx_paragraph("The mill 3", '<w:pStyle w:val="T1"/>')
    assert docx_text(writers.docx(contents + writers.docx_paragraph("It grinds."), parts=parts)).text == "It grinds."


def test_docx_of_a_heading_only_takes_it_for_its_title(writers):
    content = writers.docx(writers.docx_paragraph("The mill", '<w:outlineLvl w:val="1"/>'))
    extracted = docx_text(content)
    assert (extracted.text, extracted.title) == ("## The mill", "The mill")


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.95])
def test_docx_truncated_is_unreadable(writers, cut):
    whole = writers.docx(writers.docx_paragraph(writers.SENTENCE))
    assert docx_text(whole[: int(len(whole) * cut)]).reason == "unreadable"


@pytest.mark.parametrize("content", [b"", b"text", b"%PDF-1.4", OLE_SIGNATURE + b"\0" * 100], ids=len)
def test_docx_that_is_none_is_unreadable(content):
    assert docx_text(content).reason == "unreadable"


def test_docx_with_a_password_is_encrypted(writers):
    assert docx_text(OLE_SIGNATURE + b"\0" * 500 + ENCRYPTED_STREAM + b"\0" * 500).reason == "encrypted"
    raw = bytearray(writers.docx(writers.docx_paragraph("A mill.")))
    place = raw.find(b"PK\x01\x02")
    while place >= 0:  # every entry of the directory says encrypted
        raw[place + 8] |= 1
        place = raw.find(b"PK\x01\x02", place + 4)
    assert docx_text(bytes(raw)).reason == "encrypted"


def test_docx_without_its_document_part_is_unreadable(writers):
    assert docx_text(
        writers.zip_file({"[Content_Types].xml": "<Types/>", "word/styles.xml": "<styles/>"})
    ).reason == ("unreadable")
    assert docx_text(writers.zip_file({"word/document.xml": "<w:document"})).reason == "unreadable"


def test_docx_without_text_has_no_text(writers):
    assert docx_text(writers.docx("<w:p/>")).reason == "no_text"


def test_docx_entities_are_not_expanded(writers, tmp_path):
    (tmp_path / "secret").write_text("secret")
    bomb = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    entities = f'<!ENTITY s SYSTEM "{(tmp_path / "secret").as_uri()}"><!ENTITY l0 "lol">{bomb}'
    paragraph = writers.docx_paragraph("A &s;&l11; mill.")
    document = f'<!DOCTYPE w [{entities}]><w:d xmlns:w="{writers.WORD}"><w:body>{paragraph}</w:body></w:d>'
    text = docx_text(writers.docx("", parts={"word/document.xml": document})).text
    assert "secret" not in text and "lol" not in text and len(text) < 100


def test_docx_that_unpacks_to_more_than_its_bound_is_too_large(writers):
    content = writers.docx("", parts={"word/styles.xml": b" " * (MAX_UNPACKED_BYTES + 1)})
    assert docx_text(content).reason == "too_large"


def test_docx_styles_that_are_based_on_each_other_and_wild_numbers_end(writers):
    styles = "".join(
        f'<w:style w:styleId="{a}"><w:name w:val="{a}"/><w:basedOn w:val="{b}"/></w:style>' for a, b in ("xy", "yx")
    )
    parts = {"word/styles.xml": f'<w:styles xmlns:w="{writers.WORD}">{styles}</w:styles>'}
    numbering = '<w:pStyle w:val="x"/><w:numPr><w:ilvl w:val="99999"/><w:numId w:val="-1"/></w:numPr>'
    content = writers.docx(writers.docx_paragraph("A mill.", numbering), parts=parts)
    assert docx_text(content).text.strip() == "- A mill."


@pytest.mark.parametrize("tag", ["w:sdt", "w:tbl", "w:ins"])
def test_docx_elements_deeply_nested_give_a_reason_or_their_text(writers, tag):
    body = f"<{tag}>" * 5000 + writers.docx_paragraph("deep") + f"</{tag}>" * 5000
    assert docx_text(writers.docx(body)).reason == "unreadable"


def run(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


A, B, N = (f"<m:e>{run('a')}</m:e>", f"<m:e>{run('b')}</m:e>", run("n"))
SUB, SUP = (f"<m:{name}>{run('i=1')}</m:{name}>" for name in ("sub", "sup"))


@pytest.mark.parametrize(
    ("omml", "text"),
    [
        (f"<m:sSup>{A}<m:sup>{N}</m:sup></m:sSup>", "a^n"),
        (f"<m:sSubSup>{A}<m:sub>{N}</m:sub><m:sup>{run('2')}</m:sup></m:sSubSup>", "a_n^2"),
        (f"<m:f><m:num>{run('a+b')}</m:num><m:den>{run('2')}</m:den></m:f>", "(a+b)/2"),
        (f"<m:rad><m:radPr><m:degHide m:val='1'/></m:radPr><m:deg/>{A}</m:rad>", "sqrt(a)"),
        (f"<m:rad><m:deg>{run('3')}</m:deg>{A}</m:rad>", "root(3)(a)"),
        (f"<m:nary><m:naryPr><m:chr m:val='\u2211'/></m:naryPr>{SUB}<m:sup>{N}</m:sup>{A}</m:nary>", "sum_(i=1)^n a"),
        (f"<m:d><m:dPr><m:begChr m:val='['/><m:endChr m:val=')'/></m:dPr>{A}{B}</m:d>", "[a| b)"),
        (f"<m:m><m:mr>{A}{B}</m:mr><m:mr>{B}{A}</m:mr></m:m>", "[[a, b], [b, a]]"),
        (f"<m:func><m:fName>{run('sin')}</m:fName><m:e>{run('a+b')}</m:e></m:func>", "sin(a+b)"),
        (f"<m:acc><m:accPr><m:chr m:val='\u20d7'/></m:accPr>{A}</m:acc>", "vec(a)"),
        (f"<m:phant><m:phantPr><m:show m:val='0'/></m:phantPr>{A}</m:phant>{run('b')}", "b"),
        (f"<m:r><w:rPr><w:vanish/></w:rPr><m:t>hidden</m:t></m:r>{run('b')}", "b"),
        (f"<w:del>{run('old')}</w:del>{run('b')}", "b"),
    ],
)
def test_docx_formulas_say_what_they_say_in_word(writers, omml, text):
    """Exponents, fractions and roots were written flat, so that v^2 read v2 (dbashford/textract#174)."""
    body = f"<w:p><w:r><w:t>so </w:t></w:r><m:oMath>{omml}</m:oMath><w:r><w:t> holds</w:t></w:r></w:p>"
    assert docx_text(writers.docx(body)).text == f"so {text} holds"


def level(depth: int, style: str, text: str, more: str = "") -> str:
    return f"<w:lvl w:ilvl='{depth}'><w:numFmt w:val='{style}'/><w:lvlText w:val='{text}'/>{more}</w:lvl>"


def test_docx_lists_carry_the_numbers_that_a_reader_sees(writers):
    """Every list began at 1 and letters became numbers, so that "see step 4" pointed nowhere (jgm/pandoc#8367)."""
    levels = level(0, "decimal", "%1.", "<w:start w:val='4'/>") + level(1, "lowerLetter", "(%2)")
    romans = level(0, "upperRoman", "%1") + level(1, "decimal", "%1.%2")
    numbering = (
        f"<w:numbering xmlns:w='{writers.WORD}'><w:abstractNum w:abstractNumId='0'>{levels}</w:abstractNum>"
        f"<w:abstractNum w:abstractNumId='1'>{romans}</w:abstractNum>"
        "<w:num w:numId='1'><w:abstractNumId w:val='0'/></w:num>"
        "<w:num w:numId='2'><w:abstractNumId w:val='0'/></w:num>"
        "<w:num w:numId='3'><w:abstractNumId w:val='0'/><w:lvlOverride w:ilvl='0'><w:startOverride w:val='9'/>"
        "</w:lvlOverride></w:num><w:num w:numId='4'><w:abstractNumId w:val='1'/></w:num></w:numbering>"
    )
    items = [(1, 0), (1, 1), (1, 1), (2, 0), (2, 1), (3, 0), (3, 0), (4, 0), (4, 1), (4, 0), (4, 1)]
    body = "".join(
        writers.docx_paragraph("x", f"<w:numPr><w:ilvl w:val='{depth}'/><w:numId w:val='{number}'/></w:numPr>")
        for number, depth in items
    )
    text = docx_text(writers.docx(body, parts={"word/numbering.xml": numbering})).text
    marks = [line.removesuffix(" x").strip() for line in text.splitlines()]
    assert marks == ["4.", "(a)", "(b)", "5.", "(a)", "9.", "10.", "I.", "I.1.", "II.", "II.1."]


def test_docx_numbered_heading_keeps_its_number_and_the_title_does_not(writers):
    numbering = (
        f"<w:numbering xmlns:w='{writers.WORD}'><w:abstractNum w:abstractNumId='0'>{level(0, 'decimal', 'Part %1:')}"
        "</w:abstractNum><w:num w:numId='1'><w:abstractNumId w:val='0'/></w:num></w:numbering>"
    )
    properties = "<w:outlineLvl w:val='1'/><w:numPr><w:ilvl w:val='0'/><w:numId w:val='1'/></w:numPr>"
    body = writers.docx_paragraph("Gates", properties) + writers.docx_paragraph("Sails", properties)
    extracted = docx_text(writers.docx(body, parts={"word/numbering.xml": numbering}))
    assert (extracted.text, extracted.title) == ("## Part 1: Gates\n\n## Part 2: Sails", "Gates")


def test_docx_hidden_text_stays_hidden(writers):
    """Text that Word hides came out, also when a style hides it (mwilliamson/mammoth.js#230)."""
    styles = (
        f"<w:styles xmlns:w='{writers.WORD}'>"
        "<w:style w:styleId='base'><w:rPr><w:vanish/></w:rPr></w:style>"
        "<w:style w:styleId='note'><w:basedOn w:val='base'/></w:style></w:styles>"
    )
    runs = {
        "<w:vanish/>": "secret",
        "<w:vanish w:val='false'/>": "open ",
        "<w:rStyle w:val='note'/>": "secret",
        "<w:rStyle w:val='note'/><w:vanish w:val='0'/>": "too",
    }
    body = "".join(
        f"<w:r><w:rPr>{how}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>" for how, text in runs.items()
    )
    row = f"<w:tc>{writers.docx_paragraph('secret')}</w:tc>"
    table = f"<w:tbl><w:tr><w:trPr><w:hidden/></w:trPr>{row}</w:tr></w:tbl>"
    hidden = writers.docx_paragraph("secret", "<w:pStyle w:val='note'/>")
    extracted = docx_text(writers.docx(f"<w:p>{body}</w:p>{hidden}{table}", parts={"word/styles.xml": styles}))
    assert extracted.text == "open too"


def test_docx_raised_numbers_are_powers(writers):
    """10 with a raised 6 read 106."""
    runs = [
        ("About 10", ""),
        ("6", "superscript"),
        (" m", ""),
        ("2", "superscript"),
        (" of H", ""),
        ("2", "subscript"),
    ]
    body = "".join(
        f"<w:r><w:rPr><w:vertAlign w:val='{how}'/></w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"
        for text, how in [*runs, ("O", "")]
    )
    assert docx_text(writers.docx(f"<w:p>{body}</w:p>")).text == "About 10^6 m^2 of H2O"
