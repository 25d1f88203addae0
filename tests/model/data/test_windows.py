"""Windows cover a text, and every piece is owned by the window in which it is farthest from an edge."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.windows import Window, windows_of

SIZES = st.tuples(st.integers(0, 200), st.integers(1, 40)).flatmap(
    lambda sizes: st.tuples(st.just(sizes[0]), st.just(sizes[1]), st.integers(0, sizes[1] - 1))
)


def distance(window: Window, piece: int, n: int) -> int:
    """Of a piece in a window from the nearest edge; an end of the text is none."""
    left = piece - window.start if window.start else n
    right = window.end - 1 - piece if window.end < n else n
    return min(left, right)


@given(SIZES)
def test_every_piece_is_owned_once_where_it_is_farthest_from_an_edge(sizes):
    n, most, overlap = sizes
    windows = windows_of(n, most, overlap)
    owned = [piece for window in windows for piece in range(window.owns_from, window.owns_to)]
    assert owned == list(range(n))
    for window in windows:
        assert 0 <= window.start <= window.owns_from <= window.owns_to <= window.end <= n
        assert window.end - window.start <= most
        for piece in range(window.owns_from, window.owns_to):
            best = max(distance(one, piece, n) for one in windows if one.start <= piece < one.end)
            assert distance(window, piece, n) == best


@given(SIZES)
def test_neighbours_share_the_overlap_and_no_window_is_needless(sizes):
    n, most, overlap = sizes
    windows = windows_of(n, most, overlap)
    assert windows[0].start == 0 and windows[-1].end == n
    for before, after in itertools.pairwise(windows):
        assert before.end - after.start == overlap and before.end < n


def test_windows_of_a_short_and_of_an_empty_text_are_one():
    assert windows_of(3, 3, 1) == [Window(0, 3, 0, 3)]
    assert windows_of(0, 3, 1) == [Window(0, 0, 0, 0)]
    assert windows_of(5, 4, 2) == [Window(0, 4, 0, 3), Window(2, 5, 3, 5)]


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_windows_of_an_overlap_that_does_not_fit_are_refused(overlap):
    with pytest.raises(ValueError, match=f"overlap={overlap} must be at least 0 and less than the 4 pieces"):
        windows_of(10, 4, overlap)
