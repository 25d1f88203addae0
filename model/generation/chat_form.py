"""A prompt as a conversation: the texts of a chat template around questions and answers, and their special tokens.

In: what a chat template writes before, between and after the messages of a conversation. Out: the same texts with
every special token as one private character, and a tokenizer that makes its id of that character. A special token
that a question spells out stays text, as everywhere else.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.data.tokenizer import Engine, Tokenizer

FIRST = 0xF0000  # of the private characters that stand for special tokens
MARKS = re.compile(f"([{chr(FIRST)}-{chr(FIRST + 0xFFFD)}])")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatForm:
    start: str  # before the first question
    answer: str  # between a question and its answer
    following: str  # between an answer and the next question
    last: str  # behind the last question, where the model begins
    special: Mapping[str, int]  # the special tokens in these four texts, and their ids

    def marked(self, name: str) -> str:
        """One of the four texts, with private characters for special tokens."""
        text = getattr(self, name)
        for place, token in enumerate(self.special):
            text = text.replace(token, chr(FIRST + place))
        return text


def unmarked(text: str) -> str:
    """A text of a user, in which the private characters stand for nothing."""
    return MARKS.sub("\ufffd", text)


def chat_tokenizer(tokenizer: Tokenizer, chat: ChatForm) -> Tokenizer:
    """`tokenizer` for marked texts. The template alone decides how a conversation begins."""
    engine = MarkedEngine(tokenizer.engine, list(chat.special.values()))
    return dataclasses.replace(tokenizer, engine=engine, opening=())


class MarkedEngine:
    """Ids of texts with private characters for special tokens."""

    def __init__(self, engine: Engine, special: Sequence[int]) -> None:
        self.engine, self.special = engine, special

    def encode_batch(self, texts: Sequence[str], n_threads: int) -> list[list[int]]:
        divided = [MARKS.split(text) for text in texts]
        ids_of = iter(self.engine.encode_batch([piece for pieces in divided for piece in pieces[::2]], n_threads))
        return [
            [
                token
                for place, piece in enumerate(pieces)
                for token in ([self.special[ord(piece) - FIRST]] if place % 2 else next(ids_of))
            ]
            for pieces in divided
        ]

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode_batch([text], 1)[0], np.uint32)

    def encode_offsets(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError("marked texts have no offsets")
