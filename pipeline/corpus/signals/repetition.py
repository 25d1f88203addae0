"""How much of a text repeats itself: Gopher's repetition measures (arXiv:2112.11446, table A1).

In: a text and its words. Out: fractions, counted as datatrove 0.10.1 does:
- duplicate lines and paragraphs: all but the first of equal ones, by number and by characters
- top n-gram: the number of occurrences of the most frequent n-gram times its characters, its words joined by a space;
  of equally frequent ones the first
- duplicate n-grams: from left to right, an n-gram that occurred before counts its characters without the spaces and
  is then skipped as a whole, so that no character counts twice
Characters are divided by all characters of the text. n-grams are compared word by word, never by hash. An n-gram can
only repeat where its first n - 1 words repeat, so the search for longer ones covers ever fewer positions.

In scripts without spaces the units are characters, of which several make a word (words.py). There an n-gram is a run
of as many characters as n words have on average, without spaces in between.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.corpus.words import UNSPACED, Words

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
    joined = ends[:-1] + _spaces_before(words)
    units = len(words.ids) / max(1.0, words.n_words())  # per word
    words_in = {max(n, round(n * units)): n for n in (*TOP, *DUPLICATE)}  # units of an n-gram -> n
    for n_units, places, groups, counts in _repeated(words.ids, max(words_in)):
        n = words_in.get(n_units)
        if n in TOP:
            signals[f"top_{n}_gram"] = _top(n_units, places, counts, joined, words.lengths) / n_characters
        elif n in DUPLICATE:
            signals[f"duplicate_{n}_gram"] = _stepped_over(n_units, places, groups, ends) / n_characters
    return signals


def _spaces_before(words: Words) -> np.ndarray:
    """Number of spaces before each unit if all are joined by spaces, except characters of a script without spaces."""
    unspaced = (words.kinds & UNSPACED) != 0
    together = unspaced[1:] & unspaced[:-1] & (words.chunks[1:] == words.chunks[:-1])
    return np.concatenate(([0], np.cumsum(~together)))[: len(words.ids)]


def repeated_characters(parts: Sequence[str]) -> int:
    """Number of characters of all but the first of equal parts."""
    return sum(map(len, parts)) - sum(map(len, set(parts)))


def _lines(text: str) -> list[str]:
    """The parts between runs of line ends; a run at an end of the text has an empty part next to it."""
    lines = [line for line in text.split("\n") if line]
    return lines + [""] * (text.startswith("\n") + text.endswith("\n") or not lines)


def _repeated(ids: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each n up to `most`: the starts of the repeated n-grams, the group of equal ones of each, and its size."""
    n_words = len(ids)
    if not n_words:
        return
    ids = _groups(ids)[0]
    places, groups = np.arange(n_words), ids
    for n in range(2, most + 1):
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


def _top(n: int, places: np.ndarray, counts: np.ndarray, joined: np.ndarray, lengths: np.ndarray) -> int:
    place, times = 0, 1  # if every n-gram occurs once, the first is the commonest
    if len(places):
        first = int(np.argmax(counts))
        place, times = int(places[first]), int(counts[first])
    return int((joined[place + n - 1] + lengths[place + n - 1] - joined[place]) * times)


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
