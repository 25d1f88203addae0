"""Text files: what is markup and what is code, the frames of books, and what hostile markup costs."""

import time

import pytest

from pipeline.corpus.clean.markdown_text import markdown_text
from pipeline.corpus.clean.plain_text import plain_text
from pipeline.corpus.clean.rst_text import rst_text
from pipeline.corpus.clean.stage import PageItem, clean_page


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
    assert markdown_text(text).text == expected


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
    assert rst_text(text).text.strip() == expected


def test_rst_headings_get_the_level_of_their_adornment():
    text = "====\nMill\n====\n\nPart\n====\n\n|x| y\n\nWheel\n-----\n\n"
    text += "long text\n----\n\nStone\n-----\n\n==  ==\na   b\n==  ==\n"
    lines = [line for line in rst_text(text).text.split("\n") if line.startswith("#")]
    assert lines == ["# Mill", "## Part", "### Wheel", "### Stone"]


MARKDOWN = """---
title: Gates
---
A <!-- secret
> ```
--> gate `<!-- in\u00a0line -->` and ``a ` <!-- b -->``, \\`<!-- gone -->\\`.

```html
<!-- kept -->


caf\u00c3\u00a9\u200b
```

    <!-- kept, too -->

    indented\u00a0code

- an item

    <!-- gone --> paragraph of the item

      <!-- code of the item -->

> ~~~~
> <!-- quoted -->
> ~~~
> ~~~~

caf\u00c3\u00a9 <!-- gone -->

````
<!-- open
"""
MARKDOWN_TEXT = """A  gate `<!-- in\u00a0line -->` and ``a ` <!-- b -->``, \\`\\`.

```html
<!-- kept -->


caf\u00c3\u00a9\u200b
```

    <!-- kept, too -->

    indented\u00a0code

- an item

     paragraph of the item

      <!-- code of the item -->

> ~~~~
> <!-- quoted -->
> ~~~
> ~~~~

caf\u00e9

````
<!-- open
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_code_in_markdown_is_neither_read_as_markup_nor_repaired(line_end):
    """Comments were removed from listings that show them: the same kind as adamchainz/blacken-docs#207."""
    assert cleaned(MARKDOWN.replace("\n", line_end), "text/markdown") == MARKDOWN_TEXT


RST = """Gates
=====

Like this:: not yet::

   .. _gate:

   Title
   -----

\t:ref:`wheel`  ``x``


   .. image:: a.png
   caf\u00c3\u00a9

See :ref:`the wheel <wheel>`, ``:ref:`x``` and ``a__ b``, caf\u00c3\u00a9::

> .. quoted
> :ref:`a`

- an item::

    __ = code

  after `it <https://a.example>`_.

.. note::

   A note::

      .. index:: x

   goes on.

.. code-block:: python
   :linenos:
   :caption: none

   text = ":ref:`wheel`"
   # ::

   .. comment in code

.. a comment::

   with a block

..
   another comment

..

   A quotation stays.

>>> print(":ref:`a`")
:ref:`a`

.. parsed-literal::

   ``x`` __ y

::

   .. toctree::

.. toctree::
   :hidden:

   a::

.. _target: https://a.example
__ https://b.example
.. math:: a^2

.. [1] A note of :ref:`x`.
"""
RST_SHOWN = """# Gates

Like this:: not yet:

   .. _gate:

   Title
   -----

\t:ref:`wheel`  ``x``


   .. image:: a.png
   caf\u00c3\u00a9

See the wheel, `:ref:`x`` and `a__ b`, caf\u00e9:

> .. quoted
> :ref:`a`

- an item:

    __ = code

  after it.

note:

   A note:

      .. index:: x

   goes on.

   text = ":ref:`wheel`"
   # ::

   .. comment in code

   A quotation stays.

>>> print(":ref:`a`")
:ref:`a`

   ``x`` __ y

   .. toctree::

math a^2

.. [1] A note of x."""


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_code_in_rst_stays_word_for_word(line_end):
    """Directives and roles inside literal blocks were taken for real ones: zephyrproject-rtos/zephyr#30865."""
    assert cleaned(RST.replace("\n", line_end), "text/x-rst") == RST_SHOWN


BOOK = "CHAPTER I\n\nThe lamp burned green.\n\n* * *\n\nA dog barked."
STARTS = (
    "*** START OF THE PROJECT GUTENBERG EBOOK LAMPS: TRUE AND\nCURIOUS ACCOUNTS OF\nTENDERS ***",
    "***START OF THIS PROJECT GUTENBERG ETEXT LAMPS***",
    "*** start of the project\ngutenberg e-text lamps\n***",
    "*** START OF THE PROJECT GUTENBERG EBOOK LAMPS *\n**",
    "*** START OF THE PROJECT GUTENBERG EBOOK L*A*M*P*S\nAND MORE ***",
    "****START OF PROJECT GUTENBERG'S EBOOK LAMPS**",
    "*** START OF THIS PROJECT GUTENBERG EBOOK ***\n\nCredits: A\n\nNote: Project Gutenberg also has HTML\n  files.",
    "* * * START OF THE PROJECT GUTENBERG EBOOK LAMPS * * *",
    "*** START OF THE PROJECT GUTENBERG EBOOK LAMPS",
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN\nETEXTS*Ver.04.29.93*END*",
    "*** START OF THIS PROJECT GUTENBERG EBOOK LAMPS ***\n\n***START**THE SMALL PRINT!**\nWords.\n\n"
    "*END*THE SMALL PRINT!*END*",
    "*** START OF THE PROJECT GUTENBERG EBOOK LAMPS ***\n\nProduced by A. Nobody and the Online Distributed\nTeam",
    "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nE-text prepared by A. Nobody\n\nThis eBook was made by me.",
)  # fmt: skip
ENDS = (
    "*** END OF THE PROJECT GUTENBERG EBOOK LAMPS: TRUE AND\nTENDERS ***\nlicence " + "words " * 500,
    "End of the Project Gutenberg EBook of Lamps, by X\n\n*** END OF THIS PROJECT GUTENBERG EBOOK LAMPS ***\n",
    "***END OF THE PROJECT\nGUTENBERG ETEXT LAMPS***",
    "End of Project Gutenberg's Lamps",
    "Ende dieses Project Gutenberg Etextes, Lampen",
    "Fin de l'EBook de Lampes, Project Gutenberg",
    "Updated editions will replace the previous one--the old editions will\nbe renamed.",
    "",
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", STARTS)
def test_gutenberg_frame_goes_in_each_of_its_forms(start, end, line_end):
    """A mark over several lines was not seen: gutenbergtools/ebookmaker#209."""
    text = f"The Project Gutenberg eBook of Lamps\n\nlicence\n\n{start}\n\n\n{BOOK}\n\n{end}"
    assert cleaned(text.replace("\n", line_end), "text/plain") == BOOK


def test_gutenberg_frame_that_a_text_only_speaks_of_stays():
    text = "Each file says *** START OF THE PROJECT GUTENBERG EBOOK X *** where it begins.\n\nProduced by hand.\n"
    assert plain_text(text) == text


def cleaned(text: str, media_type: str) -> str:
    item = PageItem("p", "s", "u", media_type, None, None, text.encode(), too_large=False)
    return clean_page(item).text


@pytest.mark.parametrize("function", [plain_text, markdown_text, rst_text])
@pytest.mark.parametrize(
    "piece",
    [
        "`", " ", "\t", "`a ", "`a <", ":a:`", "a:", ".. ", "..\n", ".. a::\n", ".. |a", "__", "a__ ", "=",
        "::\n", "<!--", "---\n", "*** START OF THE PROJECT GUTENBERG EBOOK", "End of Project Gutenberg",
        ".. _", "   :a:", " \n", ":a:`<", ".. x\n ", "``", "a::\n\n", "a::\n\n b\n", ">>> a\n", "    a\n\n", "- ",
        "~~~\n", "` `` ", "`` a\n\n", "\\`", "<!-- -->", "*END*THE SMALL PRINT!", "Produced by\n", "*\n", "1. a\n",
        "> ", "\t\n\n",
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
