"""Measures, on one text, everything that the rule sets judge.

In: a text. Out: the columns QUALITY_RATIOS and QUALITY_NUMBERS of records.py, and the edits that C4 makes. All are
counted as datatrove 0.10.1 does: words as spaCy splits English (words.py), repetition as in repetition.py, lines of
C4 as in c4.py. FineWeb's measures are taken three times: on the text, and on what the set c4 leaves of it without and
with its rule for terminal punctuation, because FineWeb judges after C4.

In scripts without spaces the number of words is an estimate (words.py), and the mean length of words is null if most
words of the text are estimated.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from pipeline.corpus.signals.c4 import Edit, c4_lines
from pipeline.corpus.signals.repetition import repeated_characters, repetition_signals
from pipeline.corpus.words import ALPHABETIC, SENTENCE_ENDS, SIGN, STOP, UNSPACED, Words, words_of

SHORT_LINE = 30  # characters; arXiv:2406.17557
CHARACTERS_PER_WORD = 6  # of English, with the space; by it SHORT_LINE is converted to scripts without spaces
BULLETS = ("\u2022", "-")
ELLIPSES = ("...", "\u2026")


def quality_signals(text: str) -> tuple[dict[str, Any], list[Edit]]:
    lines = text.splitlines(keepends=True)
    chunks = [line.split() for line in lines]
    words = words_of(list(chain.from_iterable(chunks)))
    n_chunks = np.fromiter(map(len, chunks), np.int64, len(chunks))
    kept = c4_lines(text, lines, n_chunks, words)
    short = _short_line(words)
    signals = {
        **_gopher_quality(text, lines, words, int(n_chunks.sum())),
        **repetition_signals(text, words),
        **kept.signals,
        **_fineweb(
            "", _full(text.split("\n")), len(text) - text.count("\n"), text.count("\n"), words.n_words(), short
        ),
    }
    for name, stays in (("c4_", kept.stays), ("c4_terminated_", kept.stays & kept.terminated)):
        left = list(compress(kept.texts, stays.tolist()))
        n_words = float(kept.n_words[stays].sum())
        signals |= _fineweb(name, left, sum(map(len, left)), len(left) - 1, n_words, short)
    return signals, kept.edits


def _gopher_quality(text: str, lines: Sequence[str], words: Words, n_chunks: int) -> dict[str, Any]:
    kinds, n_words, n_lines = words.kinds, max(1, words.n_words()), max(1, len(lines))
    is_word = (kinds & SIGN) == 0
    n_real, letters = words.n_words(is_word), words.letters[is_word & ((kinds & UNSPACED) == 0)]
    is_known = len(letters) > 0 and 2 * len(letters) >= n_real
    stripped = [line.strip() for line in lines]
    return {
        "n_words": round(n_real),
        "mean_word_length": float(letters.mean()) if is_known else None if n_real else 0.0,
        "hash_ratio": text.count("#") / n_words,
        "ellipsis_ratio": sum(map(text.count, ELLIPSES)) / n_words,
        "bullet_line_fraction": sum(line.startswith(BULLETS) for line in stripped) / n_lines,
        "ellipsis_line_fraction": sum(line.endswith(ELLIPSES) for line in stripped) / n_lines,
        "alphabetic_word_fraction": words.n_words((kinds & ALPHABETIC) != 0) / n_words,
        "alphabetic_chunk_fraction": _n_distinct(words.chunks[(kinds & ALPHABETIC) != 0]) / max(1, n_chunks),
        "n_stop_words": len(np.unique(words.ids[(kinds & STOP) != 0])),
    }


def _n_distinct(ordered: np.ndarray) -> int:
    return int(np.count_nonzero(np.diff(ordered))) + min(1, len(ordered))


def _full(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line and not line.isspace()]


def _short_line(words: Words) -> int:
    """Length in characters up to which a line counts as short, scaled to the length of the words of the text."""
    weights = words.weights[(words.kinds & UNSPACED) != 0]
    if not len(weights):
        return SHORT_LINE
    n_ordinary = len(words.ids) - len(weights)
    characters = len(weights) + CHARACTERS_PER_WORD * n_ordinary
    return round(SHORT_LINE * characters / (CHARACTERS_PER_WORD * words.n_words()))


def _fineweb(
    name: str, lines: Sequence[str], n_characters: int, n_line_ends: int, n_words: float, short: int
) -> dict[str, float]:
    """The measures of arXiv:2406.17557, section 3.5, over the lines that are not blank."""
    n_lines = max(1, len(lines))
    last = Counter(line[-1:] for line in lines)
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    return {
        f"{name}terminal_line_fraction": sum(n for c, n in last.items() if c in SENTENCE_ENDS) / n_lines,
        f"{name}short_line_fraction": int(np.count_nonzero(lengths <= short)) / n_lines,
        f"{name}repeated_line_characters": repeated_characters(lines) / max(1, n_characters),
        f"{name}newline_ratio": max(0, n_line_ends) / max(1, n_words),
    }
