"""Makes an article of the blocks that were chosen one by one: with all that is its own, without what visitors wrote.

In: the blocks of a page, and the choice of html_choice.py. Out: the corrected choice, by two rules:
- Visitors' comments are left out entirely on a page with an article, because single ones read like parts of it. They
  are known by the names of their elements. A page that declares itself a discussion keeps them.
- An element of which most was chosen keeps its other blocks too, such as a short table or list at its end, unless a
  block shows signs of boilerplate: it is in a menu, a footer or another element with such a name, or mostly links.
  A page on which nothing shows such signs is kept whole.

The figures of bench/fit_extraction.py include both rules.
"""

import re
from collections import Counter

import numpy as np

from pipeline.corpus.clean.html_blocks import CLASSES, HEADINGS, TAGS, Block, Place
from pipeline.corpus.clean.html_choice import lengths

DISCUSSIONS = ("DiscussionForumPosting", "QAPage")  # types of schema.org
MAX_SECTIONS = 20  # of comments
MIN_COMMENTS, MIN_ARTICLE = 2, 200  # elements; characters that are chosen beside them
COMMENTS_HEADING = re.compile(
    r"(?:\d+ )?(?:comments?|responses|replies|reader comments|kommentare?|commentaires?|comentarios|comentários"
    r"|commenti|reacties|kommentarer|komentarze|комментарии|коментарі|コメント|评论|評論|留言|댓글)"
    r"(?: ?[(\[:] ?\d* ?[)\]]?| \d+)?"
    r"|\d+ thoughts? on .{1,200}",
    re.IGNORECASE,
)
COMMENTS_NAME = re.compile(
    r"(?:^|[\s_-])(?:comments|kommentare|commentaires|comentarios)(?:$|[\s_-])"
    r"|comments?[_-]?(?:section|list|thread|area|tree|container|wrapper)",
    re.IGNORECASE,
)  # of the element that holds them all
MOST, MIN_CHOSEN = 0.5, 50  # share of the characters of an element, and their number
LINKS = 0.5  # share of the characters of a block
BOILERPLATE_TAGS = sum(
    1 << TAGS.index(tag) for tag in ("nav", "footer", "header", "aside", "form", "button", "dialog")
)
BOILERPLATE_CLASSES = sum(
    1 << CLASSES.index(name)
    for name in (
        "nav",
        "footer",
        "header",
        "side",
        "related",
        "share",
        "comment",
        "overlay",
        "ads",
        "signup",
        "hidden",
    )
)
PARTS = frozenset(  # elements that belong to the one around them
    {"p", "li", "ul", "ol", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th", "pre"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "figure", "figcaption", "formula"}
)


def article(blocks: list[Block], keep: np.ndarray, page: str) -> np.ndarray:
    """`keep`, for each block of `page`, corrected."""
    if not any(kind in page for kind in DISCUSSIONS):
        keep = without_comments(blocks, keep)
    return completed(blocks, keep)


def without_comments(blocks: list[Block], keep: np.ndarray) -> np.ndarray:
    comments = [block.place.comment for block in blocks]
    elements = {id(comment): comment for comment in comments if comment is not None}
    n_nested = sum(1 for element in elements.values() if element.above is not None and element.above.comment)
    is_comment = np.array([comment is not None for comment in comments])
    if len(elements) + n_nested < MIN_COMMENTS and not any(_holds_comments(blocks, e) for e in elements.values()):
        is_comment[:] = False
    headings = [i for i, block in enumerate(blocks) if block.place.tag in HEADINGS]
    for i in [i for i in headings if COMMENTS_HEADING.fullmatch(blocks[i].text)][:MAX_SECTIONS]:
        is_comment[i : _end_of_comments(blocks, i)] = True
    if not is_comment.any():
        return keep
    if lengths(blocks)[keep & ~is_comment].sum() < MIN_ARTICLE:
        return keep
    return keep & ~is_comment


def _end_of_comments(blocks: list[Block], heading: int) -> int:
    """The end of a section that begins with a heading such as "Comments" and holds at least two alike items.

    An item has a block with its author and one with its text, so that a chapter about comments is not taken for one;
    where the heading says how many comments there are, the text is enough.
    """
    section = blocks[heading].place.above
    while section is not None and section.above is not None and section.end == heading + 1:
        section = section.above
    if section is None or section.first != heading:
        return heading
    is_counted = any(sign.isdigit() for sign in blocks[heading].text)
    n_alike = _n_alike(blocks, section, heading + 1, n_least=1 if is_counted else 2)
    return section.end if n_alike >= MIN_COMMENTS else heading


def _n_alike(blocks: list[Block], section: Place, first: int, n_least: int) -> int:
    """The largest number of alike elements among those directly below `section` that have at least `n_least` blocks.

    Elements before the block `first` are left out, and so are paragraphs and other parts of a text. A section with a
    listing is a chapter about comments.
    """
    if any(block.place.tag == "pre" for block in blocks[first : section.end]):
        return 0
    items: Counter[tuple[int, tuple[str, str]]] = Counter()
    for block in blocks[first : section.end]:
        item = block.place
        while item.above is not None and item.above is not section and item.above.first > first:
            item = item.above
        if n_least > 1 or item.tag not in PARTS or item.tag == "li":
            items[id(item), item.signature] += 1
    alike = Counter(signature for (_, signature), n_blocks in items.items() if n_blocks >= n_least)
    return max(alike.values(), default=0)


def _holds_comments(blocks: list[Block], element: Place) -> bool:
    """Whether its name says that it holds comments, and it has several alike items."""
    return (
        COMMENTS_NAME.search(element.signature[1]) is not None
        and _n_alike(blocks, element, element.first, n_least=1) >= MIN_COMMENTS
    )


def completed(blocks: list[Block], keep: np.ndarray) -> np.ndarray:
    suspect = np.array([_is_suspect(block) for block in blocks])
    if not suspect.any():
        return np.ones(len(blocks), bool)
    left_out = np.flatnonzero(~keep & ~suspect)
    if not keep.any() or not len(left_out):
        return keep
    sums = _Sums(lengths(blocks), keep, suspect)
    found = keep.copy()
    for i in left_out:
        found[i] = _belongs(blocks[i].place, sums)
    return found


class _Sums:
    """Of the blocks before each block: their characters, those that were chosen, and the suspects."""

    def __init__(self, size: np.ndarray, keep: np.ndarray, suspect: np.ndarray) -> None:
        self.size, self.chosen, self.suspects = (
            np.concatenate([[0.0], np.cumsum(values)]) for values in (size, size * keep, suspect)
        )

    def is_mostly_chosen(self, place: Place) -> bool:
        chosen = self.chosen[place.end] - self.chosen[place.first]
        return chosen >= MIN_CHOSEN and chosen >= MOST * (self.size[place.end] - self.size[place.first])

    def is_clean(self, place: Place) -> bool:
        return self.suspects[place.end] == self.suspects[place.first]


def _is_suspect(block: Block) -> bool:
    place = block.place
    return (
        place.tags & BOILERPLATE_TAGS != 0
        or place.around & BOILERPLATE_CLASSES != 0
        or place.comment is not None
        or block.link_characters > LINKS * len(block.text)
    )


def _belongs(place: Place, sums: _Sums) -> bool:
    """Whether the element around a block was mostly chosen, or a wider one in which no block is suspect."""
    container: Place | None = place
    while container is not None and container.tag in PARTS and container.above is not None:
        container = container.above
    is_nearest = True
    while container is not None and (is_nearest or sums.is_clean(container)):
        if sums.is_mostly_chosen(container):
            return True
        container, is_nearest = container.above, False
    return False
