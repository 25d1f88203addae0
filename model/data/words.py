"""The words of a text, which tagging gives one tag each, and the token that stands for each word.

In: a text, and its pieces (token ids with character offsets). Out: words as character spans; per word the number of a
piece. Training and answering split a text in the same way, whatever the data was split by.

A word is a run of letters, digits and marks; every other sign that is no white space is a word of its own. In scripts
without spaces between words, and in Korean, where particles join a name, each character is a word.
"""

import numpy as np
import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+|\S", regex.VERSION1)
NO_PIECE = -1


def word_spans(text: str) -> np.ndarray:
    """First character of each word and the one after its last; int64 (W, 2)."""
    return np.array([word.span() for word in WORD.finditer(text)], np.int64).reshape(-1, 2)


def word_pieces(words_W2: np.ndarray, starts_P: np.ndarray, ends_P: np.ndarray) -> np.ndarray:
    """Number of the piece that stands for each word, int64 (W,): the first of its pieces, or NO_PIECE.

    A piece that covers several words, such as "@paul" in some vocabularies, stands for the one that has most of its
    characters. The other words have no piece, and neither have control characters that a tokenizer removes.
    """
    pieces_W = np.full(len(words_W2), NO_PIECE, np.int64)
    if not len(words_W2) or not len(starts_P):
        return pieces_W
    first_P = np.searchsorted(words_W2[:, 1], starts_P, side="right")  # the first word that ends after the start
    last_P = np.searchsorted(words_W2[:, 0], ends_P, side="left") - 1  # the last word that begins before the end
    owner_P = np.where((first_P <= last_P) & (starts_P < ends_P), first_P, NO_PIECE)
    for piece in np.flatnonzero((first_P < last_P) & (starts_P < ends_P)):
        covered_N2 = words_W2[first_P[piece] : last_P[piece] + 1]
        common_N = np.minimum(covered_N2[:, 1], ends_P[piece]) - np.maximum(covered_N2[:, 0], starts_P[piece])
        owner_P[piece] += common_N.argmax()
    owners, first_pieces = np.unique(owner_P, return_index=True)
    pieces_W[owners[owners >= 0]] = first_pieces[owners >= 0]
    return pieces_W
