"""BM25 against its formula, term by term; and files that are not what they should be."""

import math
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.retrieval.bm25 import FILES, K1, B, load_bm25, write_bm25
from model.retrieval.terms import STEMMINGS, terms_of

TEXTS = [
    "the mill grinds corn",
    "corn, corn and rye",
    "",
    "\u65e5\u672c\u8a9e\u306e\u7c89",
    "a mill; another mill: mills",
    "...",
]


def by_formula(texts: list[str], question: str, stemming) -> list[float]:
    """Lucene's: idf tf / (tf + k1 (1 - b + b length / mean length)), summed over the terms of the question."""
    found = [Counter(terms_of(text, stemming)) for text in texts]
    mean = sum(one.total() for one in found) / len(found)
    scores = []
    for one in found:
        score = 0.0
        for term in terms_of(question, stemming):
            n_with = sum(term in other for other in found)
            idf = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
            score += idf * one[term] / (one[term] + K1 * (1 - B + B * one.total() / mean)) if one[term] else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize("stemming", STEMMINGS)
@pytest.mark.parametrize("question", ["corn mill", "Mills? MILLS!", "\u65e5\u672c", "nothing", "", "corn corn rye"])
def test_scores_equal_the_formula(tmp_path, stemming, question):
    write_bm25(tmp_path, TEXTS, stemming)
    index = load_bm25(tmp_path, len(TEXTS), stemming)
    np.testing.assert_allclose(index.scores(question), by_formula(TEXTS, question, stemming), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab \u65e5\u672c\n.", max_size=12), min_size=1, max_size=8), st.text("ab \u65e5", max_size=8))
def test_scores_equal_the_formula_for_any_texts(tmp_path_factory, texts, question):
    folder = tmp_path_factory.mktemp("bm25")
    write_bm25(folder, texts, "none")
    found = load_bm25(folder, len(texts), "none").scores(question)
    expected = (
        by_formula(texts, question, "none") if any(terms_of(text, "none") for text in texts) else [0] * len(texts)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_same_texts_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_bm25(tmp_path / name, TEXTS, "prefix")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("text", "stemming", "terms"),
    [
        ("Queries of THE mills_of-God's", "none", ["queries", "of", "the", "mills", "of", "god", "s"]),
        ("Queries of mills, glass, buses", "plural", ["query", "of", "mill", "glass", "buse"]),
        ("Queries answered", "prefix", ["querie", "answer"]),
        ("\uff2d\uff29\uff2c\uff2c Stra\u00dfe", "none", ["mill", "strasse"]),
        ("\u65e5\u672c\u8a9e 3", "none", ["\u65e5", "\u672c", "\u8a9e", "\u65e5\u672c", "\u672c\u8a9e", "3"]),
    ],
)
def test_terms_are_words_in_small_letters_or_neighbours_in_scripts_without_spaces(text, stemming, terms):
    assert terms_of(text, stemming) == terms


def test_idf_of_a_term_falls_with_the_passages_that_have_it(tmp_path):
    write_bm25(tmp_path, TEXTS, "none")
    index = load_bm25(tmp_path, len(TEXTS), "none")
    assert index.idf("unseen") > index.idf("rye") > index.idf("corn") > 0


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", pickle.dumps(Evil()), None], ids=["empty", "cut", "pickle", "missing"]
)
def test_files_that_are_no_index_are_refused_by_name_and_never_unpickled(tmp_path, capsys, name, content):
    write_bm25(tmp_path, TEXTS, "none")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        load_bm25(tmp_path, len(TEXTS), "none")
    assert "unpickled" not in capsys.readouterr().out


def test_an_array_of_objects_is_refused_and_never_unpickled(tmp_path, capsys):
    write_bm25(tmp_path, TEXTS, "none")
    np.save(tmp_path / "weights.npy", np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"weights\.npy"):
        load_bm25(tmp_path, len(TEXTS), "none")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("place", [-1, len(TEXTS)])
def test_passages_outside_the_collection_are_refused(tmp_path, place):
    write_bm25(tmp_path, TEXTS, "none")
    found = np.load(tmp_path / "passages.npy")
    found[0] = place
    np.save(tmp_path / "passages.npy", found)
    with pytest.raises(ValueError, match=r"passages\.npy names passages outside 0 to 5"):
        load_bm25(tmp_path, len(TEXTS), "none")


def test_columns_that_do_not_follow_one_another_are_refused(tmp_path):
    write_bm25(tmp_path, TEXTS, "none")
    found = np.load(tmp_path / "columns.npy")
    found[1] = found[-1] + 1
    np.save(tmp_path / "columns.npy", found)
    with pytest.raises(ValueError, match=r"columns\.npy: the columns do not follow"):
        load_bm25(tmp_path, len(TEXTS), "none")
