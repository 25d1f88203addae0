"""Listings whose lines are elements, as the highlighters and editors of the web write them."""

import lxml.html
import pytest

from pipeline.corpus.clean.html_listings import write_listings

CODE = ["def turns(level):", "    if level &gt; 3:", "", "        return 0"]
WANTED = "def turns(level):\n    if level > 3:\n\n        return 0"


def lines(opening: str, closing: str, between: str = "") -> str:
    return between.join(f"{opening}{line}{closing}" for line in CODE)


def numbers(opening: str = "", closing: str = "\n") -> str:
    return "".join(f"{opening}{i}{closing}" for i in range(1, 5))


def row(first: str, second: str) -> str:
    return f"<tr>{first}{second}</tr>"


HIGHLIGHTERS = {
    "code in pre": f"<pre><code>{lines('', chr(10))}</code></pre>",
    "tokens": f"<pre><span></span>{lines('<span class=k>', '</span>', chr(10))}</pre>",
    "line breaks": f"<pre>{lines('', '<br>')}</pre>",
    "WeChat": f'<pre class="code-snippet__js">{lines("<code><span>", "</span></code>")}</pre>',
    "code, line breaks between": f"<pre>{lines('<code>', '</code>', chr(10))}</pre>",
    "divs": f"<pre><code>{lines('<div>', '</div>')}</code></pre>",
    "divs with line breaks inside": f"<pre>{lines('<div>', '<br></div>')}</pre>",
    "divs with line breaks between": f"<pre>\n{lines('<div class=line>', '</div>', chr(10))}\n</pre>",
    "paragraphs": f"<pre>{lines('<p>', '</p>')}</pre>",
    "prettify": f'<pre class="prettyprint"><ol class="linenums">{lines("<li class=L0>", "</li>")}</ol></pre>',
    "prettify, code in items": f"<pre><ol>\n{lines('<li><code>', '</code></li>', chr(10))}\n</ol></pre>",
    "Docusaurus": f"<pre><code>{lines('<span class=token-line>', '<br></span>')}</code></pre>",
    "Docusaurus 1": f"<pre><code>{lines('<div class=token-line>', '</div>')}</code></pre>",
    "Shiki": f'<pre class="shiki"><code>{lines("<span class=line><span>", "</span></span>", chr(10))}</code></pre>',
    "Shiki, no line breaks": f"<pre><code>{lines('<span class=line>', '</span>')}</code></pre>",
    "Chroma": '<pre><code class="language-py">'
    + "".join(
        f'<span class="line"><span class="ln">{i}</span><span class="cl">{c}\n</span></span>'
        for i, c in enumerate(CODE, 1)
    )
    + "</code></pre>",
    "GitLab": f'<pre class="code">{lines("<span class=line lang=python>", "</span>", chr(10))}</pre>',
    "display: block": f"<pre>{lines('<span style=display:block>', '</span>')}</pre>",
    "Pygments, numbers inside": "<pre>"
    + "\n".join(f'<span class="linenos">{i}</span>{c}' for i, c in enumerate(CODE, 1))
    + "</pre>",
    "Sphinx": '<table class="highlighttable">'
    + row(
        f'<td class="linenos"><div><pre>{numbers("<span class=normal>", "</span>" + chr(10))}</pre></div></td>',
        f'<td class="code"><div><pre>{lines("", "", chr(10))}</pre></div></td>',
    )
    + "</table>",
    "gutter of divs": '<table class="highlight">'
    + row(
        f'<td class="gutter"><pre>{numbers("<div class=line>", "</div>")}</pre></td>',
        f'<td class="code"><pre>{lines("<div class=line>", "</div>")}</pre></td>',
    )
    + "</table>",
    "numbers without a class": "<table>"
    + row(f"<td><pre>{numbers()}</pre></td>", f"<td><pre>{lines('', '', chr(10))}</pre></td>")
    + "</table>",
    "Chroma table": '<table class="lntable">'
    + row(
        f'<td class="lntd"><pre><code>{numbers("<span class=lnt>", chr(10) + "</span>")}</code></pre></td>',
        f'<td class="lntd"><pre><code>{lines("", "", chr(10))}</code></pre></td>',
    )
    + "</table>",
    "Rouge": '<pre class="highlight"><code><table class="rouge-table"><tbody>'
    + row(
        f'<td class="rouge-gutter gl"><pre class="lineno">{numbers()}</pre></td>',
        f'<td class="rouge-code"><pre>{lines("", chr(10))}</pre></td>',
    )
    + "</tbody></table></code></pre>",
    "GitHub": '<table class="highlight js-file-line-container">'
    + "".join(
        f'<tr>\n<td id="L{i}" class="blob-num js-line-number" data-line-number="{i}"></td>\n'
        f'<td class="blob-code blob-code-inner"><span>{c}</span></td>\n</tr>\n'
        for i, c in enumerate(CODE, 1)
    )
    + "</table>",
    "highlight.js with numbers": '<pre><code class="hljs"><table class="hljs-ln"><tbody>'
    + "".join(
        f'<tr><td class="hljs-ln-line hljs-ln-numbers"><div class="hljs-ln-n" data-line-number="{i}"></div></td>'
        f'<td class="hljs-ln-line hljs-ln-code">{c}</td></tr>'
        for i, c in enumerate(CODE, 1)
    )
    + "</tbody></table></code></pre>",
    "Confluence": '<div class="syntaxhighlighter"><table>'
    + row(
        f'<td class="gutter">{numbers("<div class=&quot;line&quot;>", "</div>")}</td>',
        '<td class="code"><div class="container">'
        + "".join(
            f'<div class="line number{i}"><code class="py spaces">{" " * (len(c) - len(c.lstrip()))}</code>'
            f'<code class="py plain">{c.lstrip() or "&nbsp;"}</code></div>'
            for i, c in enumerate(CODE, 1)
        )
        + "</div></td>",
    )
    + "</table></div>",
    "Crayon": '<table class="crayon-table">'
    + row(
        f'<td class="crayon-nums"><div>{numbers("<div class=crayon-num>", "</div>")}</div></td>',
        f'<td class="crayon-code"><div class="crayon-pre">{lines("<div class=crayon-line>", "</div>")}</div></td>',
    )
    + "</table>",
    "CodeMirror 5": '<div class="CodeMirror-code">'
    + "".join(
        f'<div><div class="CodeMirror-gutter-wrapper"><div class="CodeMirror-linenumber">{i}</div></div>'
        f'<pre class="CodeMirror-line"><span>{c}</span></pre></div>'
        for i, c in enumerate(CODE, 1)
    )
    + "</div>",
    "CodeMirror 6": f'<div class="cm-content" contenteditable="true">{lines("<div class=cm-line>", "</div>")}</div>',
    "Monaco": f'<div class="view-lines">{lines("<div class=view-line><span>", "</span></div>")}</div>',
    "Ace": f'<div class="ace_layer ace_text-layer">{lines("<div class=ace_line>", "</div>")}</div>',
    "code of several lines": f'<div><code class="language-py">{lines("", "", chr(10))}</code></div>',
    "copy button": f'<pre><button class="copy">Copy</button>{lines("", "", chr(10))}</pre>',
}


@pytest.mark.parametrize("name", HIGHLIGHTERS)
def test_listing_has_a_line_for_each_line_and_no_numbers(name):
    """Lines that are elements were joined to one: JohannesKaufmann/html-to-markdown#224, adbar/trafilatura#553."""
    tree = lxml.html.document_fromstring(f"<html><body>{HIGHLIGHTERS[name]}</body></html>")
    write_listings(tree, "\n".join(tree.xpath("//@class")))
    found = "\n".join("".join(pre.itertext()) for pre in tree.iter("pre") if pre.text_content().strip())
    kept = [line.rstrip() for line in found.replace("\u00a0", " ").split("\n")]
    assert "\n".join(kept).strip("\n") == WANTED
    assert tree.text_content().split() == found.split()


@pytest.mark.parametrize(
    "markup",
    [
        "<pre><code>mill</code><code> start</code> now</pre>",
        '<pre><span class="k">mill</span><span class="k"> start</span> now</pre>',
        "<pre><b>mill</b> <i>start</i> now</pre>",
    ],
)
def test_pieces_of_one_line_stay_together(markup):
    tree = lxml.html.document_fromstring(f"<html><body>{markup}</body></html>")
    write_listings(tree, "")
    assert tree.text_content() == "mill start now"


def test_table_of_numbers_beside_text_stays():
    table = "<table><tr><td>1 2 3</td><td>rye</td></tr><tr><td class='line-number'>5</td><td>bus</td></tr></table>"
    tree = lxml.html.document_fromstring(f"<html><body>{table}<p class='gutter'>7</p></body></html>")
    write_listings(tree, "")
    assert "1 2 3" in tree.text_content() and tree.text_content().endswith("7")
