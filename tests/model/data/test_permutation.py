"""An order that is computed: a permutation, turned round, the same in every version."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.permutation import permuted, places_in_permutation


@given(n=st.integers(1, 3000), seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_permutation(n, seed, epoch):
    assert sorted(permuted(np.arange(n), n, seed, epoch)) == list(range(n))


@given(n=st.integers(1, 3000), seed=st.integers(0, 5), epoch=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_places_in_permutation_turn_permuted_round(n, seed, epoch):
    indices = np.arange(n)
    assert np.array_equal(places_in_permutation(permuted(indices, n, seed, epoch), n, seed, epoch), indices)


def test_permuted_differs_by_seed_and_epoch_and_is_far_from_the_identity():
    orders = [permuted(np.arange(1000), 1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert (order == np.arange(1000)).sum() < 20
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


def test_permuted_never_changes_between_versions():
    """A checkpoint of an earlier version resumes on the same data."""
    assert permuted(np.arange(10), 10, seed=0, epoch=0).tolist() == [2, 1, 7, 9, 0, 4, 3, 5, 8, 6]
