"""PDF files: paragraphs, headings, lists and code from lines, and every kind of broken file."""

import pytest

from pipeline.corpus.clean.pdf_text import pdf_text


def body(writers, n: int = 5) -> list[str]:
    return [f"{writers.SENTENCE} {i}" for i in range(n)]


def test_pdf_lines_of_a_paragraph_are_joined_and_a_gap_starts_a_new_one(writers):
    first = writers.pdf_page(["The miller carried the grain to the", "mill, and the wheel turned with the", "water."])
    second = writers.pdf_page(["The baker waited for the flour that", "the miller had promised."], top=680)
    extracted = pdf_text(writers.pdf([first + "\n" + second]))
    assert extracted.text == (
        "The miller carried the grain to the mill, and the wheel turned with the water.\n\n"
        "The baker waited for the flour that the miller had promised."
    )
    assert extracted.reason is None and extracted.extractor == "pdfium"


def test_pdf_paragraph_goes_on_over_the_page(writers):
    pages = [writers.pdf_page(["The miller carried the grain to the"]), writers.pdf_page(["mill of the old town."])]
    assert pdf_text(writers.pdf(pages)).text == "The miller carried the grain to the mill of the old town."


def test_pdf_larger_lines_are_headings_by_size_and_the_first_is_the_title(writers):
    page = "\n".join(
        [
            writers.pdf_line("Of the mill", 72, 780, 24, "F3"),
            writers.pdf_line("The wheel", 72, 740, 16, "F3"),
            writers.pdf_page(body(writers), top=710),
            writers.pdf_line("The stone", 72, 600, 16, "F3"),
            writers.pdf_page(body(writers), top=570),
        ]
    )
    extracted = pdf_text(writers.pdf([page]))
    lines = extracted.text.split("\n")
    assert [line for line in lines if line.startswith("#")] == ["# Of the mill", "## The wheel", "## The stone"]
    assert extracted.title == "Of the mill"


def test_pdf_lines_that_the_outline_names_are_headings_whatever_their_size(writers):
    page = writers.pdf_line("1. The wheel", 72, 790) + "\n" + writers.pdf_page(body(writers))
    content = writers.pdf([page], outline=[("The wheel", 0)])
    assert pdf_text(content).text.startswith("# 1. The wheel\n\n")


@pytest.mark.parametrize(
    ("title", "expected"), [("Mills of old", "Mills of old"), ("untitled.dvi", None), ("", None)]
)
def test_pdf_title_is_that_of_the_metadata_unless_a_program_left_it(writers, title, expected):
    assert pdf_text(writers.pdf([writers.pdf_page(["A mill."])], title=title)).title == expected


def test_pdf_running_heads_and_page_numbers_are_taken_out_and_text_at_the_edge_stays(writers):
    pages = []
    for i in range(6):
        head = writers.pdf_line(f"Chapter {i // 3}: of mills" if i % 2 else "The Book of Mills", 72, 810, 9)
        foot = writers.pdf_line(f"- {i + 7} -", 290, 30, 9)
        pages.append("\n".join([head, writers.pdf_page([f"Page {chr(65 + i)} says this. It ends."]), foot]))
    text = pdf_text(writers.pdf(pages)).text
    assert "Book of Mills" not in text and "- 9 -" not in text
    assert [line for line in text.split("\n") if line] == [
        f"Page {chr(65 + i)} says this. It ends." for i in range(6)
    ]


def test_pdf_lines_of_a_table_of_contents_are_taken_out(writers):
    page = writers.pdf_page(["1 The wheel . . . . . . . . . . 3", "2 The stone ............. iv", "It ends in 3..."])
    assert pdf_text(writers.pdf([page])).text == "It ends in 3..."


def test_pdf_words_divided_at_a_line_end_are_whole_again_and_real_hyphens_stay(writers):
    lines = [
        "A water-wheel turns. The mil-",
        "ler has a well-",
        "known mill, the water-",
        "wheel of North-",
        "Hampton turns.",
    ]
    text = pdf_text(writers.pdf([writers.pdf_page([*lines, "He is well-known."])])).text.replace("\n", " ")
    assert "The miller has a well-known mill, the water-wheel of North-Hampton turns." in text


def test_pdf_lines_of_fixed_pitch_keep_their_breaks_and_indentation(writers):
    code = [writers.pdf_line("def grind(grain):", 90, 680, 10, "F2")]
    code += [writers.pdf_line("return flour(grain)", 90 + 4 * 6, 668, 10, "F2")]
    page = "\n".join([writers.pdf_page(body(writers, 3)), *code, writers.pdf_page(body(writers, 3), top=640)])
    assert "\n\ndef grind(grain):\n    return flour(grain)\n\n" in pdf_text(writers.pdf([page])).text


def test_pdf_items_of_a_list_stand_on_lines_of_their_own(writers):
    page = writers.pdf_page(["The mill has:", "\x95 a wheel that", "turns", "\x95 a stone", "1. one", "2. two"])
    # 0x95 is a bullet in the encoding that PDF readers give to Type 1 fonts without one of their own
    page = page.replace("\x95", "\\225")
    content = writers.pdf([page]).replace(b"/BaseFont/Helvetica>>", b"/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>")
    assert pdf_text(content).text == "The mill has:\n\n- a wheel that turns\n- a stone\n\n1. one\n\n2. two"


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_pdf_truncated_gives_what_can_be_read_or_a_reason(writers, cut):
    whole = writers.pdf([writers.pdf_page(body(writers)) for _ in range(5)])
    extracted = pdf_text(whole[: int(len(whole) * cut)])
    assert extracted.reason in ("unreadable", "no_text") if not extracted.text else "miller" in extracted.text


def test_pdf_with_a_broken_cross_reference_table_is_read(writers):
    whole = writers.pdf([writers.pdf_page(body(writers))])
    broken = whole[: whole.rindex(b"startxref")] + b"startxref\n99999\n%%EOF"
    assert "miller" in pdf_text(broken).text


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04", b"%PDF-1.4\n", b"\0" * 5000])
def test_pdf_that_is_none_is_unreadable(content):
    extracted = pdf_text(content)
    assert (extracted.text, extracted.reason) == ("", "unreadable")


def test_pdf_with_a_password_is_encrypted(writers):
    assert pdf_text(writers.pdf([writers.pdf_page(body(writers))], encrypt=True)).reason == "encrypted"


def test_pdf_without_a_text_layer_has_no_text(writers):
    assert pdf_text(writers.pdf(["0.5 g 100 100 300 300 re f"])).reason == "no_text"


def test_pdf_without_pages_is_unreadable_whatever_was_read_before(writers):
    """pdfium's last error is that of the last file that failed: an empty one after a locked one looked locked."""
    pdf_text(writers.pdf([writers.pdf_page(["A mill."])], encrypt=True))
    assert pdf_text(writers.pdf([])).reason == "unreadable"


def test_pdf_with_more_text_than_its_bound_is_too_large(writers, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.clean.pdf_text.MAX_CHARACTERS", 100)
    assert pdf_text(writers.pdf([writers.pdf_page(body(writers))])).reason == "too_large"


def test_pdf_outline_that_goes_in_a_circle_ends(writers):
    content = writers.pdf([writers.pdf_page(body(writers))], outline=[("a", 0), ("b", 0), ("c", 0)])
    last = content.rindex(b"/Dest")
    number = content[: content.index(b"<</Title(a)")].rsplit(b"\n", 2)[-2].split()[0]
    circle = content[:last] + b"/Next " + number + b" 0 R" + content[last:]
    assert "miller" in pdf_text(circle).text


@pytest.mark.slow
def test_pdf_of_ten_thousand_pages_is_read_in_time_that_grows_with_its_pages(writers):
    page = writers.pdf_page([f"{writers.SENTENCE}" for _ in range(20)])
    extracted = pdf_text(writers.pdf([page] * 10_000))
    assert extracted.reason is None and extracted.text.count("miller") > 100_000
