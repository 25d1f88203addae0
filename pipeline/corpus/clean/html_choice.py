"""Selects the blocks that form the main text of a page, by a linear score of features and of extractors' choices.

In: the blocks of a page, and the text that each extractor (resiliparse; trafilatura if it ran) took from the same
page. Out: one score per unit (a block, a short list or a table, see `units_of`), an estimate of the share of its
words that belong to the main text, and the choice based on these scores. The weights are in html_weights.json;
bench/fit_extraction.py fits them (ridge regression).

The choice maximises the expected F1 of a page: a block whose score is above half of the F1 that the page can reach
raises it (arXiv:1402.1892). `caution` scales that half; it is chosen by cross-validation.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.corpus.clean.html_blocks import CLASSES, HEADINGS, TAGS, Block, Place, row_of

NOT_A_WORD_CHARACTER = re.compile(r"\W+")
SENTENCE_ENDS = (".", "?", "!", ":", '"', "\u201d")
PIECE = 20  # characters; a long block is searched in an extractor's text in pieces of this length
MIN_PIECED = 25  # shorter blocks must be a whole line of the extractor's text
MAX_PIECES = 12  # per block, spread over it
# Limit of compared characters per page in the search for pieces: about a second.
MAX_COMPARED = 1_000_000_000
MENU_TAGS = sum(1 << TAGS.index(tag) for tag in ("nav", "aside", "footer"))
MENU_CLASSES = sum(1 << CLASSES.index(name) for name in ("nav", "side", "footer"))
MIN_MENU, MENU_LINK_SHARE = 5, 0.8  # number of entries; share of the characters
SHORT = 300  # characters of a cell or an item
MAX_ITEMS = 60  # of a list that is kept or dropped as a whole
LEAST_SCORE = 0.01  # of units that are not menus, so that a page of such units is not empty
WINDOWS = (2, 6)  # blocks on either side
AROUND = (
    "nav",
    "footer",
    "header",
    "side",
    "related",
    "comment",
    "overlay",
    "hidden",
)  # classes that also describe their descendants
BLOCK_KINDS = {
    "p": ("p", "blockquote"),
    "heading": tuple(HEADINGS),
    "item": ("li",),
    "cell": ("td", "th"),
    "code": ("pre",),
    "term": ("dt",),
    "definition": ("dd",),
}


def features(blocks: list[Block], chosen: Mapping[str, str]) -> tuple[np.ndarray, list[str]]:
    """One row per block, and the names of the columns. `chosen`: name of an extractor -> the text that it took."""
    n_words = np.array([block.text.count(" ") + block.text.count("\n") + 1 for block in blocks], np.float64)
    columns = _own_columns(blocks, n_words)
    shown = {name: found_in(blocks, text) for name, text in chosen.items()}
    for name in ("log_words", "link_share", "sentence_end"):
        columns |= _around(name, columns[name], n_words)
    for name, found in shown.items():
        columns[name] = found
        columns |= _around(name, found, n_words) | _by_page(name, found, n_words)
    names = sorted(shown)
    for i, one in enumerate(names):
        for other in names[:i]:
            both, either = np.minimum(shown[one], shown[other]), np.maximum(shown[one], shown[other])
            columns[f"{one}_and_{other}"] = np.full(len(blocks), both @ n_words / max(1.0, either @ n_words))
    return np.stack(list(columns.values()), axis=1), list(columns)


def scores(blocks: list[Block], chosen: Mapping[str, str], weights: Mapping[str, float]) -> np.ndarray:
    matrix, names = features(blocks, chosen)
    raw = matrix @ np.array([weights[name] for name in names]) + weights["bias"]
    return bounded(blocks, raw.round(6))  # the last bits of a matrix product differ between processors


def bounded(units: list[Block], raw: np.ndarray) -> np.ndarray:
    """Scores between 0 and 1; 0 for menus."""
    return np.where(_menus(units, lengths(units)), 0.0, np.clip(raw, LEAST_SCORE, 1.0))


def units_of(blocks: list[Block]) -> tuple[list[Block], np.ndarray]:
    """Units, which are kept or dropped as a whole, and for every block the index of its unit.

    Units are lists of short items, data tables with short cells, rows of data tables with long cells, a block with
    the formulas displayed after it, and other blocks.
    """
    short = _short_groups(blocks)
    positions: dict[int, int] = {}
    members: list[list[Block]] = []
    unit_of = np.zeros(len(blocks), np.int64)
    for i, block in enumerate(blocks):
        row, outer_list = row_of(block), block.place.outer_list
        key = id(block)
        if row is not None:
            key = id(row.table) if id(row.table) in short else id(row)
        elif id(outer_list) in short:
            key = id(outer_list)
        elif i > 0 and _continues(block.place, blocks[i - 1].place):
            unit_of[i] = unit_of[i - 1]
            members[unit_of[i]].append(block)
            continue
        unit_of[i] = positions.setdefault(key, len(members))
        if unit_of[i] == len(members):
            members.append([])
        members[unit_of[i]].append(block)
    return [_joined(group) for group in members], unit_of


def _continues(place: Place, before: Place) -> bool:
    """Whether a displayed formula belongs to the block before it."""
    if place.tag != "formula" or place.above is None:
        return False
    return before is place.above or before.above in (place.above, place.above.above)


def _short_groups(blocks: list[Block]) -> set[int]:
    """Ids of data tables without a long cell, and of outermost lists without a long item."""
    longest: dict[int, int] = {}
    n_items: Counter[int] = Counter()
    for block in blocks:
        row, outer_list = row_of(block), block.place.outer_list
        if row is not None:
            key = id(row.table)
        elif outer_list is not None and outer_list.tag != "dl":
            key = id(outer_list)
            n_items[key] += 1
        else:
            continue
        longest[key] = max(len(block.text), longest.get(key, 0))
    return {key for key, length in longest.items() if length <= SHORT and n_items[key] <= MAX_ITEMS}


def _joined(group: list[Block]) -> Block:
    if len(group) == 1:
        return group[0]
    text = "\n".join(block.text for block in group)
    return Block(text, sum(block.link_characters for block in group), group[0].place)


def lengths(blocks: list[Block]) -> np.ndarray:
    return np.array([len(block.text) for block in blocks], np.float64)


def expected_f1(score: np.ndarray, size: np.ndarray) -> float:
    """The best F1 that a choice of blocks is expected to reach, if the scores are right."""
    order = np.argsort(-score, kind="stable")
    right, taken = np.cumsum((score * size)[order]), np.cumsum(size[order])
    return float(np.max(2 * right / (taken + right[-1] + 1e-9), initial=0.0))


def choice(score: np.ndarray, size: np.ndarray, caution: float) -> np.ndarray:
    """True for the units to keep: at least one, unless all are menus."""
    half = 0.5 * expected_f1(score, size)
    keep = score >= caution * half
    # on a page with low scores the cautious choice can be empty; the best unit is always above the half
    return (keep if keep.any() else score >= half) & (score > 0)


def found_in(blocks: list[Block], text: str) -> np.ndarray:
    """Share of each block, 0 to 1, that occurs in `text`; spaces and punctuation are ignored."""
    lines = {_letters(line) for line in text.split("\n")}
    whole = _letters(text)
    found = np.zeros(len(blocks))
    budget = MAX_COMPARED // (1 + len(whole))
    for i, block in enumerate(blocks):
        letters = _letters(block.text)
        if not letters:
            continue
        if letters in lines:
            found[i] = 1.0
        elif len(letters) >= MIN_PIECED and budget > 0:
            step = max(PIECE, len(letters) // MAX_PIECES)
            starts = range(0, len(letters) - PIECE + 1, step)
            found[i] = sum(letters[s : s + PIECE] in whole for s in starts) / len(starts)
            budget -= len(starts)
    return found


def _letters(text: str) -> str:
    return NOT_A_WORD_CHARACTER.sub("", text.lower())


def _own_columns(blocks: list[Block], n_words: np.ndarray) -> dict[str, np.ndarray]:
    n = len(blocks)
    places = [block.place for block in blocks]
    link = np.array([block.link_characters / len(block.text) for block in blocks]).clip(0.0, 1.0)
    signatures = [place.signature for place in places]
    n_alike, words_alike = Counter(signatures), Counter[Any]()
    for signature, words in zip(signatures, n_words, strict=True):
        words_alike[signature] += words
    n_same_text = Counter(block.text for block in blocks)
    total, position = n_words.sum(), np.arange(n)
    first_heading = next((i for i, place in enumerate(places) if place.tag == "h1"), None)
    columns = {
        "log_words": np.log1p(n_words),
        "link_share": link,
        "sentence_end": np.array([block.text.endswith(SENTENCE_ENDS) for block in blocks], np.float64),
        "depth": np.minimum(np.array([place.depth for place in places], np.float64), 40.0),
        "position": np.cumsum(n_words) / total,
        "log_before": np.log1p(position),
        "log_after": np.log1p(n - 1 - position),
        "log_page_words": np.full(n, np.log1p(total)),
        "log_page_blocks": np.full(n, np.log1p(n)),
        "page_link_share": np.full(n, link @ n_words / total),
        "log_alike": np.log1p([n_alike[s] for s in signatures]),
        "share_alike": np.array([words_alike[s] for s in signatures]) / total,
        "log_words_alike": np.log1p([words_alike[s] / n_alike[s] for s in signatures]),
        "log_same_text": np.log1p([n_same_text[block.text] for block in blocks]),
        "after_h1": np.full(n, 0.5) if first_heading is None else (position >= first_heading).astype(np.float64),
    }
    columns |= _by_list(places, link, n_words)
    for kind, tags in BLOCK_KINDS.items():
        columns[f"is_{kind}"] = np.array([place.tag in tags for place in places], np.float64)
    for prefix, names, bits in (
        ("in", TAGS, np.array([place.tags for place in places], np.int64)),
        ("class", CLASSES, np.array([place.classes for place in places], np.int64)),
        ("around", CLASSES, np.array([place.around for place in places], np.int64)),
    ):
        for i, name in enumerate(names):
            if prefix != "around" or name in AROUND:
                columns[f"{prefix}_{name}"] = ((bits >> i) & 1).astype(np.float64)
    return columns


def _by_list(places: list[Place], link: np.ndarray, n_words: np.ndarray) -> dict[str, np.ndarray]:
    """Words of the whole list that contains a block, and the share of them in links. A menu is a list of links."""
    ids: dict[int, int] = {}
    of = np.array([-1 if p.outer_list is None else ids.setdefault(id(p.outer_list), len(ids)) for p in places])
    listed = of >= 0
    words = np.bincount(of[listed], n_words[listed], len(ids))
    share = np.bincount(of[listed], (link * n_words)[listed], len(ids)) / np.maximum(words, 1.0)
    log_words, link_share = np.zeros(len(places)), np.zeros(len(places))
    log_words[listed], link_share[listed] = np.log1p(words[of[listed]]), share[of[listed]]
    return {
        "in_list": listed.astype(np.float64),
        "list_log_words": log_words,
        "list_link_share": link_share,
        "list_of_links": (link_share > 0.8).astype(np.float64),
        "list_links_log_words": link_share * log_words,
    }


def _around(name: str, values: np.ndarray, n_words: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the block before and the block after, and means over windows, weighted by words."""
    n = len(values)
    position = np.arange(n)
    columns = {
        f"{name}_before": np.concatenate([[0.0], values[:-1]]),
        f"{name}_after": np.concatenate([values[1:], [0.0]]),
    }
    sums = np.concatenate([[0.0], np.cumsum(values * n_words)])
    words = np.concatenate([[0.0], np.cumsum(n_words)])
    for radius in WINDOWS:
        low, high = np.maximum(0, position - radius), np.minimum(n, position + radius + 1)
        columns[f"{name}_within_{radius}"] = (sums[high] - sums[low]) / (words[high] - words[low])
    return columns


def _by_page(name: str, found: np.ndarray, n_words: np.ndarray) -> dict[str, np.ndarray]:
    """How much of the page an extractor took, and the position of a block relative to it."""
    n = len(found)
    position, taken = np.arange(n), found @ n_words
    hits = np.flatnonzero(found > 0.5)
    first, last = (hits[0], hits[-1]) if len(hits) else (n, -1)
    return {
        f"{name}_page_share": np.full(n, taken / n_words.sum()),
        f"{name}_page_words": np.full(n, np.log1p(taken)),
        f"{name}_spans": ((position >= first) & (position <= last)).astype(np.float64),
        f"{name}_starts_in": np.log1p(np.maximum(0, first - position)),
        f"{name}_ended_ago": np.log1p(np.maximum(0, position - last)),
    }


def _menus(blocks: list[Block], size: np.ndarray) -> np.ndarray:
    """True for blocks of lists that are almost only links, inside elements marked as navigation, sidebar, footer."""
    lists: dict[int, list[int]] = {}
    for i, block in enumerate(blocks):
        place = block.place
        if place.outer_list is not None and (place.around & MENU_CLASSES or place.tags & MENU_TAGS):
            lists.setdefault(id(place.outer_list), []).append(i)
    is_menu = np.zeros(len(blocks), bool)
    for members in lists.values():
        links = sum(blocks[i].link_characters for i in members)
        is_menu[members] = (
            sum(blocks[i].text.replace("\n\n", "\n").count("\n") + 1 for i in members) >= MIN_MENU
            and links > MENU_LINK_SHARE * size[members].sum()
        )
    return is_menu
