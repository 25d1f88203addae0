"""The nearest vectors: the exact search against numpy, the index against the exact search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.retrieval.vectors import DTYPE, INDEX, ROWS_OF_BLOCK, VECTORS, best, load_vectors, write_vectors

WIDTH = 24


def drawn(n: int, seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).standard_normal((n, WIDTH), np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """3,000 vectors beyond the limit, and the sha256 of their index."""
    folder = tmp_path_factory.mktemp("indexed")
    return folder, write_vectors(folder, drawn(3000), exact_limit=2999)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 25))
def test_best_are_the_largest_and_of_equal_ones_the_first(scores, k):
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert best(np.array(scores, np.float32), k).tolist() == expected


@pytest.mark.parametrize("n", [5, ROWS_OF_BLOCK + 7], ids=["one block", "two blocks"])
@pytest.mark.parametrize("has_hidden", [False, True])
def test_exact_search_finds_what_numpy_finds(tmp_path, n, has_hidden):
    write_vectors(tmp_path, drawn(n))
    vectors, questions_QD = load_vectors(tmp_path, n, WIDTH), drawn(3, seed=1)
    visible_N = np.arange(n) % 2 == 0 if has_hidden else None
    cosines_QN = questions_QD @ drawn(n).astype(DTYPE).astype(np.float32).T
    if visible_N is not None:
        cosines_QN[:, ~visible_N] = -2
    for found, cosines_N in zip(vectors.nearest(questions_QD, 4, visible_N), cosines_QN, strict=True):
        expected = np.argsort(-cosines_N, kind="stable")[: 3 if n == 5 and has_hidden else 4]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("has_hidden", [False, True])
def test_the_index_finds_95_percent_of_what_the_exact_search_finds(indexed, has_hidden):
    folder, digest = indexed
    exact, index = load_vectors(folder, 3000, WIDTH), load_vectors(folder, 3000, WIDTH, 2999, digest)
    visible_N = np.arange(3000) % 50 == 0 if has_hidden else None
    questions_QD = drawn(50, seed=1)
    pairs = zip(exact.nearest(questions_QD, 10, visible_N), index.nearest(questions_QD, 10, visible_N), strict=True)
    assert np.mean([len(set(one.tolist()) & set(other.tolist())) / 10 for one, other in pairs]) >= 0.95


def test_the_same_vectors_give_the_same_bytes(tmp_path, indexed):
    write_vectors(tmp_path, drawn(3000), exact_limit=2999)
    assert all((tmp_path / name).read_bytes() == (indexed[0] / name).read_bytes() for name in (VECTORS, INDEX))


@pytest.mark.parametrize("change", ["missing", "cut", "other bytes"])
def test_an_index_that_is_not_as_it_was_written_is_refused(tmp_path, indexed, change):
    folder, digest = indexed
    (tmp_path / VECTORS).write_bytes((folder / VECTORS).read_bytes())
    content = (folder / INDEX).read_bytes()
    if change != "missing":
        damaged = content[:1000] if change == "cut" else content[:5000] + b"\xff" * 8 + content[5008:]
        (tmp_path / INDEX).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{INDEX} is missing, or holds other bytes"):
        load_vectors(tmp_path, 3000, WIDTH, 2999, digest)
    if change == "cut":
        with pytest.raises(ValueError, match=f"{INDEX}: not readable as an index"):
            load_vectors(tmp_path, 3000, WIDTH, 2999)


def test_vectors_of_another_number_are_refused(indexed):
    with pytest.raises(ValueError, match=r"vectors\.npy holds float16 \(3000, 24\), expected float16 \(7, 24\)"):
        load_vectors(indexed[0], 7, WIDTH)
