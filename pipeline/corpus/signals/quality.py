"""Measures, on one text, everything that the rule sets judge.

In: a text. Out: the columns QUALITY_RATIOS and QUALITY_NUMBERS of records.py, and the edits that C4 makes. All are
counted as datatrove 0.10.1 does: words as spaCy splits English (words.py), repetition as in repetition.py, lines of
C4 as in c4.py. FineWeb's measures are taken three times: on the text, and on what the set c4 leaves of it without and
with its rule for terminal punctuation, because FineWeb judges after C4.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from pipeline.corpus.signals.c4 import Edit, c4_lines
from pipeline.corpus.signals.repetition import repeated_characters, repetition_signals
from pipeline.corpus.words import ALPHABETIC, SENTENCE_ENDS, SIGN, STOP, Words, words_of

SHORT_LINE = 30  # characters; arXiv:2406.17557
BULLETS = ("\u2022", "-")
ELLIPSES = ("...", "\u2026")


def quality_signals(text: str) -> tuple[dict[str, Any], list[Edit]]:
    lines = text.splitlines(keepends=True)
    chunks = [line.split() for line in lines]
    words = words_of(list(chain.from_iterable(chunks)))
    n_chunks = np.fromiter(map(len, chunks), np.int64, len(chunks))
    kept = c4_lines(text, lines, n_chunks, words)
    signals = {
        **_gopher_quality(text, lines, words, int(n_chunks.sum())),
        **repetition_signals(text, words),
        **kept.signals,
        **_fineweb("", _full(text.split("\n")), len(text) - text.count("\n"), text.count("\n"), len(words.ids)),
    }
    for name, stays in (("c4_", kept.stays), ("c4_terminated_", kept.stays & kept.terminated)):
        left = list(compress(kept.texts, stays.tolist()))
        signals |= _fineweb(name, left, sum(map(len, left)), len(left) - 1, int(kept.n_words[stays].sum()))
    return signals, kept.edits


def _gopher_quality(text: str, lines: Sequence[str], words: Words, n_chunks: int) -> dict[str, Any]:
    kinds, n_words, n_lines = words.kinds, max(1, len(words.ids)), max(1, len(lines))
    lengths = words.lengths[(kinds & SIGN) == 0]
    stripped = [line.strip() for line in lines]
    return {
        "n_words": len(lengths),
        "mean_word_length": float(lengths.mean()) if len(lengths) else 0.0,
        "hash_ratio": text.count("#") / n_words,
        "ellipsis_ratio": sum(map(text.count, ELLIPSES)) / n_words,
        "bullet_line_fraction": sum(line.startswith(BULLETS) for line in stripped) / n_lines,
        "ellipsis_line_fraction": sum(line.endswith(ELLIPSES) for line in stripped) / n_lines,
        "alphabetic_word_fraction": int(np.count_nonzero(kinds & ALPHABETIC)) / n_words,
        "alphabetic_chunk_fraction": _n_distinct(words.chunks[(kinds & ALPHABETIC) != 0]) / max(1, n_chunks),
        "n_stop_words": len(np.unique(words.ids[(kinds & STOP) != 0])),
    }


def _n_distinct(ordered: np.ndarray) -> int:
    return int(np.count_nonzero(np.diff(ordered))) + min(1, len(ordered))


def _full(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line and not line.isspace()]


def _fineweb(name: str, lines: Sequence[str], n_characters: int, n_line_ends: int, n_words: int) -> dict[str, float]:
    """The measures of arXiv:2406.17557, section 3.5, over the lines that are not blank."""
    n_lines = max(1, len(lines))
    last = Counter(line[-1:] for line in lines)
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    return {
        f"{name}terminal_line_fraction": sum(n for c, n in last.items() if c in SENTENCE_ENDS) / n_lines,
        f"{name}short_line_fraction": int(np.count_nonzero(lengths <= SHORT_LINE)) / n_lines,
        f"{name}repeated_line_characters": repeated_characters(lines) / max(1, n_characters),
        f"{name}newline_ratio": max(0, n_line_ends) / max(1, n_words),
    }
