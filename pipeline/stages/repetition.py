"""How much of a text repeats itself: Gopher's repetition measures (arXiv:2112.11446, table A1).

In: text and its words. Out: fractions, as datatrove 0.10.1 counts them:
- duplicate lines and paragraphs: all but the first of equal ones, by number and by characters
- top n-gram: characters of the commonest n-gram, its words joined by a space, times its number; of equally common
  ones that which comes first
- duplicate n-grams: from left to right, an n-gram that was met before counts its characters without the spaces and
  is stepped over as a whole, so that no character counts twice
Characters are divided by all characters of the text. n-grams are compared word by word, never by hash. An n-gram can
only repeat where its first n - 1 words repeat, so that longer ones are looked for in ever fewer places.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.stages.words import Words

PARAGRAPH_END = re.compile(r"\n{2,}")
LINE_ENDS = re.compile(r"\n+")
TOP = (2, 3, 4)
DUPLICATE = range(5, 11)


def repetition_signals(text: str, words: Words) -> dict[str, float]:
    n_characters = max(1, len(text))
    paragraphs = PARAGRAPH_END.split(text.strip())
    lines = LINE_ENDS.split(text)
    signals = {
        "duplicate_paragraph_fraction": (len(paragraphs) - len(set(paragraphs))) / len(paragraphs),
        "duplicate_paragraph_characters": repeated_characters(paragraphs) / n_characters,
        "duplicate_line_fraction": (len(lines) - len(set(lines))) / len(lines),
        "duplicate_line_characters": repeated_characters(lines) / n_characters,
        **{f"top_{n}_gram": 0.0 for n in TOP},
        **{f"duplicate_{n}_gram": 0.0 for n in DUPLICATE},
    }
    ends = np.concatenate(([0], np.cumsum(words.lengths)))
    for n, places, groups, counts in _repeated(words.ids):
        if n in TOP:
            signals[f"top_{n}_gram"] = _top(n, places, groups, counts, ends) / n_characters
        elif n in DUPLICATE:
            signals[f"duplicate_{n}_gram"] = _stepped_over(n, places, groups, ends) / n_characters
    return signals


def repeated_characters(parts: Sequence[str]) -> int:
    """Characters of all but the first of equal parts."""
    return sum(map(len, parts)) - sum(map(len, set(parts)))


def _repeated(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each n: where the n-grams that repeat begin, which group of equal ones each is of, and how large that is."""
    n_words = len(ids)
    ids = np.unique(ids, return_inverse=True)[1]
    places, groups, counts = np.arange(n_words), ids, np.zeros(0, dtype=np.int64)
    for n in range(2, max(DUPLICATE) + 1):
        if n > n_words:
            return
        inside = places + n <= n_words
        places = places[inside]
        keys = groups[inside] * n_words + ids[places + n - 1]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(ordered)])
        sizes = np.diff(first, append=len(ordered))
        group = np.repeat(np.arange(len(first)), sizes)
        size = np.repeat(sizes, sizes)
        repeats = size > 1
        back = np.argsort(order[repeats], kind="stable")  # in the order of the text again
        places, groups, counts = places[order[repeats]][back], group[repeats][back], size[repeats][back]
        yield n, places, groups, counts


def _top(n: int, places: np.ndarray, groups: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> int:
    if not len(places):  # every n-gram occurs once: the first is the commonest
        return int(ends[n]) + n - 1
    first = int(np.argmax(counts))
    place = places[first]
    return int((ends[place + n] - ends[place] + n - 1) * counts[first])


def _stepped_over(n: int, places: np.ndarray, groups: np.ndarray, ends: np.ndarray) -> int:
    met: set[int] = set()
    characters = behind = 0
    lengths = ends[places + n] - ends[places]
    for place, group, length in zip(places.tolist(), groups.tolist(), lengths.tolist(), strict=True):
        if place < behind:
            continue
        if group in met:
            characters += length
            behind = place + n
        else:
            met.add(group)
    return characters
