"""Token shards to global batches: batch k is a pure function of (shards, seed, k).

In: token shards in the order of their names. Out: ids and targets (B, T), and with a document mask the number of each
token's document and its position in it. The documents of all shards, one after another, are one stream
(model/data/token_stream.py); a plan lays the stream out in rows, as plain windows or as whole pieces of documents
(model/data/packing.py); an epoch passes all rows in an order that depends on (seed, epoch) alone and is computed, not
stored (model/data/permutation.py). Any position is reached at once, whatever the number of processes. A batch at the
end of an epoch goes on with the next one. The order can be turned round: `steps_of_tokens` says when a stretch of
the stream is read, without a look at all batches. torch is imported where tensors are made: that look-up does
without it.

Legend: B rows of a batch, T position.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.data.packing import PackedDocuments, RowPlan, Spans, Windows, documents_between
from model.data.permutation import permuted, places_in_permutation
from model.data.token_shards import TokenShard
from model.data.token_stream import TokenStream
from model.training.config import Packing, TrainConfig
from model.training.schedule import warmup_rows

if TYPE_CHECKING:
    from torch import Tensor

READ_AHEAD = 4096  # rows whose order is computed at once: a batch of 12 alone would cost as much
NO_DOCUMENT = -1  # of a cell that nothing stands in


class Batches(Protocol):
    """What training reads: global batch k, and which documents lie in it."""

    def batch(self, k: int) -> "Mapping[str, Tensor]": ...
    def documents_of_batch(self, k: int) -> list[str]: ...


class TokenBatches:
    def __init__(
        self,
        shards: Sequence[TokenShard],
        *,
        rows: int,
        seq_len: int,
        seed: int,
        packing: Packing = "concatenated",
        document_mask: bool = False,
        warmup_rows: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        """`rows` a batch, after the first ones, which have `warmup_rows`.

        With a `vocab_size`, `batch` refuses a token id that is not below it: the model would fail without a word of
        where it is, or read memory of something else. Raises ValueError when the shards do not hold a single row.
        """
        self.stream = TokenStream(shards)
        self.rows, self.seq_len, self.seed, self.document_mask = rows, seq_len, seed, document_mask
        self.vocab_size = vocab_size
        self.warmup = np.concatenate([[0], np.cumsum(np.array(warmup_rows, np.int64))])
        n_tokens = self.stream.n_tokens
        if n_tokens - 1 < seq_len:
            raise ValueError(
                f"{n_tokens} tokens in {len(self.stream.shards)} shards are too few for one row of"
                f" seq_len={seq_len} tokens and a target; collect more text or lower seq_len"
            )
        plan = {"concatenated": Windows, "documents": PackedDocuments}[packing]
        self.plan: RowPlan = plan(self.stream, seq_len)
        self.ahead_from, self.ahead = 0, np.zeros(0, np.int64)  # rows of the next batches, in their order

    @property
    def rows_per_epoch(self) -> int:
        return self.plan.n_rows

    def batch(self, k: int, part: slice = slice(None)) -> "dict[str, Tensor]":
        """The rows `part` of global batch `k`: ids_BT and targets_BT, int64.

        A target is the token that follows in the stream, or IGNORE_INDEX where the row has no more tokens. With a
        document mask also documents_BT, the number of the document within the row (-1 where the row has no more
        tokens): only tokens of equal number may see each other; and positions_BT, which begin at 0 with every
        document, and where a row begins inside one. All int64.
        """
        import torch

        from model.training.loss import IGNORE_INDEX

        rows = self.rows_of_batches(k, k + 1)[part]
        pieces = self.plan.pieces(rows)
        if self.document_mask:
            pieces = at_borders(pieces, self.stream)
        shape, n_cells = (len(rows), self.seq_len), len(rows) * self.seq_len
        ids, targets = np.zeros(n_cells, np.int64), np.full(n_cells, IGNORE_INDEX)
        documents, positions = np.full(n_cells, NO_DOCUMENT), np.zeros(n_cells, np.int64)
        count = np.arange(self.seq_len)
        cells = pieces.rows * self.seq_len + pieces.columns()
        columns = (cells, pieces.starts, pieces.lengths, pieces.numbers())
        for cell, start, length, number in zip(*(column.tolist() for column in columns), strict=True):
            tokens = self.stream.tokens(start, start + length + 1)
            ids[cell : cell + length], targets[cell : cell + length] = tokens[:-1], tokens[1:]
            if self.document_mask:
                documents[cell : cell + length], positions[cell : cell + length] = number, count[:length]
        if self.vocab_size is not None and max(ids.max(), targets.max()) >= self.vocab_size:
            raise ValueError(self.foreign_token(k, pieces, self.vocab_size))
        named = {"ids_BT": ids, "targets_BT": targets}
        if self.document_mask:
            named |= {"documents_BT": documents, "positions_BT": positions}
        return {name: torch.from_numpy(values).view(shape) for name, values in named.items()}

    def foreign_token(self, k: int, pieces: Spans, vocab_size: int) -> str:
        """Where the first token of global batch `k` lies that is none of the vocabulary."""
        bounds = zip(pieces.starts.tolist(), (pieces.starts + pieces.lengths + 1).tolist(), strict=True)
        stretches = ((start, self.stream.tokens(start, end)) for start, end in bounds)
        start, tokens = next((start, tokens) for start, tokens in stretches if tokens.max() >= vocab_size)
        first = int((tokens >= vocab_size).argmax())
        place, token = start + first, int(tokens[first])
        (document,) = self.stream.document_ids(self.stream.documents_at(np.array([place])))
        return (
            f"{self.stream.shard_of(place).path}: document {document} holds the token id {token} (in"
            f" global batch {k}), outside 0 to {vocab_size - 1}, the ids of the vocabulary: the shard is damaged,"
            " or of another tokenizer; tokenise again"
        )

    def first_row(self, k: int) -> int:
        """Rows read before global batch `k`."""
        n_warmup = len(self.warmup) - 1
        return int(self.warmup[min(k, n_warmup)]) + max(0, k - n_warmup) * self.rows

    def rows_of_batches(self, first: int, last: int) -> np.ndarray:
        """Numbers of the plan's rows in the batches `first` to `last` (exclusive), in their order; int64."""
        start, end = self.first_row(first), self.first_row(last)
        if end - start >= READ_AHEAD:
            return self.rows_of_places(start, end)
        if not self.ahead_from <= start <= end <= self.ahead_from + len(self.ahead):
            self.ahead_from, self.ahead = start, self.rows_of_places(start, start + READ_AHEAD)
        return self.ahead[start - self.ahead_from : end - self.ahead_from]

    def rows_of_places(self, start: int, end: int) -> np.ndarray:
        """Numbers of the plan's rows at the places `start` to `end` (exclusive) of the order of all rows."""
        n_rows, parts = self.plan.n_rows, [np.zeros(0, np.int64)]
        for epoch in range(start // n_rows, -(-end // n_rows)):
            before = epoch * n_rows
            inside = np.arange(max(start - before, 0), min(end - before, n_rows))
            parts.append(permuted(inside, n_rows, self.seed, epoch))
        return np.concatenate(parts)

    def documents_of_batches(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers in the stream of the documents in the batches `first` to `last` (exclusive), once each, in the
        order in which they are met, and how many targets each has there; a row that is read twice counts twice."""
        numbers, n_targets = self.plan.documents(self.rows_of_batches(first, last))
        unique, place, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(place, kind="stable")
        return unique[order], np.bincount(inverse, n_targets, len(unique)).astype(np.int64)[order]

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the documents that have a token in global batch `k`, once each, in the order of its rows."""
        numbers, _ = self.documents_of_batches(k, k + 1)
        return list(dict.fromkeys(self.stream.document_ids(numbers)))  # a document may stand in the stream twice

    def steps_of_tokens(self, start: int, end: int, n_steps: int) -> np.ndarray:
        """Steps (int64, sorted) from 1 to `n_steps` whose batch holds one of the tokens start to end (exclusive).

        Step s reads batch s - 1. Empty where none of those tokens is reached.
        """
        if start >= end:
            return np.zeros(0, np.int64)
        rows, n_rows = self.plan.rows_of_tokens(start, end), self.plan.n_rows
        n_read = self.first_row(n_steps)
        parts = [np.zeros(0, np.int64)]
        for epoch in range(-(-n_read // n_rows)):
            places = epoch * n_rows + places_in_permutation(rows, n_rows, self.seed, epoch)
            parts.append(self.steps_of_places(places[places < n_read]))
        return np.unique(np.concatenate(parts))

    def steps_of_places(self, places: np.ndarray) -> np.ndarray:
        """The step, from 1, that reads each place of the order of all rows."""
        n_warmup = len(self.warmup) - 1
        later = n_warmup + (places - self.warmup[-1]) // self.rows
        return 1 + np.where(places < self.warmup[-1], np.searchsorted(self.warmup, places, side="right") - 1, later)


def token_batches(shards: Sequence[TokenShard], cfg: TrainConfig, vocab_size: int | None = None) -> TokenBatches:
    """The batches that a training by `cfg` reads; `vocab_size` of the model, to refuse tokens that are none."""
    return TokenBatches(
        shards,
        rows=cfg.rows,
        seq_len=cfg.seq_len,
        seed=cfg.seed,
        packing=cfg.packing,
        document_mask=cfg.document_mask,
        warmup_rows=warmup_rows(cfg),
        vocab_size=vocab_size,
    )


def at_borders(pieces: Spans, stream: TokenStream) -> Spans:
    """The same stretches, cut where a document ends."""
    ends = pieces.starts + pieces.lengths
    documents, n_documents = documents_between(stream, pieces.starts, ends)
    starts = np.maximum(stream.borders[documents], np.repeat(pieces.starts, n_documents))
    lengths = np.minimum(stream.borders[documents + 1], np.repeat(ends, n_documents)) - starts
    is_there = lengths > 0
    rows = np.repeat(pieces.rows, n_documents)
    return Spans(rows[is_there], starts[is_there], lengths[is_there])
