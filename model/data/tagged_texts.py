"""Texts as windows of tokens in which words are tagged.

In: texts, a tokenizer, the largest number of tokens that the model reads. Out: per text its words and the windows
that cover it. A text of any length is read whole: windows overlap, and each word is read in the window that owns its
first piece (windows.py), which is where training supervises it.

Legend: W words.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from model.data.batch_layout import IGNORE_INDEX
from model.data.examples import EncodedExamples
from model.data.tokenizer import Tokenizer
from model.data.windows import windows_of
from model.data.words import word_pieces, word_spans

LABELS = "labels_BT"  # name of the tags in a batch
OVERLAP = 4  # neighbouring windows share one piece in so many
FEWEST = 4  # pieces in a window


class Window(NamedTuple):
    tokens: np.ndarray  # int64, with those that the model expects around a text
    places: np.ndarray  # int64, positions of the tokens that stand for the words of this window


class TextWindows(NamedTuple):
    words_W2: np.ndarray  # int64, first character of a word and the one after its last; only words that have a token
    windows: list[Window]  # at least one if there is a word; their places together are those of all words


def text_windows(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Iterator[TextWindows]:
    """Raises ValueError if `max_tokens` leaves too little room beside the tokens around a text."""
    opening, closing = tokenizer.opening, tokenizer.closing
    most = max_tokens - len(opening) - len(closing)
    if most < FEWEST:
        raise ValueError(
            f"max_tokens={max_tokens} leaves room for {max(most, 0)} tokens of a text beside the"
            f" {len(opening) + len(closing)} tokens around it, expected at least {FEWEST}; raise it"
        )
    for text, pieces in zip(texts, tokenizer.encode_offsets(texts), strict=True):
        words_W2 = word_spans(text)
        pieces_W = word_pieces(words_W2, pieces.starts, pieces.ends)
        words_W2, pieces_W = words_W2[pieces_W >= 0], pieces_W[pieces_W >= 0]
        windows = []
        for start, end, owns_from, owns_to in windows_of(len(pieces), most, most // OVERLAP) if len(words_W2) else ():
            owned = pieces_W[(pieces_W >= owns_from) & (pieces_W < owns_to)]
            if len(owned):
                tokens = np.array([*opening, *pieces.ids[start:end], *closing], np.int64)
                windows.append(Window(tokens, owned - start + len(opening)))
        yield TextWindows(words_W2, windows)


def supervised(ids: Sequence[str], texts: Sequence[TextWindows], tags: Sequence[np.ndarray]) -> EncodedExamples:
    """Examples with labels_BT: the tag of a word at its token, IGNORE_INDEX at all others. `tags` has those of the
    words of each text; the windows of a text have its id and follow each other."""
    encoded = EncodedExamples([], [], {}, token_targets={LABELS: (labels := list[np.ndarray]())})
    for name, text, tags_W in zip(ids, texts, tags, strict=True):
        first = 0
        for window in text.windows:
            labels_T = np.full(len(window.tokens), IGNORE_INDEX, np.int64)
            labels_T[window.places] = tags_W[first : first + len(window.places)]
            first += len(window.places)
            encoded.ids.append(name)
            encoded.tokens.append(window.tokens)
            labels.append(labels_T)
    return encoded


def supervised_windows(encoded: EncodedExamples) -> Iterator[tuple[list[Window], np.ndarray]]:
    """The windows of each text with the tags of all its words, int64 (W,): what `supervised` was given."""
    labels = encoded.token_targets[LABELS]
    first = 0
    while first < len(encoded.ids):
        after = first + 1
        while after < len(encoded.ids) and encoded.ids[after] == encoded.ids[first]:
            after += 1
        places = [np.flatnonzero(labels[row] != IGNORE_INDEX) for row in range(first, after)]
        rows = range(first, after)
        windows = [Window(encoded.tokens[row], place) for row, place in zip(rows, places, strict=True)]
        yield windows, np.concatenate([labels[row][place] for row, place in zip(rows, places, strict=True)])
        first = after
