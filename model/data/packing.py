"""Which tokens are in which row: windows of the stream, or whole spans of documents.

In: the borders of the documents in the stream (model/data/token_stream.py) and the length of a row. Out: a plan that
maps rows to the spans of the stream that they hold, and spans of the stream to rows. A plan depends on the lengths
alone, not on a seed, and is the same in every process.

Windows: the inputs of row w are the T tokens from w*T on; its targets are one token further. Every token but the
first of the stream is a target once, except fewer than T tokens at its end. A row starts anywhere in a document.

PackedDocuments: a document of n tokens fills n // T rows of its own, from its first token on; the n % T tokens that
are left share a row with those of other documents, longest first, each in the row with the least room that suffices
(best fit decreasing over the histogram of lengths, as in arXiv:2107.02027). A document starts where its row or its
span starts. Its last target is the end-of-text token that opens the next document. Every token but the first of the
stream is a target exactly once; empty cells have no target. The plan takes at most 24 bytes per document, the borders
another 8.

Legend: T tokens of a row.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.data.token_stream import TokenStream, ranges


@dataclass(frozen=True, slots=True)
class Spans:
    """Runs of tokens that are inputs, sorted by row and within a row from left to right; all int64.

    The target of an input is the next token of the stream.
    """

    rows: np.ndarray  # index into the rows that were asked for
    starts: np.ndarray  # first token in the stream
    lengths: np.ndarray  # tokens, at least 1

    def columns(self) -> np.ndarray:
        """The first cell of each span in its row: spans follow each other without a gap."""
        before = np.cumsum(self.lengths) - self.lengths
        return before - before[self._firsts()]

    def numbers(self) -> np.ndarray:
        """How many spans precede each span in its row."""
        return np.arange(len(self.rows)) - self._firsts()

    def _firsts(self) -> np.ndarray:
        return np.searchsorted(self.rows, self.rows)


class RowPlan(Protocol):
    n_rows: int  # of an epoch

    def spans(self, rows: np.ndarray) -> Spans: ...
    def documents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def rows_of_tokens(self, start: int, end: int) -> np.ndarray: ...


class Windows:
    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        self.stream, self.seq_len = stream, seq_len
        self.n_rows = max(0, stream.n_tokens - 1) // seq_len

    def spans(self, rows: np.ndarray) -> Spans:
        return Spans(np.arange(len(rows)), rows * self.seq_len, np.full(len(rows), self.seq_len))

    def documents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the documents of each row, row after row, and how many of their tokens are targets there.

        0 where a row reads only the last token of a document as input: its target belongs to the next document.
        """
        borders, starts = self.stream.borders, rows * self.seq_len
        numbers, n_documents = documents_between(self.stream, starts, starts + self.seq_len + 1)
        low = np.maximum(borders[numbers], np.repeat(starts + 1, n_documents))
        high = np.minimum(borders[numbers + 1], np.repeat(starts + self.seq_len + 1, n_documents))
        is_there = borders[numbers + 1] > borders[numbers]  # a document without tokens is in no row
        return numbers[is_there], np.maximum(high - low, 0)[is_there]

    def rows_of_tokens(self, start: int, end: int) -> np.ndarray:
        """Rows with one of the tokens start to end (exclusive), as input or target; int64, sorted."""
        first = max(0, -(-start // self.seq_len) - 1)  # row w reads tokens w*T to w*T + T, the last as target only
        return np.arange(first, min(self.n_rows, (end - 1) // self.seq_len + 1))


class PackedDocuments:
    """Whole spans of documents: first the rows that one document fills, then those that several share."""

    def __init__(self, stream: TokenStream, seq_len: int) -> None:
        self.stream, self.seq_len = stream, seq_len
        self.n_inputs = max(0, stream.n_tokens - 1)  # the last token is a target only
        lengths = np.diff(np.minimum(stream.borders, self.n_inputs))
        self.first_rows = np.concatenate([[0], np.cumsum(lengths // seq_len)])  # of the rows that a document fills
        self.n_filled = int(self.first_rows[-1])
        rests = lengths % seq_len
        (with_rest,) = np.nonzero(rests)
        shared_rows = best_fit(rests[with_rest], seq_len)
        self.shared_rows = np.full(len(lengths), -1, np.int32)  # the row of a document's rest; -1 = it has none
        self.shared_rows[with_rest] = shared_rows
        self.rests = with_rest[np.argsort(shared_rows, kind="stable")].astype(np.int32)  # documents, row after row
        self.rest_starts = np.concatenate([[0], np.cumsum(np.bincount(shared_rows))])  # of each row, in `rests`
        self.n_rows = self.n_filled + len(self.rest_starts) - 1

    def spans(self, rows: np.ndarray) -> Spans:
        is_filled = rows < self.n_filled
        shared = rows[~is_filled] - self.n_filled
        n_spans = np.ones(len(rows), np.int64)
        n_spans[~is_filled] = self.rest_starts[shared + 1] - self.rest_starts[shared]
        fills = np.repeat(is_filled, n_spans)
        documents = np.empty(len(fills), np.int64)
        documents[fills] = np.searchsorted(self.first_rows, rows[is_filled], side="right") - 1
        documents[~fills] = self.rests[ranges(self.rest_starts[shared], n_spans[~is_filled])]
        row = np.where(fills, np.repeat(rows, n_spans), self.first_rows[documents + 1])
        number = row - self.first_rows[documents]
        starts = self.stream.borders[documents] + number * self.seq_len
        ends = np.minimum(self.stream.borders[documents + 1], self.n_inputs)
        return Spans(np.repeat(np.arange(len(rows)), n_spans), starts, np.minimum(ends - starts, self.seq_len))

    def documents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the documents of each row, row after row, and how many targets each has there: its tokens but
        the first, and the end-of-text token after the last."""
        spans = self.spans(rows)
        return self.stream.documents_at(spans.starts), spans.lengths

    def rows_of_tokens(self, start: int, end: int) -> np.ndarray:
        """Rows with one of the tokens start to end (exclusive), as input or as target within its document.

        int64, sorted. The token that opens a document is also the last target of the document before, where it does
        not count.
        """
        borders = self.stream.borders
        documents, _ = documents_between(self.stream, np.array([start]), np.array([end]))
        low = np.maximum(start - borders[documents], 0)
        high = np.minimum(end, borders[documents + 1]) - borders[documents]
        documents, low, high = (values[low < high] for values in (documents, low, high))
        n_full = self.first_rows[documents + 1] - self.first_rows[documents]
        first = np.maximum(-(-low // self.seq_len) - 1, 0)  # span p reads tokens p*T to p*T + T, the last as target
        last = (high - 1) // self.seq_len
        filled = ranges(self.first_rows[documents] + first, np.maximum(np.minimum(last + 1, n_full) - first, 0))
        shared = self.shared_rows[documents[last >= n_full]]
        return np.unique(np.concatenate([filled, self.n_filled + shared[shared >= 0]]))


def documents_between(stream: TokenStream, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the documents from that of token `start` to that of token `end` - 1, pair after pair, and how many
    each pair has."""
    lowest = stream.documents_at(starts)
    n_documents = stream.documents_at(ends - 1) - lowest + 1
    return ranges(lowest, n_documents), n_documents


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each span, int32: the longest spans first, each in the row with the least room that suffices.

    Rows of equal room and spans of equal length are placed together, so that only sorting takes time in proportion to
    the number of spans. `lengths` are from 1 to `capacity`.
    """
    order = np.argsort((capacity - lengths).astype(np.uint32), kind="stable")
    counts = np.bincount(lengths, minlength=capacity + 1).tolist()
    row_of = np.empty(len(lengths), np.int32)
    open_rows: list[list[tuple[int, int]]] = [[] for _ in range(capacity + 1)]  # by room: first row, number of rows
    placed = n_rows = 0
    for length in range(capacity, 0, -1):
        left, room = counts[length], length
        while left:
            while room < capacity and not open_rows[room]:
                room += 1
            each = room // length  # spans that a row takes before another row has less room
            if not open_rows[room]:
                open_rows[room].append((n_rows, -(-left // each)))
                n_rows += -(-left // each)
            first, n = open_rows[room].pop()
            n_full, n_more = min(n, left // each), 0
            if n_full:
                open_rows[room - each * length].append((first, n_full))
            if n_full < n:
                n_more = left - n_full * each if left < n * each else 0  # one more row takes the last few
                if n_more:
                    open_rows[room - n_more * length].append((first + n_full, 1))
                if n_untouched := n - n_full - bool(n_more):
                    open_rows[room].append((first + n_full + bool(n_more), n_untouched))
            n_placed = n_full * each + n_more
            row_of[order[placed : placed + n_placed]] = first + np.arange(n_placed) // each
            placed, left = placed + n_placed, left - n_placed
    return row_of
