"""An article is whole: nothing of its own is lost, and visitors' comments are no part of it."""

import numpy as np
import pytest

from pipeline.corpus.clean.html_article import article
from pipeline.corpus.clean.html_blocks import blocks_of
from pipeline.corpus.clean.html_text import html_text, parsed

ARTICLE = [
    "The parish has voted to keep the old ferry. The vote was close, and the priest spoke for an hour before it.",
    "A new rope will be bought in spring. It costs less than feared, because half of the old one can be used again.",
    "Until then the ferry stays on this side at night, so that the boatman can sleep. He says he will miss the bell.",
]
COMMENTS = [
    "I was at the meeting, and it was not an hour, it was two. My feet still hurt, and the coffee was cold.",
    "What about the swans? Nobody has counted them since my aunt did, and she counted from the window of the inn.",
    "This is wrong. A rope does not need a spring, it needs tar. Read a book before you vote about ropes, please.",
    "Typical. First the bell, then the ferry, and in the end we shall be asked to pay for the fog.",
]
BODY = "<h1>The ferry stays</h1>" + "".join(f"<p>{text}</p>" for text in ARTICLE)
MENU = (
    "<header><nav><ul>" + "".join(f"<li><a href='/{i}'>Page {i}</a></li>" for i in range(6)) + "</ul></nav></header>"
)
FOOTER = "<footer><p>Copyright 2021, The Ferry News.</p></footer>"


def each(opening: str, closing: str) -> str:
    return "".join(f"{opening}<b>guest{i}</b><p>{text}</p>{closing}" for i, text in enumerate(COMMENTS))


def nested(opening: str, closing: str) -> str:
    return "".join(f"{opening}<p>{text}</p>" for text in COMMENTS) + closing * len(COMMENTS)


THREADS = {
    "nested details": nested(
        '<details class="CommentBox" open><summary><p class="CommentPoster">By pia</p></summary>', "</details>"
    ),
    "details each": each('<details class="CommentBox"><summary class="CommentTitle">Ferry</summary>', "</details>"),
    "one details": '<details class="comments"><summary>4 comments</summary>'
    + each('<div class="comment">', "</div></details>"),
    "list of a blog": '<div id="comments" class="comments-area"><h2>4 thoughts</h2><ol class="comment-list">'
    + each('<li class="comment depth-1"><article class="comment-body">', "</article></li>")
    + "</ol></div>",
    "divs": '<div class="comments">' + each('<div class="comment">', "</div>") + "</div>",
    "German": '<section class="kommentare"><h2>Kommentare</h2>'
    + each('<div class="kommentar">', "</div>")
    + "</section>",
    "roles": "<section>" + each('<article role="comment">', "</article>") + "</section>",
    "microdata": "<div>" + each('<div itemprop="comment" itemscope>', "</div>") + "</div>",
    "elements of the site": each("<site-comment>", "</site-comment>"),
    "after a heading": "<section><h2>Comments (4)</h2>" + each("<div>", "</div>") + "</section>",
    "texts alone after a heading with a number": "<section><h3>4 commentaires</h3>"
    + "".join(f"<div class='row'><p>{text}</p></div>" for text in COMMENTS)
    + "</section>",
    "one element around items that are called otherwise": '<div class="CommentSection">'
    + each("<details><summary>Ferry</summary>", "</details>")
    + "</div>",
    "after a heading without a number": "<div><h3>Responses</h3>" + each("<div>", "</div>") + "</div>",
}


@pytest.mark.parametrize("name", THREADS)
@pytest.mark.parametrize("place", ["after", "inside"])
def test_no_comment_of_a_visitor_leaks_into_the_article(name, place):
    """Single comments were chosen as if they were paragraphs of the article: adbar/trafilatura#850."""
    thread = THREADS[name]
    main = f"<main><article>{BODY}</article></main>{thread}" if place == "after" else f"<main>{BODY}{thread}</main>"
    text = html_text(f"<html><body>{MENU}{main}{FOOTER}</body></html>").text
    assert text == "# The ferry stays\n\n" + "\n\n".join(ARTICLE)


def test_details_of_the_article_itself_stay():
    told = "<p>Forty hands went up, and thirty-nine stayed down.</p>"
    details = f"<details><summary>How the vote went</summary>{told}</details>"
    text = html_text(f"<html><body>{MENU}<main>{BODY}{details}</main>{FOOTER}</body></html>").text
    assert text.endswith("How the vote went\n\nForty hands went up, and thirty-nine stayed down.")


@pytest.mark.parametrize(
    "page",
    [
        # a chapter of a manual about comments in a language
        f'<main>{BODY}<section id="comments"><h2>Comments</h2><p>{COMMENTS[0]}</p>'
        + f"<section id='block-comments'><h3>Block comments</h3><p>{COMMENTS[1]}</p><pre># ferry</pre></section>"
        + f"</section><p>{COMMENTS[2]}</p></main>",
        # an opinion, which is called a commentary
        f'<div class="commentary">{BODY}<p>{COMMENTS[0]}</p><p>{COMMENTS[1]}</p><p>{COMMENTS[2]}</p></div>',
        # nothing but comments
        "<main><h1>Guests</h1>" + each('<div class="comment">', "</div>") + "</main>",
    ],
)
def test_comments_that_are_the_content_stay(page):
    text = html_text(f"<html><body>{MENU}{page}{FOOTER}</body></html>").text
    assert COMMENTS[0] in text and COMMENTS[1] in text and COMMENTS[2] in text


@pytest.mark.parametrize(("declared", "n_kept"), [("DiscussionForumPosting", 7), ("QAPage", 7), ("NewsArticle", 3)])
def test_comments_chosen_on_a_page_that_declares_a_discussion_stay(declared, n_kept):
    thread = "".join(f'<div class="comment"><p class="comment-text">{text}</p></div>' for text in COMMENTS)
    tree, page = parsed(f'<script>{{"@type": "{declared}"}}</script><div>{BODY}{thread}</div>')
    blocks = [block for block in blocks_of(tree) if block.place.tag == "p"]
    assert article(blocks, np.ones(len(blocks), bool), page).sum() == n_kept


LAST = {
    "table": (
        "<table><tr><th>stone</th><th>loss</th></tr><tr><td>granite</td><td>1.3</td></tr></table>",
        "| stone | loss |\n| --- | --- |\n| granite | 1.3 |",
    ),
    "list": ("<ul><li>Rope.</li><li>Tar.</li></ul>", "- Rope.\n- Tar."),
    "numbered list": ("<ol reversed><li>Rope.</li><li>Tar.</li></ol>", "2. Rope.\n1. Tar."),
    "listing": ("<pre>open gate\n  wait</pre>", "```\nopen gate\n  wait\n```"),
    "listing with a class": ('<pre class="prettyprint linenums hljs-toolbar">open gate</pre>', "```\nopen gate\n```"),
    "footnotes": ('<div class="footnotes"><ol><li>In 1790.</li></ol></div>', "1. In 1790."),
    "caption": ("<figure><img src='f.png'><figcaption>The ferry in 1790</figcaption></figure>", "The ferry in 1790"),
    "terms": ("<dl><dt>Rope</dt><dd>of hemp</dd></dl>", "Rope\n\nof hemp"),
    "short line": ("<p>The end</p>", "The end"),
    "quotation": ("<blockquote><p>Mind the rope</p></blockquote>", "Mind the rope"),
    "heading": ("<h2>Notes</h2><p>None.</p>", "## Notes\n\nNone."),
    "formula": ("<p><math><mi>v</mi><mo>=</mo><mn>2</mn></math></p>", "v=2"),
    "details": ("<details><summary>More</summary><p>No more.</p></details>", "More\n\nNo more."),
    "address": ("<address>Ferry Lane 1</address>", "Ferry Lane 1"),
}


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "<article>{}</article>",
        "<div class='page'><div class='entry'>{}</div></div>",
        MENU + "<main>{}</main>" + FOOTER,
    ],
)
def test_page_of_nothing_but_its_article_loses_nothing(name, around):
    """The last short table, list or listing of a page was left out for its low score."""
    markup, text = LAST[name]
    page = f"<html><head><title>The ferry</title></head><body>{around.format(BODY + markup)}</body></html>"
    assert html_text(page).text == "# The ferry stays\n\n" + "\n\n".join([*ARTICLE, text])


def test_short_page_without_boilerplate_is_kept_whole():
    table = "<table><tr><td>rye</td><td>2</td></tr></table>"
    page = f"<html><body><h1>Prices</h1>{table}<p>Closed on Sunday</p></body></html>"
    assert html_text(page).text == "# Prices\n\n| rye | 2 |\n| --- | --- |\n\nClosed on Sunday"


def test_boilerplate_inside_the_article_is_not_brought_back():
    share = "<aside><p>Tell your friends of it</p></aside>"
    related = '<div class="related"><h3>Also in the news</h3><ul><li><a href="/x">A swan was seen</a></li></ul></div>'
    text = html_text(f"<html><body>{MENU}<article>{BODY}{share}{related}</article>{FOOTER}</body></html>").text
    assert text == "# The ferry stays\n\n" + "\n\n".join(ARTICLE)
