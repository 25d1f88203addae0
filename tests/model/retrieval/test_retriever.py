"""A collection in a folder: what a search finds by words, by vectors and by both, and folders that are refused."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from model.retrieval.fusion import rank_of, tuned
from model.retrieval.retriever import (
    METHODS,
    RetrievalConfig,
    above,
    load_retriever,
    searched_text,
    searched_texts,
    write_retriever,
)
from tests.model.retrieval.collections_of_texts import MILL, WIDTH, embedded, made, table_of, written


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return made(tmp_path_factory.mktemp("mill"), MILL)


@pytest.mark.parametrize("method", METHODS)
def test_search_finds_the_passage_that_answers(retriever, method):
    for question, document in (("What do the stones weigh?", "stones"), ("The museum opens?", "opening")):
        hit, *_ = retriever.search([question], 3, method)[0]
        assert retriever.document(hit.place) == document
        assert retriever.text(hit.place) == retriever.passage(hit.place)["text"] == MILL[document]


def test_fused_scores_are_sums_of_reciprocal_ranks(retriever):
    cfg = retriever.cfg
    hits = retriever.search(["corn and water of the mill"], 5)[0]
    for hit in hits:
        ranks = ((hit.bm25_rank, cfg.bm25_weight), (hit.cosine_rank, 1 - cfg.bm25_weight))
        assert hit.score == pytest.approx(sum(weight / (cfg.constant + rank) for rank, weight in ranks if rank))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    by_bm25 = {hit.place: hit.bm25 for hit in retriever.search(["corn and water of the mill"], 5, "bm25")[0]}
    assert all(hit.bm25 == by_bm25.get(hit.place, 0.0) for hit in hits)


def test_a_weight_of_one_or_none_leaves_one_ranking(retriever):
    for weight, method in ((1.0, "bm25"), (0.0, "embeddings")):
        one = dataclasses.replace(retriever, cfg=RetrievalConfig(bm25_weight=weight))
        fused = [hit.place for hit in one.search(["worn belt of the mill"], 2)[0]]
        assert fused == [hit.place for hit in one.search(["worn belt of the mill"], 2, method)[0]]


@pytest.mark.parametrize("method", METHODS)
def test_documents_that_are_taken_out_are_found_no_more(retriever, method):
    question = "What do the stones of the mill weigh?"
    left = retriever.without(["stones", "no such document"]).without(["corn"])
    found = {left.document(hit.place) for hit in left.search([question], 9, method)[0]}
    assert found and not found & {"stones", "corn"}
    nothing = retriever.without(MILL)
    assert nothing.search([question], 9, method) == [[]]


def test_headings_are_searched_with_a_passage_unless_it_contains_them(retriever):
    assert searched_text("Mill", ("Stones", "Old"), "## Old\n\nHeavy.") == "Mill > Stones\n## Old\n\nHeavy."
    assert searched_text("", (), "Heavy.") == "Heavy." and above("Mill", ("Mill",), "x") == "Mill"
    hit, *_ = retriever.search(["river"], 1, "bm25")[0]
    assert retriever.document(hit.place) == "river"


def test_constants_are_chosen_by_the_rank_of_the_right_document(tmp_path):
    """Here the words of the question stand in the wrong passage, and the vectors know better."""
    documents = {"wrong": "mill mill stones", "right": "mill wheel", "other": "river"}
    table = table_of(documents)
    vectors = embedded(["far away", "mill stones", "sea"])
    write_retriever(tmp_path, table, vectors, RetrievalConfig(bm25_weight=0.9))
    retriever = load_retriever(tmp_path, embedded)
    question = ["mill stones"]
    assert rank_of(retriever, retriever.search(question, 3)[0], "right") == 2
    better = tuned(retriever, question, ["right"])
    assert better.cfg.bm25_weight < 0.5 and rank_of(better, better.search(question, 3)[0], "right") == 1
    assert rank_of(better, [], "right") is None
    assert tuned(better, question, ["right"]).cfg == better.cfg


def test_the_same_passages_give_the_same_bytes(tmp_path):
    for exact_limit in (10, 0):
        cfg = RetrievalConfig(exact_limit=exact_limit)
        folders = [written(tmp_path / f"{name}{exact_limit}", MILL, cfg) for name in "ab"]
        files = sorted(path.name for path in folders[0].iterdir())
        assert ("vectors.usearch" in files) == (exact_limit == 0)
        assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in files)


def test_an_index_finds_what_the_exact_search_finds(tmp_path, retriever):
    indexed = made(tmp_path, MILL, RetrievalConfig(exact_limit=0))
    questions = ["What do the stones weigh?", "dry summer", "Monday"]
    for one, other in zip(indexed.search(questions, 4), retriever.search(questions, 4), strict=True):
        assert [dataclasses.replace(hit, cosine=0) for hit in one] == [
            dataclasses.replace(hit, cosine=0) for hit in other
        ]


def test_collections_without_passages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no passage: the documents are empty"):
        write_retriever(tmp_path, table_of({}), np.zeros((0, WIDTH), np.float32), RetrievalConfig())


def test_tables_and_vectors_that_do_not_fit_are_refused(tmp_path):
    table = table_of(MILL)
    vectors = embedded(searched_texts(table))
    with pytest.raises(ValueError, match="vectors of the shape"):
        write_retriever(tmp_path, table, vectors[1:], RetrievalConfig())
    with pytest.raises(ValueError, match="not finite"):
        write_retriever(tmp_path, table, np.full_like(vectors, np.nan), RetrievalConfig())
    with pytest.raises(ValueError, match="the passages have the columns"):
        write_retriever(tmp_path, pa.table({"text": ["a"]}), vectors[:1], RetrievalConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("format", 0), ("passages", -1), ("passages", "5"), ("width", 3)),
        *(("settings", {"depth": 0}), ("settings", {"odd": 1}), ("settings", None)),
    ],
)
def test_descriptions_that_are_none_are_refused(tmp_path, field, value):
    path = written(tmp_path, MILL) / "retriever.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=r"retriever\.json does not describe|vectors\.npy holds"):
        load_retriever(tmp_path, embedded)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"retriever\.json does not describe"):
        load_retriever(tmp_path, embedded)


def test_passages_of_another_collection_are_refused(tmp_path):
    one, other = written(tmp_path / "a", MILL), written(tmp_path / "b", {"x": "y"})
    (one / "passages.parquet").write_bytes((other / "passages.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"passages\.parquet has 1 passages, expected 5"):
        load_retriever(one, embedded)
    (one / "passages.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"passages\.parquet: not readable as a table"):
        load_retriever(one, embedded)


def test_questions_that_cannot_be_searched_are_refused(retriever):
    with pytest.raises(ValueError, match="method='words' must be one of fused, bm25, embeddings"):
        retriever.search(["a"], 3, "words")
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        retriever.search(["a"], 0)
    assert retriever.search([], 3) == []


@pytest.mark.parametrize(
    ("name", "value"), [("stemming", "x"), ("constant", 0), ("bm25_weight", 2), ("depth", 0), ("exact_limit", -1)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        RetrievalConfig(**{name: value})
