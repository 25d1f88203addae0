"""Which tokens stand in which row, against naive packing and against reading every span of every row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.packing import PackedDocuments, Windows, best_fit
from model.data.token_shards import TokenShard
from model.data.token_stream import TokenStream

SHARDS = st.lists(st.lists(st.integers(0, 40), max_size=8), min_size=1, max_size=4)
SEQ_LEN = st.integers(1, 12)


def stream_of(shards: list[list[int]]) -> TokenStream:
    """Documents of the given lengths; token i of the stream is i."""
    read, token, document = [], 0, 0
    for number, lengths in enumerate(shards):
        ids = pa.array([f"doc{document + i}" for i in range(len(lengths))], pa.string())
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.arange(token, token + sum(lengths), dtype=np.uint16)
        read.append(TokenShard(Path(f"{number:05d}.arrow"), ids, np.array(lengths, np.int64), tokens, offsets))
        token, document = token + sum(lengths), document + len(lengths)
    return TokenStream(read)


def owners(stream: TokenStream) -> np.ndarray:
    """Of every token of the stream the number of its document."""
    return np.repeat(np.arange(len(stream.borders) - 1), np.diff(stream.borders))


def rooms_one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """What best fit decreasing leaves free in each row, a span at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 40))
@example([30] * 5, 30)
@example([1] * 95, 30)
@example([10, 10, 10, 10, 11, 11, 9, 30], 30)
@settings(max_examples=300, deadline=None)
def test_best_fit_by_histogram_leaves_what_packing_one_by_one_leaves(lengths, capacity):
    rows = best_fit(np.array(lengths, np.int64), capacity)
    used = np.bincount(rows, lengths).astype(int) if lengths else np.zeros(0, int)
    assert sorted((capacity - used).tolist()) == rooms_one_by_one(lengths, capacity)


def test_best_fit_of_many_short_spans_leaves_almost_nothing_empty():
    lengths = np.random.default_rng(0).geometric(1 / 200, size=20_000).clip(1, 1023)
    used = np.bincount(best_fit(lengths, 1024), lengths)
    assert used.max() <= 1024 and used.sum() / (len(used) * 1024) > 0.9999


@given(SHARDS, SEQ_LEN)
@example([[0, 0], [0]], 3)
@example([[1]], 1)
@example([[1, 1, 1, 1, 1]], 4)
@example([[9, 9, 9], [9]], 3)
@example([[12, 0], [], [1, 0]], 5)
@settings(max_examples=200, deadline=None)
def test_packed_documents_hold_every_token_but_the_last_as_input_once(shards, seq_len):
    stream = stream_of(shards)
    plan = PackedDocuments(stream, seq_len)
    spans = plan.spans(np.arange(plan.n_rows))
    inputs = [np.arange(start, start + length) for start, length in zip(spans.starts, spans.lengths, strict=True)]
    assert sorted(np.concatenate([np.zeros(0, int), *inputs])) == list(range(max(0, stream.n_tokens - 1)))
    owner = owners(stream)
    assert all(len(set(owner[own])) == 1 for own in inputs)
    assert set(spans.rows.tolist()) == set(range(plan.n_rows))
    assert np.all((spans.columns() + spans.lengths) <= seq_len) and np.all(spans.lengths > 0)
    assert np.all((spans.starts - stream.borders[owner[spans.starts]]) % seq_len == 0)


@given(SHARDS, SEQ_LEN)
@settings(max_examples=50, deadline=None)
def test_packed_documents_fill_rows_alone_as_far_as_they_can(shards, seq_len):
    stream = stream_of(shards)
    plan = PackedDocuments(stream, seq_len)
    n_spans = np.bincount(plan.spans(np.arange(plan.n_rows)).rows, minlength=plan.n_rows)
    lengths = np.diff(np.minimum(stream.borders, max(0, stream.n_tokens - 1)))
    assert np.all(n_spans[: sum(lengths // seq_len)] == 1)
    rests = [length for length in (lengths % seq_len).tolist() if length]
    assert plan.n_rows == sum(lengths // seq_len) + len(rooms_one_by_one(rests, seq_len))


@pytest.mark.parametrize("kind", [Windows, PackedDocuments])
@given(shards=SHARDS, seq_len=SEQ_LEN, data=st.data())
@settings(max_examples=100, deadline=None)
def test_spans_of_some_rows_are_those_of_all(kind, shards, seq_len, data):
    plan = kind(stream_of(shards), seq_len)
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, plan.n_rows - 1)), max_size=6)), np.int64)
    some, whole = plan.spans(rows[: plan.n_rows]), plan.spans(np.arange(plan.n_rows))
    for i, row in enumerate(rows[: plan.n_rows].tolist()):
        assert some.starts[some.rows == i].tolist() == whole.starts[whole.rows == row].tolist()
        assert some.lengths[some.rows == i].tolist() == whole.lengths[whole.rows == row].tolist()


@pytest.mark.parametrize("kind", [Windows, PackedDocuments])
@given(shards=SHARDS, seq_len=SEQ_LEN, data=st.data())
@example([[9, 9, 9], [9]], 3, None)
@example([[3, 1], [4, 1]], 4, None)
@settings(max_examples=200, deadline=None)
def test_rows_of_tokens_are_those_that_a_look_at_every_row_finds(kind, shards, seq_len, data):
    stream = stream_of(shards)
    plan, owner = kind(stream, seq_len), owners(stream)
    start = data.draw(st.integers(0, max(0, stream.n_tokens - 1))) if data else 0
    end = data.draw(st.integers(start, stream.n_tokens)) if data else stream.n_tokens
    if start == end:
        return
    found = []
    for row in range(plan.n_rows):
        spans = plan.spans(np.array([row]))
        for first, length in zip(spans.starts.tolist(), spans.lengths.tolist(), strict=True):
            read = np.arange(first, first + length + 1)  # the end-of-text behind a document counts as the next one's
            read = read if kind is Windows else read[owner[read] == owner[first]]  # only where a row goes on with it
            if np.any((read >= start) & (read < end)):
                found.append(row)
    assert plan.rows_of_tokens(start, end).tolist() == sorted(set(found))


@given(SHARDS, SEQ_LEN)
@settings(max_examples=50, deadline=None)
def test_documents_of_packed_rows_are_those_of_their_cells(shards, seq_len):
    stream = stream_of(shards)
    plan, owner = PackedDocuments(stream, seq_len), owners(stream)
    numbers, n_targets = plan.documents(np.arange(plan.n_rows))
    expected = np.bincount(owner[: max(0, stream.n_tokens - 1)], minlength=len(stream.borders) - 1)
    assert np.bincount(numbers, n_targets, len(expected)).astype(int).tolist() == expected.tolist()
