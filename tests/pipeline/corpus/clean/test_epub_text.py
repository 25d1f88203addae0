"""Books: chapters in the order of the spine with their structure, and every kind of broken file."""

import pytest

from pipeline.corpus.clean.epub_text import epub_text
from pipeline.corpus.clean.xhtml_text import xhtml_text
from pipeline.corpus.clean.zip_parts import MAX_UNPACKED_BYTES

CHAPTER = """<h1>Of &nbsp;the mill</h1><p>It grinds
 <i>rye</i>,<br/>and corn.</p><ul><li>wheel<ul><li>spoke</li></ul></li><li><p>stone</p></li></ul>
<ol><li>one</li><li>two</li></ol><table><tr><th>grain</th><th>kg</th></tr><tr><td>rye|oats</td><td>1</td></tr></table>
<pre>def grind(grain):
    return flour(grain)</pre><script>hidden()</script><p>The end.</p>"""
CHAPTER_TEXT = """# Of the mill

It grinds rye,
and corn.

- wheel
  - spoke
- stone
1. one
2. two

| grain | kg |
| --- | --- |
| rye\\|oats | 1 |

```
def grind(grain):
    return flour(grain)
```

The end."""


def test_epub_chapters_come_in_the_order_of_the_spine_with_their_structure(writers):
    chapters = {"z.xhtml": writers.xhtml(CHAPTER), "text/a%20b.xhtml": writers.xhtml("<h2>Two</h2>")}
    extra = {"OPS/text/a b.xhtml": writers.xhtml("<h2>Two</h2><p>Short.</p>"), "OPS/style.css": "p {}"}
    extracted = epub_text(writers.epub(chapters, extra=extra))
    assert extracted.text == CHAPTER_TEXT + "\n\n## Two\n\nShort."
    assert (extracted.title, extracted.extractor, extracted.reason) == ("The Mill", "epub", None)


def test_epub_keeps_short_chapters_and_lists_that_look_like_menus(writers):
    persons = "<ul><li><a href='#a'>Hamlet</a></li><li><a href='#b'>Ophelia</a></li></ul>"
    extracted = epub_text(writers.epub({"a.xhtml": writers.xhtml(f"<p>For my mother.</p>{persons}")}))
    assert extracted.text == "For my mother.\n\n- Hamlet\n- Ophelia"


def test_epub_page_of_a_locked_book_is_encrypted_and_fonts_may_be(writers):
    def encryption(name: str) -> str:
        return f'<encryption><EncryptedData><CipherReference URI="{name}"/></EncryptedData></encryption>'

    chapters = {"a.xhtml": writers.xhtml("<p>A mill.</p>")}
    locked = writers.epub(chapters, extra={"META-INF/encryption.xml": encryption("OPS/a.xhtml")})
    font = writers.epub(chapters, extra={"META-INF/encryption.xml": encryption("OPS/font.otf")})
    assert epub_text(locked).reason == "encrypted" and epub_text(font).text == "A mill."


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_epub_truncated_is_unreadable(writers, cut):
    whole = writers.epub({"a.xhtml": writers.xhtml(CHAPTER)})
    assert epub_text(whole[: int(len(whole) * cut)]).reason == "unreadable"


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"%PDF-1.4", b"PK\x03\x04" + b"\0" * 100])
def test_epub_that_is_none_is_unreadable(content):
    assert epub_text(content).reason == "unreadable"


def test_epub_without_container_or_package_is_unreadable_and_a_lone_package_is_found(writers):
    whole = {"book.opf": "<package><manifest/><spine/></package>", "a.xhtml": writers.xhtml("<p>A mill.</p>")}
    assert epub_text(writers.zip_file({"a.txt": "A mill."})).reason == "unreadable"
    assert epub_text(writers.zip_file(whole)).reason == "unreadable"
    item = '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
    whole["book.opf"] = f'<package><manifest>{item}</manifest><spine><itemref idref="a"/></spine></package>'
    assert epub_text(writers.zip_file(whole)).text == "A mill."


def test_epub_without_a_spine_is_read_in_the_order_of_its_manifest(writers):
    chapters = {"b.xhtml": writers.xhtml("<p>First.</p>"), "a.xhtml": writers.xhtml("<p>Second.</p>")}
    items = "".join(f'<item id="{h}" href="{h}" media-type="application/xhtml+xml"/>' for h in chapters)
    package = {"OPS/book.opf": f"<package><manifest>{items}</manifest></package>"}
    assert epub_text(writers.epub(chapters, extra=package)).text == "First.\n\nSecond."


def test_epub_paths_that_lead_outside_and_missing_chapters_are_passed_over(writers):
    chapters = {
        "../../../../etc/hostname": "x",
        "/etc/hostname": "x",
        "%2e%2e/%2e%2e/etc/passwd": "x",
        "missing.xhtml": "x",
        "../up.xhtml": "x",  # inside the zip: above OPS
        "a.xhtml": "x",
    }
    parts = {"up.xhtml": writers.xhtml("<p>Up.</p>"), "OPS/a.xhtml": writers.xhtml("<p>Here.</p>")}
    whole = writers.epub(chapters, extra=parts)
    assert epub_text(whole).text.endswith("Up.\n\nHere.") and "root:" not in epub_text(whole).text


@pytest.mark.parametrize("name", ["OPS/book.opf", "META-INF/container.xml", "OPS/a.xhtml"])
def test_epub_entities_are_not_expanded(writers, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    bomb = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    entities = f'<!ENTITY s SYSTEM "{(tmp_path / "secret").as_uri()}"><!ENTITY l0 "lol">{bomb}'
    whole = writers.epub(
        {"a.xhtml": writers.xhtml("<p>A &s; &l11; mill.</p>", doctype=f"<!DOCTYPE html [{entities}]>")}
    )
    if name != "OPS/a.xhtml":
        root = "package" if name.endswith("opf") else "container"
        hostile = f"<!DOCTYPE {root} [{entities}]><{root}>&s;&l11;</{root}>"
        whole = writers.epub({"a.xhtml": writers.xhtml("<p>A mill.</p>")}, extra={name: hostile})
    text = epub_text(whole).text
    assert "secret" not in text and "lol" not in text and len(text) < 100


def test_epub_that_unpacks_to_more_than_its_bound_is_too_large(writers):
    bomb = b"<p>" + b"\n" * (MAX_UNPACKED_BYTES + 1)
    whole = writers.epub({"a.xhtml": ""}, extra={"OPS/a.xhtml": bomb})
    assert len(whole) < MAX_UNPACKED_BYTES // 100
    assert epub_text(whole).reason == "too_large"


def test_epub_whose_chapters_say_nothing_has_no_text(writers):
    assert epub_text(writers.epub({"a.xhtml": writers.xhtml("<img src='a.png'/>")})).reason == "no_text"


def test_epub_chapter_that_is_no_xml_is_read_as_html(writers):
    assert epub_text(writers.epub({"a.xhtml": "<html><p>un<p>closed &amp; <b>bold"})).text == "un\n\nclosed & bold"


@pytest.mark.parametrize("tag", ["div", "ul", "b", "table", "blockquote"])
def test_xhtml_a_hundred_thousand_tags_deep_gives_text_or_none(tag):
    page = f"<{tag}>" * 100_000 + "text"
    assert len(xhtml_text(page)[1]) < 10_000


@pytest.mark.parametrize("page", ["", " ", "\0", "<", "<p", "</p>", "&#xD800;", "<?xml version='1.0'?>", "<![CDATA["])
def test_xhtml_that_is_nothing_gives_no_text_and_no_exception(page):
    assert xhtml_text(page)[0] is None


def test_xhtml_layout_tables_are_text_and_data_tables_are_rows():
    layout = "<table><tr><td><h1>Mill</h1></td><td><p>It grinds.</p></td></tr></table>"
    assert xhtml_text(f"<html><body>{layout}</body></html>")[1] == "# Mill\n\nIt grinds."
    data = "<table><caption>Grain</caption><tr><td>rye</td><td>1</td></tr></table>"
    assert xhtml_text(f"<html><body>{data}</body></html>")[1] == "Grain\n\n| rye | 1 |\n| --- | --- |"
