"""The rule as a dense mask: every cell against its definition in words."""

import itertools

import pytest
import torch

from model.network.visible import CAUSAL, Visible

DOCUMENTS = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [5, 5, 5, 5, 5, -1, -1]])
MASK = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.5


def places(n_queries: int, n_keys: int) -> torch.Tensor:
    return torch.arange(n_keys - n_queries, n_keys)[None]


def document_of(row: int, place: int) -> int:
    """The number of the run of equal numbers that holds `place`."""
    numbers = DOCUMENTS[row].tolist()
    return sum(a != b for a, b in itertools.pairwise(numbers[: place + 1]))


@pytest.mark.parametrize("n_queries", [1, 3, 7])
@pytest.mark.parametrize("window", [None, (0, 0), (2, 0), (1, 2), (0, 6), (6, 6), (9, 9)])
@pytest.mark.parametrize("kind", ["causal", "all", "within", "within_both_ways", "mask"])
def test_dense_mask_allows_what_the_rule_says(kind, window, n_queries):
    visible = {
        "causal": Visible.causal(),
        "all": Visible.all(),
        "within": Visible.within(DOCUMENTS),
        "within_both_ways": Visible.within(DOCUMENTS, causal=False),
        "mask": Visible.mask(MASK[:, 7 - n_queries :]),
    }[kind]
    if window is not None:
        visible = visible.windowed(*window)
    sees_BTS = visible.dense(places(n_queries, 7), 7).expand(2, n_queries, 7)
    for row, query, key in itertools.product(range(2), range(7 - n_queries, 7), range(7)):
        expected = True
        if kind in ("causal", "within"):
            expected = key <= query
        if kind.startswith("within"):
            expected = expected and document_of(row, key) == document_of(row, query)
        if kind == "mask":
            expected = bool(MASK[row, query, key])
        if window is not None:
            expected = expected and query - window[0] <= key <= query + window[1]
        assert sees_BTS[row, query - 7 + n_queries, key] == expected, (row, query, key)


def test_dense_mask_of_rows_at_different_places_is_that_of_each_row():
    places_BT = torch.tensor([[1, 2], [4, 5]])
    sees_BTS = CAUSAL.windowed(2, 0).dense(places_BT, 7)
    for row in range(2):
        assert torch.equal(sees_BTS[row : row + 1], CAUSAL.windowed(2, 0).dense(places_BT[row : row + 1], 7))


def test_window_of_a_window_is_the_narrower_on_each_side():
    twice = Visible.all().windowed(1, 4).windowed(3, 2)
    assert torch.equal(twice.dense(places(7, 7), 7), Visible.all().windowed(1, 2).dense(places(7, 7), 7))


def test_window_without_the_own_key_is_refused():
    with pytest.raises(ValueError, match=r"windowed\(left=-1, right=0\): both must be at least 0"):
        CAUSAL.windowed(-1, 0)
