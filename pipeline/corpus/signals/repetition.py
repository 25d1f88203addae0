"""How much of a text repeats itself: Gopher's repetition measures (arXiv:2112.11446, table A1).

In: a text and its words. Out: fractions, counted as datatrove 0.10.1 does:
- duplicate lines and paragraphs: all but the first of equal ones, by number and by characters
- top n-gram: the number of occurrences of the most frequent n-gram times its characters, its words joined by a space;
  of equally frequent ones the first
- duplicate n-grams: from left to right, an n-gram that occurred before counts its characters without the spaces and
  is then skipped as a whole, so that no character counts twice
Characters are divided by all characters of the text. n-grams are compared word by word, never by hash. An n-gram can
only repeat where its first n - 1 words repeat, so the search for longer ones covers ever fewer positions.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.corpus.words import Words

PARAGRAPH_END = re.compile(r"\n{2,}")
TOP = (2, 3, 4)
DUPLICATE = range(5, 11)


def repetition_signals(text: str, words: Words) -> dict[str, float]:
    n_characters = max(1, len(text))
    stripped = text.strip()
    paragraphs = PARAGRAPH_END.split(stripped) if "\n\n\n" in stripped else stripped.split("\n\n")
    lines = _lines(text)
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
    """Number of characters of all but the first of equal parts."""
    return sum(map(len, parts)) - sum(map(len, set(parts)))


def _lines(text: str) -> list[str]:
    """The parts between runs of line ends; a run at an end of the text has an empty part next to it."""
    lines = [line for line in text.split("\n") if line]
    return lines + [""] * (text.startswith("\n") + text.endswith("\n") or not lines)


def _repeated(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each n: the starts of the repeated n-grams, the group of equal ones of each, and the size of the group."""
    n_words = len(ids)
    if not n_words:
        return
    ids = _groups(ids)[0]
    places, groups = np.arange(n_words), ids
    for n in range(2, max(DUPLICATE) + 1):
        inside = np.searchsorted(places, n_words - n, side="right")
        places = places[:inside]
        if n > n_words:
            return
        groups, sizes = _groups(groups[:inside] * n_words + ids[places + n - 1])
        repeats = sizes > 1
        places, groups = places[repeats], groups[repeats]
        yield n, places, groups, sizes[repeats]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every key the number of its group of equal keys, below len(keys), and the size of that group."""
    n_keys = len(keys)
    if not n_keys:
        return keys, keys
    bits = n_keys.bit_length()
    if int(keys.max()).bit_length() + bits < 63:  # key and position in one number sort several times faster
        packed = np.sort((keys << bits) | np.arange(n_keys))
        order, ordered = packed & ((1 << bits) - 1), packed >> bits
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    begins = np.empty(n_keys, dtype=bool)
    begins[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    group = np.cumsum(begins) - 1
    groups = np.empty(n_keys, dtype=np.int64)
    groups[order] = group
    return groups, np.bincount(group)[groups]


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
