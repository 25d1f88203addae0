"""Questions on texts as windows of tokens: opening, question, separator, a part of the text, closing.

In: questions, the text that each is about, a tokenizer. Out: rows for batches, several per question where the text is
longer than the model reads, and the way back from a token to the characters of the text. The question is in every
window as a whole; one that would take more than half of a window is cut at its end and counted.

With the tokenizer of an encoder a row is what BERT or RoBERTa read as a pair of texts, with types 0 and 1, and "no
answer" is its first token (arXiv:1810.04805, section 4.3). With any other tokenizer the question ends with a line
break, the row with an end-of-text token, and that last token is "no answer": a decoder has read everything there.

Legend: B rows of a batch, T position, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.data.examples import EncodedExamples
from model.data.offsets import Pieces
from model.data.tokenizer import Tokenizer
from model.data.windows import Window, windows_of

LINE_BREAK = "\n"
OVERLAP = 4  # neighbouring windows share one of so many parts of their tokens: 128 of 512
Answer = tuple[int, str]  # first character, text
Span = tuple[int, int]  # first character, the one after the last


@dataclass(frozen=True, slots=True)
class PairLayout:
    """The tokens around question and text, and the place of "no answer" in a row."""

    opening: tuple[int, ...]
    separator: tuple[int, ...]
    closing: tuple[int, ...]
    null: int  # 0, or -1 for the last token

    @property
    def n_around(self) -> int:
        return len(self.opening) + len(self.separator) + len(self.closing)


def pair_layout(tokenizer: Tokenizer) -> PairLayout:
    special = tokenizer.special
    if "cls" in special and tokenizer.closing:
        # In RoBERTa, where the separator also ends a text, there are two between a pair of texts; in BERT one.
        times = 2 if special.get("eos") == special.get("sep") else 1
        return PairLayout(tokenizer.opening, tokenizer.closing * times, tokenizer.closing, null=0)
    separator = tuple(tokenizer.encode(LINE_BREAK))
    return PairLayout(tokenizer.opening, separator, (tokenizer.end_of_text,), null=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedQuestions(EncodedExamples):
    """Rows of batches with types_BT and allowed_BT (where an answer may start or end; "no answer" is such a place),
    and what leads from them back to the texts."""

    texts: Sequence[str] = ()  # of every question, as this and the next two
    pieces: Sequence[Pieces] = ()  # of its text
    answers: Sequence[Sequence[Answer]] = ()  # that are right; none if the question has no answer, or it is unknown
    questions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # number of the question of a row
    shifts: np.ndarray = field(
        default_factory=lambda: np.zeros(0, np.int64)
    )  # place of a piece in a row - its number
    nulls: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # place of "no answer" in a row
    most: int = 1  # tokens of the longest answer that is looked for

    def span(self, row: int, start: int, end: int) -> Span:
        """Characters of the tokens `start` to `end` of a row, without outer white space."""
        question, shift = int(self.questions[row]), int(self.shifts[row])
        text, pieces = self.texts[question], self.pieces[question]
        first, last = int(pieces.starts[start - shift]), int(pieces.ends[end - shift])
        covered = text[first:last]
        return first + len(covered) - len(covered.lstrip()), first + len(covered.rstrip())


def encoded_questions(
    ids: Sequence[str],
    questions: Sequence[str],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    answers: Sequence[Sequence[Answer]] | None = None,
    most: int = 1,
) -> EncodedQuestions:
    """Windows of at most `max_tokens` tokens; neighbours share a quarter as many pieces of the text, at most half of
    theirs.

    With `answers` the rows have targets starts_B and ends_B: the first answer if the whole of it is in the window, or
    else the place of "no answer".
    """
    layout = pair_layout(tokenizer)
    most_of_question = (max_tokens - layout.n_around) // 2
    if most_of_question < 1:
        raise ValueError(
            f"max_tokens={max_tokens} leaves no room for a question and a text beside the {layout.n_around} tokens"
            " around them; raise it"
        )
    pieces_of = dict(zip(distinct := list(dict.fromkeys(texts)), tokenizer.encode_offsets(distinct), strict=True))
    asked = tokenizer.encode_batch(list(questions))
    rows = _Rows(layout)
    for number, (question, text) in enumerate(zip(asked, texts, strict=True)):
        pieces, kept = pieces_of[text], question[:most_of_question]
        room = max_tokens - layout.n_around - len(kept)
        windows = windows_of(len(pieces.ids), room, min(max_tokens // OVERLAP, room // 2))
        span = piece_span(pieces, answers[number][0]) if answers is not None and answers[number] else None
        for window in windows:
            rows.add(number, kept, pieces, window, span)
    targets = {"starts_B": np.array(rows.starts, np.int64), "ends_B": np.array(rows.ends, np.int64)}
    return EncodedQuestions(
        ids=[ids[number] for number in rows.numbers],
        tokens=rows.tokens,
        targets=targets if answers is not None else {},
        n_cut=sum(len(question) > most_of_question for question in asked),
        token_targets={"types_BT": rows.types, "allowed_BT": rows.allowed},
        texts=texts,
        pieces=[pieces_of[text] for text in texts],
        answers=answers if answers is not None else [()] * len(texts),
        questions=np.array(rows.numbers, np.int64),
        shifts=np.array(rows.shifts, np.int64),
        nulls=np.array(rows.nulls, np.int64),
        most=most,
    )


def piece_span(pieces: Pieces, answer: Answer) -> tuple[int, int] | None:
    """The first and the last piece with a character of the answer; None if no piece has one."""
    start, end = answer[0], answer[0] + len(answer[1])
    first = int(np.searchsorted(pieces.ends, start, side="right"))
    last = int(np.searchsorted(pieces.starts, end, side="left")) - 1
    return (first, last) if first <= last else None


class _Rows:
    """Rows on their way to EncodedQuestions, as columns."""

    def __init__(self, layout: PairLayout) -> None:
        self.layout = layout
        self.numbers: list[int] = []
        self.tokens: list[np.ndarray] = []
        self.types: list[np.ndarray] = []
        self.allowed: list[np.ndarray] = []
        self.shifts: list[int] = []
        self.nulls: list[int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(
        self, number: int, question: Sequence[int], pieces: Pieces, window: Window, span: tuple[int, int] | None
    ) -> None:
        around = self.layout
        before = [*around.opening, *question, *around.separator]
        first, length = len(before), window.end - window.start
        tokens = np.array([*before, *pieces.ids[window.start : window.end], *around.closing], np.int64)
        null = around.null % len(tokens)
        allowed = np.zeros(len(tokens), bool)
        allowed[first : first + length] = allowed[null] = True
        has_answer = span is not None and window.start <= span[0] and span[1] < window.end
        shift = first - window.start
        self.numbers.append(number)
        self.tokens.append(tokens)
        self.types.append((np.arange(len(tokens)) >= first).astype(np.int64))
        self.allowed.append(allowed)
        self.shifts.append(shift)
        self.nulls.append(null)
        self.starts.append(span[0] + shift if span is not None and has_answer else null)
        self.ends.append(span[1] + shift if span is not None and has_answer else null)
