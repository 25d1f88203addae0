"""The parts of a rendered conversation, and their token ids.

In: what a template writes around and of the messages, from left to right. Out: pieces, each a special token or a
text; and the ids of all pieces, with which of them are supervised.

A special token is one only where the template wrote it. Texts that touch are encoded as one, as every tokenizer of
a whole conversation does, except where an answer begins: if the ids of the text before it change by what the answer
begins with, the answer is encoded on its own, because a model that answers has read the text before it alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.data.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Rendered:
    ids: np.ndarray  # int64 (T,)
    is_supervised: np.ndarray  # bool (T,): a model is trained to write this token


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered conversation: a special token, or a text without any."""

    text: str
    token: int | None  # id of a special token; None = a text
    is_supervised: bool = False
    is_answer: bool = False  # whether a model writes it after it has read all that is before


class Pieces:
    """Collects the parts of a conversation from left to right."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self.control, self.pieces = control, list[Piece]()
        self.text, self.is_supervised, self.is_answer = "", False, False  # of the text that is being collected

    def begin(self, *, is_supervised: bool, is_answer: bool) -> None:
        """What follows belongs to a message, up to the special token that ends it."""
        if is_supervised or is_answer or self.is_supervised:
            self._close()
        self.is_supervised, self.is_answer = is_supervised, is_answer

    def content(self, text: str) -> None:
        """A text in which nothing is a special token."""
        self.text += text

    def frame(self, text: str, *, ends: bool = True) -> None:
        """A text of the template. `ends`: whether its first special token ends the message before it."""
        for number, part in enumerate(_divided(text, tuple(self.control))):
            if number % 2 == 0:
                self.text += part
                continue
            is_supervised, is_answer = self.is_supervised, self.is_answer
            self._close()
            self.pieces.append(Piece(part, self.control[part], is_supervised, is_answer))
            if not ends:
                self.is_supervised, self.is_answer = is_supervised, is_answer

    def finished(self) -> list[Piece]:
        self._close()
        return self.pieces

    def _close(self) -> None:
        if self.text:
            self.pieces.append(Piece(self.text, None, self.is_supervised, self.is_answer))
        self.text, self.is_supervised, self.is_answer = "", False, False


def _divided(text: str, names: tuple[str, ...]) -> list[str]:
    """Texts and special tokens in turn."""
    return _pattern(names).split(text) if names else [text]


@lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})")


def encoded(tokenizer: Tokenizer, conversations: Sequence[Sequence[Piece]]) -> list[Rendered]:
    """The ids of each conversation."""
    texts = [text for pieces in conversations for text in _texts_up_to(pieces)]
    ids_of = iter(tokenizer.encode_batch(texts))
    return [_encoded(tokenizer, pieces, ids_of) for pieces in conversations]


def _texts_up_to(pieces: Sequence[Piece]) -> Iterator[str]:
    """For each text, all that stands between the last special token and its end."""
    text = ""
    for piece in pieces:
        text = "" if piece.token is not None else text + piece.text
        if piece.token is None:
            yield text


def _encoded(tokenizer: Tokenizer, pieces: Sequence[Piece], ids_of: Iterator[list[int]]) -> Rendered:
    ids, flags, before, is_apart = list[int](), list[bool](), list[int](), False
    for piece in pieces:
        if piece.token is not None:
            ids.append(piece.token)
            flags.append(piece.is_supervised)
            before, is_apart = [], False
            continue
        whole = next(ids_of)
        n_equal = next((i for i, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), None)
        n_equal = min(len(before), len(whole)) if n_equal is None else n_equal
        is_apart = is_apart or (piece.is_answer and n_equal < len(before))
        if is_apart:
            added = tokenizer.encode(piece.text)
        else:  # a token that reaches across belongs to the later text
            n_kept = len(ids) - len(before) + n_equal
            del ids[n_kept:], flags[n_kept:]
            added, before = whole[n_equal:], whole
        ids += added
        flags += [piece.is_supervised] * len(added)
    return Rendered(np.array(ids, np.int64), np.array(flags, bool))
