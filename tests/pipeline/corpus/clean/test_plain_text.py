"""Text files: what hostile markup costs, and what stays. What cleaning makes of them stands in test_clean.py."""

import time

import pytest

from pipeline.corpus.clean.plain_text import markdown_text, plain_text, rst_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <!-- b --> c <!-- d\n\n--> e", "a  c  e"),
        ("a <!-- b", "a <!-- b"),
        ("a <!--> b --> c", "a  c"),
        ("---\ntitle: x\n---\n# A", "# A"),
    ],
)
def test_markdown_comments_and_front_matter_go_and_open_ones_stay(text, expected):
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`our site  <https://a.example>`_", "our site"),
        (":ref:`the <b> guide <guide>`", "the <b> guide"),
        (":class:`~mill.Wheel`", "Wheel"),
        (":ref:`a > b`", "a > b"),
    ],
)
def test_rst_links_and_roles_show_their_text(text, expected):
    assert rst_text(text).strip() == expected


def test_rst_headings_get_the_level_of_their_adornment():
    text = "====\nMill\n====\n\nPart\n====\n\n|x| y\n\nWheel\n-----\n\n"
    text += "long text\n----\n\nStone\n-----\n\n==  ==\na   b\n==  ==\n"
    lines = [line for line in rst_text(text).split("\n") if line.startswith("#")]
    assert lines == ["# Mill", "## Part", "### Wheel", "### Stone"]


@pytest.mark.parametrize("function", [plain_text, markdown_text, rst_text])
@pytest.mark.parametrize(
    "piece",
    [
        "`", " ", "\t", "`a ", "`a <", ":a:`", "a:", ".. ", "..\n", ".. a::\n", ".. |a", "__", "a__ ", "=",
        "::\n", "<!--", "---\n", "*** START OF THE PROJECT GUTENBERG EBOOK", "End of Project Gutenberg",
        ".. _", "   :a:", " \n", ":a:`<", ".. x\n ",
    ],
)  # fmt: skip
def test_text_hostile_markup_costs_time_in_proportion_to_its_length(function, piece):
    """A link that never ends, or a comment, once took time with the square of the page: found by fuzzing."""

    def seconds(n_characters: int) -> float:
        text = "`" + piece * (n_characters // len(piece))
        started = time.thread_time()
        function(text)
        return time.thread_time() - started

    assert seconds(100_000) < 25 * max(0.02, seconds(10_000))
