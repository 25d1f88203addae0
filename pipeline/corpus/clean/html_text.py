"""The main text of an HTML page, without its menus, with its structure.

In: the decoded text of any page. Out: `Extracted`. Steps:
1. The tree is parsed once, formulas and listings are written into it as text (html_tree.py), and it is split into
   blocks (html_blocks.py).
2. resiliparse selects the main content; every block gets a score from that and from its place (html_choice.py). This
   decides most pages: extractor "resiliparse".
3. If the scores promise less than `sure` (in expected F1), trafilatura runs too and the blocks are scored from both
   selections: extractor "union". A page without a block of text has the extractor "none".
4. What belongs to the article though its score is low joins it, and visitors' comments leave it (html_article.py).
5. The chosen blocks are written with headings, lists, tables and listings (html_structure.py).

Measured by bench/clean.py, fitted by bench/fit_extraction.py on word-level F1; bench/results.md has the cost.
"""

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.html_article import article
from pipeline.corpus.clean.html_blocks import Block, blocks_of
from pipeline.corpus.clean.html_choice import choice, expected_f1, lengths, scores, units_of
from pipeline.corpus.clean.html_structure import structured
from pipeline.corpus.clean.html_tree import html_tree, readable

# written by `python -m bench.fit_extraction --write`: sure, caution, and the weights of both models
FITTED = json.loads(Path(__file__).with_name("html_weights.json").read_text(encoding="ascii"))
MAX_TITLE_CHARACTERS, MAX_HEADINGS = 1_000, 50
WORD = re.compile(r"\w+")
MIN_CHARACTERS = 500  # of a page; with fewer, <noscript> is read too
MAX_BLOCKS = 200_000  # the rest of a larger page is not read


def html_text(page: str) -> Extracted:
    tree, page = parsed(page)
    if tree is None:
        return Extracted("", extractor="none")
    title = title_of(tree)
    blocks, with_noscript = page_blocks(tree)
    if not blocks:
        return Extracted("", title=title, extractor="none")
    units, unit_of = units_of(blocks)
    size = lengths(units)
    chosen = {"resiliparse": by_resiliparse(page, with_noscript)}
    score, extractor = scores(units, chosen, FITTED["resiliparse"]), "resiliparse"
    if expected_f1(score, size) < FITTED["sure"]:
        chosen["trafilatura"] = by_trafilatura(tree)
        score, extractor = scores(units, chosen, FITTED["both"]), "union"
    keep = article(blocks, choice(score, size, FITTED["caution"])[unit_of], page)
    text = structured([block for block, is_kept in zip(blocks, keep, strict=True) if is_kept])
    return Extracted(text, title=title, extractor=extractor)


def parsed(page: str) -> tuple[Any | None, str]:
    """The root of the page's tree, or None; and the page as text with the same formulas and words."""
    import lxml.html

    page = readable(page)
    tree, is_rewritten = html_tree(page)
    if tree is None:
        return None, page
    return tree, str(lxml.html.tostring(tree, encoding="unicode")) if is_rewritten else page


def page_blocks(tree: Any, *, with_hidden: bool = True) -> tuple[list[Block], bool]:
    """The blocks of a page, and whether they include those that it shows if scripts do not run.

    Forums that are built as programs have their posts only there. `with_hidden`: also blocks that scripts may show.
    """
    blocks = blocks_of(tree, with_hidden=with_hidden)[:MAX_BLOCKS]
    if sum(len(block.text) for block in blocks) >= MIN_CHARACTERS:
        return blocks, False
    with_noscript = blocks_of(tree, with_noscript=True, with_hidden=with_hidden)[:MAX_BLOCKS]
    is_better = sum(len(block.text) for block in with_noscript) >= MIN_CHARACTERS
    return (with_noscript, True) if is_better else (blocks, False)


def by_resiliparse(page: str, with_noscript: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(page, main_content=True, alt_texts=False, noscript=with_noscript)


def by_trafilatura(tree: Any) -> str:
    import trafilatura

    text = trafilatura.extract(tree, fast=True, include_comments=False, with_metadata=False)
    return text or ""


def title_of(tree: Any) -> str | None:
    """The heading that the page's name contains, usually without the site's name; else that name; else a heading.

    The name is og:title, otherwise the title of the window.
    """
    head = tree.find("head")
    name = ""
    if head is not None:
        shared = next((m.get("content") for m in head.iter("meta") if m.get("property") == "og:title"), None)
        name = _one_line(shared or "") or _one_line(head.findtext("title") or "")
    headings = [_one_line("".join(islice(h1.itertext(), 50))) for h1 in islice(tree.iter("h1"), MAX_HEADINGS)]
    headings = [heading for heading in headings if WORD.search(heading)]
    said = set(WORD.findall(name.lower()))
    repeated = next((heading for heading in headings if said.issuperset(WORD.findall(heading.lower()))), None)
    return repeated or name or next(iter(headings), None)


def _one_line(text: str) -> str:
    return " ".join(text[:MAX_TITLE_CHARACTERS].split()).rstrip("\u00b6# ")
