"""What web pages, books and mail say alike: ruby, list numbers, listings and hidden text, in both readers of HTML."""

import pytest

from pipeline.corpus.clean.html_text import html_text
from pipeline.corpus.clean.list_numbers import list_number
from pipeline.corpus.clean.xhtml_text import xhtml_text

PROSE = (
    "The miller carried the grain to the mill, and the wheel turned with the water of the river, as it had done for"
    " many years before him. In the evening the flour was weighed, and the bread was baked for the whole village."
)


def both(body: str) -> str:
    """The text between two paragraphs of prose, which both readers must give alike."""
    page = f"<html><head><title>T</title></head><body><p>{PROSE}</p>{body}<p>{PROSE}</p></body></html>"
    text = html_text(page).text
    assert xhtml_text(page)[1] == text
    assert text.startswith(PROSE) and text.endswith(PROSE)
    return text.removeprefix(PROSE).removesuffix(PROSE).strip("\n")


@pytest.mark.parametrize(
    ("ruby", "base"),
    [
        ("<ruby>\u6c34\u8eca<rt>\u3059\u3044\u3057\u3083</rt></ruby>", "\u6c34\u8eca"),
        ("<ruby>\u7c89<rp>\uff08</rp><rt>\u3053\u306a</rt><rp>\uff09</rp></ruby>", "\u7c89"),
        ("<ruby>\u8650<rt>\u304e\u3083\u304f</rt>\u5f85<rt>\u305f\u3044</rt></ruby>", "\u8650\u5f85"),
        ("<ruby><rb>\u7c89</rb><rt>\u3053\u306a</rt></ruby>", "\u7c89"),
        (
            "<ruby><rb>\u6771</rb><rb>\u4eac</rb><rt>\u3068\u3046</rt><rt>\u304d\u3087\u3046</rt></ruby>",
            "\u6771\u4eac",
        ),
        ("<ruby>\n<rb>\u7c89</rb>\n<rp>(</rp>\n<rt>\u3053\u306a</rt>\n<rp>)</rp>\n</ruby>", "\u7c89"),
        ("<ruby>\u7c89<rt>\u3053\u306a</rt><rtc><rt>flour</rt></rtc></ruby>", "\u7c89"),
        ("<ruby><a href='#n'>\u7c89</a><rt><span>\u3053</span>\u306a</rt></ruby>", "\u7c89"),
        ("<ruby><ruby>\u7c89<rt>\u3053\u306a</rt></ruby><rt>flour</rt></ruby>", "\u7c89"),
        # HTML in which only some ends are written
        ("<ruby>\u7c89<rt>\u3053\u306a</ruby>", "\u7c89"),
        ("<ruby><rb>\u6771<rb>\u4eac<rt>\u3068\u3046<rt>\u304d\u3087\u3046</ruby>", "\u6771\u4eac"),
        ("<ruby>\u653b<rp>(<rt>\u3053\u3046<rp>)</rp>\u6bbb<rp>(<rt>\u304b\u304f<rp>)</ruby>", "\u653b\u6bbb"),
    ],
)
def test_ruby_leaves_the_base_text_without_its_reading(ruby, base):
    """Readings were glued to the words that they explain: mozilla/readability#575."""
    assert (
        both(f"<p>\u5c0f\u3055\u306a{ruby}\u304c\u3042\u308b\u3002</p>")
        == f"\u5c0f\u3055\u306a{base}\u304c\u3042\u308b\u3002"
    )


LI = "".join(f"<li>{word} the gate of the river.</li>" for word in ("Open", "Watch", "Close"))


@pytest.mark.parametrize(
    ("opening", "markers"),
    [
        ("<ol>", "1. 2. 3."),
        ('<ol start="3">', "3. 4. 5."),
        ('<ol start="-1">', "-1. 0. 1."),
        ('<ol reversed="reversed">', "3. 2. 1."),
        ('<ol reversed="reversed" start="10">', "10. 9. 8."),
        ('<ol type="a">', "a. b. c."),
        ('<ol type="A" start="26">', "Z. AA. AB."),
        ('<ol type="i" start="3">', "iii. iv. v."),
        ('<ol type="I">', "I. II. III."),
        ('<ol style="list-style-type: lower-roman">', "i. ii. iii."),
        ('<ol style="list-style: none">', "- - -"),
        ('<ol start="many">', "1. 2. 3."),
        ('<ol start="99999999999999999999">', "1. 2. 3."),
        ('<ol type="disc">', "1. 2. 3."),
        ('<ul type="1">', "- - -"),
        ("<menu>", "- - -"),
    ],
)
def test_list_begins_and_counts_as_the_page_says(opening, markers):
    """Every list began at 1, so that "step 4" pointed nowhere: JohannesKaufmann/html-to-markdown#84."""
    closing = f"</{opening[1:-1].split()[0]}>"
    lines = both(opening + LI + closing).split("\n")
    assert " ".join(line.split()[0] for line in lines) == markers


def test_item_with_a_value_sets_the_number_of_those_after_it():
    items = "<li>Open it.</li><li value='7'>Watch it.</li><li>Close it.</li><li value='x' type='A'>Leave.</li>"
    assert both(f"<ol>{items}</ol>") == "1. Open it.\n7. Watch it.\n8. Close it.\nI. Leave."


def test_nested_list_has_its_own_numbers_and_the_outer_goes_on():
    inner = '<ol type="a" start="2"><li>Slowly.</li><li><p>Surely.</p></li></ol>'
    assert both(f'<ol start="4"><li>Open it.{inner}</li><li><div>Close it.</div></li></ol>') == (
        "4. Open it.\n  b. Slowly.\n  c. Surely.\n5. Close it."
    )


@pytest.mark.parametrize(
    ("number", "style", "written"),
    [(27, "a", "aa"), (702, "A", "ZZ"), (0, "a", "0"), (1994, "I", "MCMXCIV"), (4000, "i", "4000"), (-2, "I", "-2")],
)
def test_list_number_is_written_as_browsers_do(number, style, written):
    assert list_number(number, style) == written


def test_listing_keeps_its_lines_in_both_readers():
    lines = "".join(f"<code><span>{line}</span></code>" for line in ("mill open", "  wait", "mill shut"))
    assert both(f"<pre>{lines}</pre>") == "```\nmill open\n  wait\nmill shut\n```"


def test_raised_text_in_both_readers():
    assert both("<p>It weighs 10<sup>6</sup> grains of H<sub>2</sub>O.</p>") == "It weighs 10^6 grains of H2O."


def test_line_breaks_separate_lines_and_two_of_them_stanzas():
    assert both("<p>By the river<br/>stands the mill,<br/><br/>\n<br/>old and still.</p>") == (
        "By the river\nstands the mill,\n\nold and still."
    )


@pytest.mark.parametrize(
    "hidden",
    [
        '<span style="display: none">0000412</span>',
        '<span style="DISPLAY:NONE !important">0000412</span>',
        '<b style="color:red; visibility: hidden">0000412</b>',
        '<span hidden="hidden">0000412</span>',
        '<a hidden="" href="#x">0000412</a>',
        "<template>0000412</template>",
        "<noscript>0000412</noscript>",
    ],
)
def test_hidden_text_inside_a_sentence_is_left_out(hidden):
    """Sort keys and texts for screen readers came out in the middle of sentences."""
    assert both(f"<p>The mill has {hidden}412 sacks.</p>") == "The mill has 412 sacks."


def test_hidden_block_is_left_out_where_no_script_can_show_it():
    page = f'<html><body><div style="display:none">Open in your browser.</div><p>{PROSE}</p></body></html>'
    assert xhtml_text(page)[1] == PROSE


@pytest.mark.parametrize("shown", ['<b hidden="until-found">412</b>', '<i aria-hidden="true">412</i>'])
def test_text_that_browsers_display_is_kept(shown):
    assert both(f"<p>The mill has {shown} sacks.</p>") == "The mill has 412 sacks."


def test_template_that_declares_a_shadow_root_is_shown():
    assert both('<template shadowrootmode="open"><p>The mill has 412 sacks of flour.</p></template>').startswith(
        "The mill"
    )


def test_frame_of_project_gutenberg_is_no_part_of_a_book():
    """The header, its mark and the licence came out as parts of the book (gutenbergtools/ebookmaker#209)."""
    page = (
        '<html><body><section id="pg-header"><h2>The Project Gutenberg eBook of Reeds</h2><p>*** START OF IT ***</p>'
        f'</section><h1>Reeds</h1><p>{PROSE}</p><section id="pg-footer"><p>*** END ***</p></section></body></html>'
    )
    assert html_text(page).text == xhtml_text(page)[1] == f"# Reeds\n\n{PROSE}"
