import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus.clean.html_text import html_text

PROSE = (
    "The miller carried the grain to the mill, and the wheel turned with the water of the river, as it had done for"
    " many years before him. In the evening the flour was weighed, and the bread was baked for the whole village."
)
MENU = "<nav><ul>" + "".join(f'<li><a href="/{i}">Menu entry {i}</a></li>' for i in range(12)) + "</ul></nav>"
FOOTER = '<footer class="site-footer"><a href="/imprint">Imprint of the site</a> <a href="/jobs">Jobs</a></footer>'
CODE = "def grind(grain):\n    for corn in grain:\n        yield crush(corn)\n\n    return 1"
BODY = f"""
<h1>The mill<a class="headerlink" href="#the-mill">\u00b6</a></h1><p>{PROSE}</p>
<h2 id="steps">Steps<a class="headerlink" href="#steps">\u00b6</a></h2>
<ul><li>First the grain is cleaned of stones and of straw.</li>
<li>Then it is ground between stones.<ul><li>Slowly, for the flour must not get warm.</li></ul></li>
<li><p>Call the function.</p><pre><span class="kw">mill</span>(<span>grain</span>,
     stones=2)</pre></li></ul>
<p>{PROSE}</p>
<ol><li>Open the gate of the river.</li><li>Wait until the wheel turns.</li></ol>
<h3>Yields</h3>
<table><thead><tr><th>Grain</th><th>Flour, kg</th></tr></thead>
<tbody><tr><td>Wheat</td><td>75</td></tr><tr><td>Rye | dark</td><td>80</td></tr></tbody></table>
<p>{PROSE}</p><div class="highlight"><pre>{CODE.replace(">", "&gt;")}</pre></div><p>{PROSE}</p>"""
EXPECTED = f"""# The mill

{PROSE}

## Steps

- First the grain is cleaned of stones and of straw.
- Then it is ground between stones.
  - Slowly, for the flour must not get warm.
- Call the function.
  ```
  mill(grain,
       stones=2)
  ```

{PROSE}

1. Open the gate of the river.
2. Wait until the wheel turns.

### Yields

| Grain | Flour, kg |
| --- | --- |
| Wheat | 75 |
| Rye \\| dark | 80 |

{PROSE}

```
{CODE}
```

{PROSE}"""
# So much else on a page that the scores alone are not sure of the text.
TILES = "".join(
    f'<div class="tile"><b>{i} {PROSE[i : i + 40]}</b><a href="/{i}">Look at it</a></div>' for i in range(150)
)


def page(body: str, head: str = "<title>The mill</title>") -> str:
    return f"<!doctype html><html><head>{head}</head><body>{MENU}<main>{body}</main>{FOOTER}</body></html>"


def test_html_text_keeps_headings_lists_tables_and_listings_without_menus():
    extracted = html_text(page(BODY))
    assert extracted.extractor == "resiliparse"
    assert extracted.text == EXPECTED


def test_html_text_structure_survives_where_trafilatura_was_asked_too():
    related = f'<div class="related">{TILES}</div>'
    extracted = html_text(f"{related}{BODY}{related}")
    assert extracted.extractor == "union"
    assert EXPECTED in extracted.text


def test_html_text_layout_table_gives_paragraphs():
    body = f"<table><tr><td><h2>Left</h2><p>{PROSE}</p></td><td><p>{PROSE} {PROSE}</p></td></tr></table>"
    text = html_text(page(body)).text
    assert "|" not in text
    assert text == f"## Left\n\n{PROSE}\n\n{PROSE} {PROSE}"


def test_html_text_table_with_an_empty_cell_keeps_its_columns():
    rows = "".join(f"<tr><td>Grain {i}</td><td></td><td>{i} kg</td></tr>" for i in range(3))
    text = html_text(page(f"<p>{PROSE}</p><table>{rows}</table><p>{PROSE}</p>")).text
    assert "| Grain 0 |  | 0 kg |\n| --- | --- | --- |\n| Grain 1 |  | 1 kg |" in text


def test_html_text_line_breaks_of_a_poem_stay():
    text = html_text(
        page(f"<p>{PROSE}</p><p>By the river<br>stands the mill,<br/>old and still.</p><p>{PROSE}</p>")
    ).text
    assert "By the river\nstands the mill,\nold and still." in text


def test_html_text_listing_with_a_fence_inside_gets_a_longer_fence():
    text = html_text(page(f"<p>{PROSE}</p><pre>a\n```\nb</pre><p>{PROSE}</p>")).text
    assert "````\na\n```\nb\n````" in text


def test_html_text_sidebar_of_links_is_left_out():
    entries = "".join(f'<li><a href="#{i}">Section {i} of the manual</a></li>' for i in range(30))
    text = html_text(
        f'<body><div id="docs-sidebar"><ul>{entries}</ul></div><div class="body">{BODY}</div></body>'
    ).text
    assert "Section 3 of the manual" not in text
    assert text == EXPECTED


def test_html_text_link_called_anchor_with_words_stays():
    text = html_text(page(f'<p>{PROSE} <a class="anchor-link" href="/x">Grain of the north</a> is hard.</p>')).text
    assert text.endswith("Grain of the north is hard.")


@pytest.mark.parametrize(
    ("head", "body", "title"),
    [
        ("<title> The \n mill </title>", "", "The mill"),
        ('<title>The mill | Site</title><meta property="og:title" content="The mill">', "", "The mill"),
        ("", "<h1>The <b>mill</b></h1>", "The mill"),
        ("<title>The mill - our pages</title>", "<h1>Welcome</h1><h1>The mill<a>\u00b6</a></h1>", "The mill"),
        ("<title> </title>", "<h1>The mill</h1>", "The mill"),
        ("", "<svg><title>Arrow</title></svg>", None),
    ],
)
def test_html_text_title_from_where_the_page_has_it(head, body, title):
    assert html_text(page(f"{body}<p>{PROSE}</p>", head)).title == title


def test_html_text_page_that_shows_its_text_without_scripts_only_is_read():
    script = "<script>start()</script>"
    assert html_text(f"<body><div id=app></div>{script}<noscript><h1>Hello</h1>{BODY}</noscript>").text.endswith(
        EXPECTED
    )
    assert "switch on" not in html_text(page(BODY + "<noscript>Please switch on scripts</noscript>")).text


def test_html_text_second_html_element_is_read():
    menu = f"<html><body>{MENU}</body></html>"
    assert html_text(f"<!doctype html>{menu}\n<html><body>{BODY}</body></html>").text == EXPECTED


def test_html_text_page_of_nothing_but_a_menu_is_empty():
    assert html_text(f"<body>{MENU}</body>").text == ""


HOSTILE = {
    "empty": "",
    "spaces": " \n ",
    "only a comment": "<!-- nothing -->",
    "only scripts": "<html><script>document.write('text')</script><style>p{}</style></html>",
    "no body": "<html><head><title>t</title></head></html>",
    "frameset": "<frameset><frame src=a></frameset>",
    "nul": f"<p>{PROSE}\x00</p>\x00<p>\x00{PROSE}</p>",
    "lone surrogate": f"<p>{PROSE}\ud800</p>",
    "xml declaration": f'<?xml version="1.0" encoding="utf-16"?><html><body><p>{PROSE}</p></body></html>',
    "charset that lies": f'<meta charset="utf-16"><p>{PROSE} M\u00fchle</p>',
    "broken tags": f"<p><b>{PROSE}</i></div></p><table><td>{PROSE}<tr></table></ul><li>{PROSE}",
    "deep": "<div>" * 100_000 + PROSE,
    "deep lists": "<ul><li>" * 5_000 + PROSE,
    "deep tables": "<table><tr><td>" * 3_000 + PROSE,
    "deep links": "<a class=anchor>" * 20_000 + PROSE,
    "deep spans": "<span>" * 50_000 + PROSE,
    "unclosed comment": f"<p>{PROSE}</p><!--" + "-" * 100_000,
    "many attributes": "<p " + " ".join(f'a{i}="{i}"' for i in range(200_000)) + f">{PROSE}</p>",
    "many formulas": "<math><mi>x</mi></math> " * 5_000,
    "deep formula": "<math>" + "<msup><mi>x</mi>" * 5_000 + PROSE,
    "wide formula": f"<math><mrow>{'<mfrac><mi>a</mi><mn>2</mn></mfrac>' * 5_000}</mrow></math>",
    "many superscripts": f"<p>{'x<sup>2</sup>' * 8_000}",
    "many readings": f"<p>{'<ruby>a<rt>b' * 5_000}",
    "deep listings": "<pre><code><table><tr><td>" * 2_000 + PROSE,
    "many lines": f"<pre>{'<div class=line>a</div>' * 10_000}</pre>",
    "many gutters": f"<table>{'<tr><td class=gutter>1</td><td><pre>a</pre></td></tr>' * 2_000}</table>",
    "many comments": "<div class=comment><h2>Comments</h2><p>a</p></div>" * 3_000,
    "many hidden": '<div class="x"><span style="display:none">a</span>b</div>' * 4_000,
    "long class": f'<p class="{"nav " * 100_000}">{PROSE}</p>',
    "one line": f"<p>{'word ' * 500_000}</p>",
    "one word": f"<p>{'x' * 2_000_000}</p>",
    "entities": "<p>" + "&amp;&#x1F;&#0;&#xD800;&notanentity;&lt;p&gt;" * 10_000 + "</p>",
    "doctype entities": '<!DOCTYPE html [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><p>&c;</p>',
    "many cells": f"<table><tr>{'<td>a</td>' * 20_000}</tr></table>",
    "many blocks": "<p>some words that are alike</p>" * 20_000,
    "many list starts": "<ol start=99999999999999999999><li>a</ol>" * 2_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_html_text_hostile_page_costs_little_and_raises_nothing(name):
    start = time.thread_time()
    extracted = html_text(HOSTILE[name])
    assert isinstance(extracted.text, str)
    assert time.thread_time() - start < 10


@pytest.mark.parametrize(
    "name", ["nul", "lone surrogate", "xml declaration", "charset that lies", "broken tags", "many attributes"]
)
def test_html_text_damaged_page_keeps_its_prose(name):
    assert PROSE in html_text(HOSTILE[name]).text


TAGS = (
    "div",
    "p",
    "pre",
    "table",
    "tr",
    "td",
    "ul",
    "ol",
    "li",
    "a",
    "br",
    "h1",
    "button",
    "nav",
    "svg",
    "body",
    "dl",
)
PIECES = st.one_of(
    st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]),
    st.sampled_from(
        ["<!--", "-->", "<![CDATA[", "<?php", "<a class=anchor>#</a>", "&nbsp;", "&#0;", "```", "|", PROSE]
    ),
    st.text(max_size=20),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(PIECES, max_size=40))
def test_html_text_any_soup_of_tags_gives_the_same_text_twice(pieces):
    soup = "".join(pieces)
    assert html_text(soup) == html_text(soup)
