"""An order that is computed: a permutation, its inverse, the same in every version."""

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
def test_places_in_permutation_are_the_inverse_of_permuted(n, seed, epoch):
    indices = np.arange(n)
    assert np.array_equal(places_in_permutation(permuted(indices, n, seed, epoch), n, seed, epoch), indices)


def test_permuted_of_several_epochs_at_once_is_that_of_each_epoch():
    for n in (1, 10, 1000):
        epochs, indices = np.divmod(np.arange(3 * n), n)
        together, each = permuted(indices, n, 4, epochs), [permuted(np.arange(n), n, 4, epoch) for epoch in range(3)]
        assert np.array_equal(together, np.concatenate(each))
        assert np.array_equal(places_in_permutation(together, n, 4, epochs), indices)


def test_permuted_differs_by_seed_and_epoch_and_is_far_from_the_identity():
    orders = [permuted(np.arange(1000), 1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert (order == np.arange(1000)).sum() < 20
        assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


def test_permuted_never_changes_between_versions():
    """A checkpoint of an earlier version resumes on the same data."""
    assert permuted(np.arange(10), 10, seed=0, epoch=0).tolist() == [2, 1, 7, 9, 0, 4, 3, 5, 8, 6]
