"""Which characters of a text each of its tokens covers.

In: a text and its tokens, as bytes or as the character offsets of a library. Out: Pieces, with offsets into exactly
the given text. White space at the edges of a token that has more than that does not count: " mill" covers "mill". A
character that is divided among several byte tokens belongs to each of them, and one that the tokenizer drops to none.

Legend: N tokens.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokens of a text; token i covers the characters starts[i] to ends[i] - 1."""

    ids: np.ndarray  # int64 (N,), like all three
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def pieces_of(text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Pieces:
    """Pieces of `text` without the white space at their edges; a piece of nothing but white space keeps it."""
    is_space = np.fromiter(map(str.isspace, text), bool, len(text))
    if not is_space.any() or not len(ids):
        return Pieces(ids, starts, ends)
    places = np.arange(len(text) + 1)
    # For each place the first character from there on that is no space, and the end of the last one before it.
    after = np.minimum.accumulate(np.append(np.where(is_space, len(text), places[:-1]), len(text))[::-1])[::-1]
    before = np.maximum.accumulate(np.append(0, np.where(is_space, 0, places[1:])))
    has_more = after[starts] < ends
    return Pieces(ids, np.where(has_more, after[starts], starts), np.where(has_more, before[ends], ends))


def offsets_of_bytes(text: str, n_bytes: np.ndarray, dropped: bytes = b"") -> tuple[np.ndarray, np.ndarray]:
    """Character offsets of tokens of `n_bytes` (N,), which have the bytes of `text` in turn, but for `dropped`
    ones."""
    content = np.frombuffer(text.encode(), np.uint8)
    character = np.cumsum((content & 0xC0) != 0x80) - 1  # that each byte belongs to: of UTF-8, which goes on with 10
    if dropped:
        character = character[~np.isin(content, np.frombuffer(dropped, np.uint8))]
    ends = np.cumsum(n_bytes)
    return character[ends - n_bytes], character[ends - 1] + 1
