"""Entities as spans of characters, and as one tag per word.

In: spans with labels, words. Out: the number of a tag for each word, and the spans that tags stand for. For K labels
the tags are O, then B (the first word of an entity) and I (a later word) of each label, 2 K + 1 in all. In between
stand the scores of a network: `best_tags` returns the most likely tags among those that form entities, in which I
only follows B or I of its label (Viterbi 1967).

Legend: W words, C tags, K labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

OUTSIDE = 0  # number of the tag O


class Span(NamedTuple):
    """Characters `start` to `end` - 1 of a text."""

    start: int
    end: int
    label: str


class WordSpan(NamedTuple):
    """Words `first` to `last`, and the number of a label."""

    first: int
    last: int
    label: int


def tag_names(labels: Sequence[str]) -> list[str]:
    """Names of all tags, in the order of their numbers."""
    return ["O", *(f"{prefix}-{label}" for label in labels for prefix in "BI")]


def labels_of_tags(names: Sequence[str]) -> list[str]:
    """The labels that the names of tags were made of. Raises ValueError for names that `tag_names` does not give."""
    labels = [name.removeprefix("B-") for name in names[1::2]]
    if list(names) != tag_names(labels):
        raise ValueError(f"the tags are {list(names)}, expected O, and B-label, I-label for each label")
    return labels


def touched(words_W2: np.ndarray, span: Span) -> tuple[int, int]:
    """Numbers of the first word that has a character of the span, and of the word after the last."""
    first = int(np.searchsorted(words_W2[:, 1], span.start, side="right"))
    return first, int(np.searchsorted(words_W2[:, 0], span.end, side="left"))


def is_widened(words_W2: np.ndarray, span: Span) -> bool:
    """Whether tags of words cannot express the span, because it does not begin and end where words do."""
    first, after = touched(words_W2, span)
    return first >= after or words_W2[first, 0] != span.start or words_W2[after - 1, 1] != span.end


def tags_of_spans(words_W2: np.ndarray, spans: Sequence[Span], numbers: Mapping[str, int]) -> np.ndarray:
    """The tag of each word, int64 (W,). `spans` are sorted and do not overlap; `numbers` has that of each label.

    A span that ends within a word is widened to the whole word, unless the span before has it.
    """
    tags_W = np.full(len(words_W2), OUTSIDE, np.int64)
    free = 0  # the first word that no span has yet
    for span in spans:
        first, after = touched(words_W2, span)
        first = max(first, free)
        if first < after:
            tags_W[first] = 1 + 2 * numbers[span.label]
            tags_W[first + 1 : after] = 2 + 2 * numbers[span.label]
            free = after
    return tags_W


def spans_of_tags(tags_W: np.ndarray) -> Iterator[WordSpan]:
    """The entities in valid tags, in their order."""
    for first in np.flatnonzero(tags_W % 2 == 1):
        last, inside = int(first), tags_W[first] + 1
        while last + 1 < len(tags_W) and tags_W[last + 1] == inside:
            last += 1
        yield WordSpan(int(first), last, (int(tags_W[first]) - 1) // 2)


def are_valid(tags_W: np.ndarray) -> bool:
    """Whether every I follows B or I of its label."""
    before_W = np.concatenate([[OUTSIDE], tags_W[:-1]])
    is_inside_W = (tags_W > 0) & (tags_W % 2 == 0)
    return bool(np.all(~is_inside_W | (before_W == tags_W) | (before_W == tags_W - 1)))


def best_tags(scores_WC: np.ndarray) -> np.ndarray:
    """The valid tags with the largest sum of scores, int64 (W,)."""
    tags_W = scores_WC.argmax(axis=1)
    return tags_W if are_valid(tags_W) else _viterbi(scores_WC)


def _viterbi(scores_WC: np.ndarray) -> np.ndarray:
    n_words, n_tags = scores_WC.shape
    before_WC = np.zeros((n_words, n_tags), np.int64)  # the tag before, on the best way to each tag
    begins, inside = np.arange(1, n_tags, 2), np.arange(2, n_tags, 2)
    best_C = scores_WC[0].astype(np.float64)
    best_C[inside] = -np.inf  # no entity comes before the first word
    for word in range(1, n_words):
        before_WC[word] = best_C.argmax()
        before_WC[word, inside] = np.where(best_C[begins] >= best_C[inside], begins, inside)
        best_C = best_C[before_WC[word]] + scores_WC[word]
    tags_W = np.zeros(n_words, np.int64)
    tags_W[-1] = best_C.argmax()
    for word in range(n_words - 1, 0, -1):
        tags_W[word - 1] = before_WC[word, tags_W[word]]
    return tags_W


def span_probability(log_probabilities_WC: np.ndarray, span: WordSpan) -> float:
    """Probability that exactly these words are an entity of this label, with the tags of the words as independent."""
    begin, inside = 1 + 2 * span.label, 2 + 2 * span.label
    log_probability = log_probabilities_WC[span.first, begin]
    log_probability += log_probabilities_WC[span.first + 1 : span.last + 1, inside].sum()
    after = span.last + 1
    goes_on = np.exp(log_probabilities_WC[after, inside]) if after < len(log_probabilities_WC) else 0.0
    return float(np.exp(log_probability) * (1 - goes_on))
