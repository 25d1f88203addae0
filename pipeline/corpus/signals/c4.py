"""The line rules of C4 (arXiv:1910.10683, section 2.2, and the rules that exist only in its code).

In: the lines of a text and the words in them. Out: which lines are kept and in what form, what the document rules
need to know about them, and the edits that remove the rest. A line is removed if it has fewer than 3 words or a word
of more than 1,000 characters, or if it mentions javascript or a policy; citations such as [12] are removed from the
other lines. In scripts without spaces the number of words is estimated. The paper's rule for lines without terminal
punctuation is measured separately, because FineWeb did not use it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.corpus.word_hashes import SPACELESS
from pipeline.corpus.words import END, PUNCTUATION, UNSPACED, WHOLE, Words, words_of

LINE, UNTERMINATED_LINE, CITATION = "c4_line", "c4_unterminated", "c4_citation"  # kinds of edits
LINE_WORDS = 3
WORD_CHARACTERS = 1_000
TERMINAL = (
    ".",
    "?",
    "!",
    '"',
    "'",
    *"\u3002\uff01\uff1f\uff61\u300d\u300f",
    *"\u17d4\u17d5\u104b",
)  # CJK, Khmer, Burmese
BETWEEN_RUNS = re.compile(rf"[\s{SPACELESS}]+")
LOREM_IPSUM = "lorem ipsum"
JAVASCRIPT = "javascript"
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
CITATIONS = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")

Edit = tuple[int, int, str]  # start, end, kind


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a text. Flags are arrays with one value per line."""

    texts: list[str]  # stripped, without citations
    starts: np.ndarray
    n_words: np.ndarray
    stays: np.ndarray  # C4 without its rule for terminal punctuation keeps the line
    terminated: np.ndarray
    signals: dict[str, int]
    edits: list[Edit]


def c4_lines(text: str, lines: Sequence[str], n_chunks: np.ndarray, words: Words) -> Lines:
    """`lines` are those of `text` with line ends, `n_chunks` the number of whitespace-separated chunks per line."""
    line_of_word = np.repeat(np.arange(len(lines)), n_chunks)[words.chunks]
    n_sentences = _n_sentences(words, line_of_word, len(lines))
    texts = [line.strip() for line in lines]
    starts = np.concatenate(([0], np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))))
    edits: list[Edit] = []
    if "[" in text:
        for i, line in enumerate(lines):
            if "[" in line and (found := list(CITATIONS.finditer(line))):
                edits += [(int(starts[i]) + one.start(), int(starts[i]) + one.end(), CITATION) for one in found]
                texts[i] = CITATIONS.sub("", texts[i])
                of_line = words_of(texts[i].split())
                n_sentences[i] = _n_sentences(of_line, np.zeros(len(of_line.ids), dtype=np.int64), 1)[0]
    terminated = np.fromiter(
        (line.endswith(TERMINAL) and not line.endswith("...") for line in texts), bool, len(lines)
    )
    n_words = np.bincount(line_of_word, words.weights, len(lines)) / WHOLE
    n_unspaced = np.bincount(line_of_word, words.weights * ((words.kinds & UNSPACED) != 0), len(lines)) / WHOLE
    long_enough = np.maximum(n_chunks, n_unspaced) >= LINE_WORDS
    for i, line in enumerate(texts):
        if len(line) > WORD_CHARACTERS and max(map(len, BETWEEN_RUNS.split(lines[i]))) > WORD_CHARACTERS:
            long_enough[i] = False
    lowered = text.lower()
    if len(lowered) != len(text):  # a letter whose lower-case form is longer
        lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    lorem = _mentioning(texts, starts, lowered, (LOREM_IPSUM,)) & long_enough
    not_script = long_enough & ~_mentioning(texts, starts, lowered, (JAVASCRIPT,))
    curly = _mentioning(texts, starts, lowered, ("{",)) & not_script
    stays = not_script & ~_mentioning(texts, starts, lowered, POLICIES)
    signals = {}
    for name, asked in (("c4_", True), ("c4_terminated_", terminated)):
        signals[f"{name}sentences"] = int(n_sentences[stays & asked].sum())
        signals[f"{name}lorem_ipsum_lines"] = int((lorem & asked).sum())
        signals[f"{name}curly_bracket_lines"] = int((curly & asked).sum())
    edits += _runs(starts, ~stays, LINE)
    edits += _runs(starts, stays & ~terminated, UNTERMINATED_LINE)
    return Lines(texts, starts, n_words, stays, terminated, signals, sorted(edits))


def _mentioning(lines: Sequence[str], starts: np.ndarray, lowered: str, phrases: Sequence[str]) -> np.ndarray:
    """Which of `lines` (they begin at `starts`) contain one of `phrases`; `lowered` is the text in lower case."""
    found = np.zeros(len(lines), dtype=bool)
    for phrase in phrases:
        place = lowered.find(phrase)
        while place >= 0:
            line = int(np.searchsorted(starts, place, side="right")) - 1
            found[line] |= phrase in lines[line].lower()  # a citation in it was removed
            place = lowered.find(phrase, int(starts[line + 1]))
    return found


def _runs(starts: np.ndarray, flags: np.ndarray, kind: str) -> list[Edit]:
    """Edits that each cover a run of neighbouring flagged lines."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return [(start, end, kind) for start, end in starts[edges].reshape(-1, 2).tolist()]


def _n_sentences(words: Words, line_of_word: np.ndarray, n_lines: int) -> np.ndarray:
    """Number of sentences per line, by the rule of spaCy's sentencizer.

    Each word that is not punctuation adds one if a sentence-ending mark is between it and the previous such word
    of its line, or the beginning of the line."""
    ends = (words.kinds & END) != 0
    others = np.flatnonzero(~ends & ((words.kinds & PUNCTUATION) == 0))
    n_ends = np.cumsum(ends)
    line = line_of_word[others]
    seen = n_ends[others]
    before = np.concatenate(([0], seen[:-1]))[: len(seen)]
    opens_line = np.concatenate(([True], line[1:] != line[:-1]))[: len(line)]
    first_words = np.searchsorted(line_of_word, line[opens_line])
    before[opens_line] = n_ends[first_words] - ends[first_words]
    return 1 + np.bincount(line[seen > before], minlength=n_lines)
