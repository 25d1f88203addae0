"""Token shards to global batches: batch k is a pure function of (shards, seed, k).

In: token shards in the order of their names. Out: ids and targets (B, T); with a document mask also the number of
each token's document and its position in it; with loss weights in the shards also the weight of each target. Steps:
the documents of all shards form one stream (model/data/token_stream.py); a plan divides the stream into rows, as
windows or as whole spans of documents (model/data/packing.py); an epoch reads every row once, in an order that
depends on (seed, epoch) alone and is computed, not stored (model/data/permutation.py). Any batch is reached at once,
whatever the number of processes, and each process builds its own rows only. A batch at the end of an epoch continues
with the next one. The order can be inverted: `steps_of_tokens` finds the steps that read a range of the stream
without building a batch, and without importing torch.

Legend: B rows of a batch, T position.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model.data.batch_layout import IGNORE_INDEX, rows_of_rank
from model.data.packing import PackedDocuments, RowPlan, Spans, Windows, documents_between
from model.data.permutation import permuted, places_in_permutation
from model.data.token_shards import TokenShard
from model.data.token_stream import TokenStream, ranges
from model.training.config import Packing, TrainConfig
from model.training.schedule import warmup_rows

if TYPE_CHECKING:
    from torch import Tensor

READ_AHEAD = 4096  # rows whose order is computed at once: the order of 12 rows alone would take as long
ORDER_BLOCK = 1 << 16  # rows whose order is computed in one array operation: bounds the memory of a long look-up
NO_DOCUMENT = -1  # document number of a cell without a token


class Batches(Protocol):
    """What training reads: the rows of global batch k that one process trains on, and where the batch comes from."""

    def n_rows(self, k: int) -> int:
        """Rows of the whole batch `k`."""
        ...

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> "Mapping[str, Tensor]":
        """Process `rank`'s rows of batch `k`, rows first; `rows_of_rank` says which these are."""
        ...

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the documents in the whole batch `k`."""
        ...


class TokenBatches:
    def __init__(
        self,
        shards: Sequence[TokenShard] | TokenStream,
        *,
        rows: int,
        seq_len: int,
        seed: int,
        packing: Packing = "concatenated",
        document_mask: bool = False,
        warmup_rows: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        """`rows` per batch after the first batches, which have `warmup_rows`.

        With a `vocab_size`, `batch` refuses larger token ids: the model would fail without naming the document, or on
        a GPU read foreign memory. Raises ValueError when the shards do not hold a single row.
        """
        self.stream = shards if isinstance(shards, TokenStream) else TokenStream(shards)
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
        self.ahead = 0, np.zeros(0, np.int64)  # a place of the order and the rows from there on: a cache

    @property
    def rows_per_epoch(self) -> int:
        return self.plan.n_rows

    def n_rows(self, k: int) -> int:
        return self.first_row(k + 1) - self.first_row(k)

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1) -> "dict[str, Tensor]":
        """Process `rank`'s rows of global batch `k`: ids_BT and targets_BT, int64.

        A target is the token that follows in the stream, or IGNORE_INDEX where the row has no more tokens or the loss
        weight of the target is 0. With a document mask also documents_BT, the number of the document within the row
        (-1 where the row has no more tokens), because only tokens of equal number may attend to each other; and
        positions_BT, which start at 0 in every document and where a row starts inside one. Both int64. If the shards
        have loss weights also weights_BT, float32, the weight of each target.
        """
        import torch

        rows = self.rows_of_batches(k, k + 1)[rows_of_rank(self.n_rows(k), rank, n_ranks)]
        spans = self.plan.spans(rows)
        named = self.token_cells(spans, len(rows))
        if self.document_mask:
            spans = spans if isinstance(self.plan, PackedDocuments) else split_at_borders(spans, self.stream)
            named |= self.document_cells(spans, len(rows))
        if self.vocab_size is not None and max(named["ids_BT"].max(), named["targets_BT"].max()) >= self.vocab_size:
            raise ValueError(self.foreign_token(k, spans, self.vocab_size))
        return {name: torch.from_numpy(values).view(len(rows), self.seq_len) for name, values in named.items()}

    def token_cells(self, spans: Spans, n_rows: int) -> dict[str, np.ndarray]:
        """Inputs, targets and weights of all cells of `n_rows` rows, flat."""
        read = self.stream.gather(spans.starts, spans.lengths + 1)  # the inputs of each span and its last target
        inputs = ranges(np.cumsum(spans.lengths + 1) - spans.lengths - 1, spans.lengths)  # where in `read`
        named = {
            "ids_BT": self.filled(spans, n_rows, read[inputs], 0),
            "targets_BT": self.filled(spans, n_rows, read[inputs + 1], IGNORE_INDEX),
        }
        if self.stream.has_weights:
            weights = self.stream.gather_weights(spans.starts, spans.lengths + 1)[inputs + 1].astype(np.float32)
            named["weights_BT"] = self.filled(spans, n_rows, weights, 0.0)
            named["targets_BT"][named["weights_BT"] == 0] = IGNORE_INDEX
        return named

    def document_cells(self, spans: Spans, n_rows: int) -> dict[str, np.ndarray]:
        """Document numbers and positions of all cells of `n_rows` rows, flat; a span is part of one document."""
        numbers, positions = np.repeat(spans.numbers(), spans.lengths), ranges(0 * spans.lengths, spans.lengths)
        return {
            "documents_BT": self.filled(spans, n_rows, numbers, NO_DOCUMENT),
            "positions_BT": self.filled(spans, n_rows, positions, 0),
        }

    def filled(self, spans: Spans, n_rows: int, values: np.ndarray, empty: float) -> np.ndarray:
        """`values` of the cells of all spans, and `empty` in cells without a token; int64, or float32 of floats."""
        n_cells, dtype = n_rows * self.seq_len, np.float32 if values.dtype == np.float32 else np.int64
        if len(values) == n_cells:
            return values.astype(dtype)
        array = np.full(n_cells, empty, dtype)
        array[ranges(spans.rows * self.seq_len + spans.columns(), spans.lengths)] = values
        return array

    def foreign_token(self, k: int, spans: Spans, vocab_size: int) -> str:
        """Names the document with the first token of global batch `k` that is not in the vocabulary."""
        lengths = spans.lengths + 1
        places, tokens = ranges(spans.starts, lengths), self.stream.gather(spans.starts, lengths)
        first = int((tokens >= vocab_size).argmax())
        place, token = int(places[first]), int(tokens[first])
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
        first_ahead, ahead = self.ahead  # read and written as a whole: another thread may build batches meanwhile
        if not first_ahead <= start <= end <= first_ahead + len(ahead):
            n_ahead = max(end - start, min(READ_AHEAD, self.plan.n_rows))
            first_ahead, ahead = self.ahead = start, self.rows_of_places(start, start + n_ahead)
        return ahead[start - first_ahead : end - first_ahead]

    def rows_of_places(self, start: int, end: int) -> np.ndarray:
        """Numbers of the plan's rows at the places `start` to `end` (exclusive) of the order of all rows."""
        return rows_in_order(start, end, self.plan.n_rows, self.seed)

    def places_of_rows(self, rows: np.ndarray, n_read: int) -> np.ndarray:
        """The places below `n_read` of the order of all rows that hold one of the plan's `rows`; int64."""
        return places_below(rows, self.plan.n_rows, self.seed, n_read)

    def documents_of_batches(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers in the stream of the documents in the batches `first` to `last` (exclusive), each once, in the
        order of first appearance, and the number of targets of each; a row that is read twice counts twice."""
        numbers, n_targets = self.plan.documents(self.rows_of_batches(first, last))
        unique, place, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(place, kind="stable")
        return unique[order], np.bincount(inverse, n_targets, len(unique)).astype(np.int64)[order]

    def documents_of_batch(self, k: int) -> list[str]:
        """Ids of the documents that have a token in global batch `k`, each once, in the order of its rows."""
        numbers, _ = self.documents_of_batches(k, k + 1)
        return list(dict.fromkeys(self.stream.document_ids(numbers)))  # the stream may contain a document twice

    def steps_of_tokens(self, start: int, end: int, n_steps: int) -> np.ndarray:
        """Steps (int64, sorted) from 1 to `n_steps` whose batch holds one of the tokens start to end (exclusive).

        Step s reads batch s - 1. Empty where none of those tokens is reached.
        """
        if start >= end:
            return np.zeros(0, np.int64)
        rows = self.plan.rows_of_tokens(start, end)
        return np.unique(self.steps_of_places(self.places_of_rows(rows, self.first_row(n_steps))))

    def steps_of_document(self, shard: int, row: int, n_steps: int) -> np.ndarray:
        """Steps as in `steps_of_tokens` that read document `row` of a shard, which is named by its number."""
        number = self.stream.number_of(shard, row)
        if number is None:
            return np.zeros(0, np.int64)
        start, end = self.stream.borders[number : number + 2].tolist()
        return self.steps_of_tokens(start, end, n_steps)

    def steps_of_places(self, places: np.ndarray) -> np.ndarray:
        """The step, from 1, that reads each place of the order of all rows."""
        n_warmup = len(self.warmup) - 1
        later = n_warmup + (places - self.warmup[-1]) // self.rows
        return 1 + np.where(places < self.warmup[-1], np.searchsorted(self.warmup, places, side="right") - 1, later)


def token_batches(shards: Sequence[TokenShard], cfg: TrainConfig, vocab_size: int | None = None) -> TokenBatches:
    """The batches that a training by `cfg` reads; token ids must be below `vocab_size`, the model's."""
    same = {name: getattr(cfg, name) for name in ("rows", "seq_len", "seed", "packing", "document_mask")}
    return TokenBatches(shards, warmup_rows=warmup_rows(cfg), vocab_size=vocab_size, **same)


def rows_in_order(start: int, end: int, n_rows: int, seed: int) -> np.ndarray:
    """The rows at the places `start` to `end` (exclusive) of an order that has all `n_rows` rows in each epoch."""
    parts = [np.zeros(0, np.int64)]
    for first in range(start, end, ORDER_BLOCK):
        epochs, inside = np.divmod(np.arange(first, min(first + ORDER_BLOCK, end)), n_rows)
        parts.append(permuted(inside, n_rows, seed, epochs))
    return np.concatenate(parts)


def places_below(rows: np.ndarray, n_rows: int, seed: int, n_read: int) -> np.ndarray:
    """The places below `n_read` of that order which hold one of `rows`; int64."""
    n_epochs, at_once = -(-n_read // n_rows), max(1, ORDER_BLOCK // max(1, len(rows)))
    parts = [np.zeros(0, np.int64)]
    for first in range(0, n_epochs, at_once):
        epochs = np.repeat(np.arange(first, min(first + at_once, n_epochs)), len(rows))
        inside = np.tile(rows, len(epochs) // max(1, len(rows)))
        places = epochs * n_rows + places_in_permutation(inside, n_rows, seed, epochs)
        parts.append(places[places < n_read])
    return np.concatenate(parts)


def split_at_borders(spans: Spans, stream: TokenStream) -> Spans:
    """The same tokens in spans that end where a document ends."""
    ends = spans.starts + spans.lengths
    documents, n_documents = documents_between(stream, spans.starts, ends)
    starts = np.maximum(stream.borders[documents], np.repeat(spans.starts, n_documents))
    lengths = np.minimum(stream.borders[documents + 1], np.repeat(ends, n_documents)) - starts
    is_there = lengths > 0
    rows = np.repeat(spans.rows, n_documents)
    return Spans(rows[is_there], starts[is_there], lengths[is_there])
