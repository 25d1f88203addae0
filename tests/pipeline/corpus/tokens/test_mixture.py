"""mixture: how often a document stands in the train stream, and how a source's share is shown."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.batches import TokenBatches
from model.data.token_shards import read_description, read_token_shards
from pipeline.corpus.tokens.mixture import FACTORS
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.store.records import DROPPED
from pipeline.store.shards import read_table, shard_paths, text_digest
from pipeline.store.verdict import conservation

SOURCES: tuple[str, ...] = ("manuals", "books", "mails")


def row(page_id, text, source, *, split="train", cluster_size=1):
    own = {"page_id": page_id, "id": text_digest(page_id), "url": f"file:///{page_id}", "text": text}
    return own | {"source": source, "split": split, "cluster_size": cluster_size}


def rows_of(n, seed=1, **columns):
    rng = random.Random(seed)
    return [row(f"p{i:03d}", "ab" * rng.randrange(1, 60), SOURCES[i % 3], **columns) for i in range(n)]


@pytest.fixture
def tokenized(store, split_corpus, byte_tokenizer):
    """(built, ids of the train stream) of rows and weights."""

    def build(rows, weights=None, n_shards=None, **config):
        recipe = TokenizeRecipe(config=TokenizeConfig(**config), weights=weights or {})
        built = store.build(TOKENIZE, recipe, split_corpus(rows, n_shards), byte_tokenizer)
        return built, stream(built.handle.directory)

    return build


def stream(directory, split="train"):
    return [name for shard in read_token_shards(directory, split) for name in shard.document_ids.to_pylist()]


def n_tokens(row):
    return len(row["text"]) + 1  # the byte tokenizer's, with end of text


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 60),
    weights=st.fixed_dictionaries({name: st.floats(0, 4) for name in SOURCES[1:]}),
    seed=st.integers(1, 5),
)
def test_mixture_the_train_stream_is_the_weighted_multiset(tokenized, n, weights, seed):
    rows = rows_of(n, seed)
    built, ids = tokenized(rows, weights, seed=seed)
    copies = Counter(ids)
    sources = read_description(built.handle.directory)["sources"]
    for source in sorted({row["source"] for row in rows}):
        own = [row for row in rows if row["source"] == source]
        weight = weights.get(source, 1.0)
        assert {copies[row["id"]] for row in own} <= {int(weight), int(weight) + 1}
        once, in_stream = sum(map(n_tokens, own)), sum(copies[row["id"]] * n_tokens(row) for row in own)
        assert abs(in_stream - weight * once) <= max(map(n_tokens, own)) / 2 + 1e-6
        assert sources[source] == {
            "documents": len(own),
            "tokens": once,
            "train_tokens": in_stream,
            "epochs": in_stream / once,
            "share": in_stream / sum(copies[row["id"]] * n_tokens(row) for row in rows),
        }
    n_left_out = sum(copies[row["id"]] == 0 for row in rows)
    assert built.counts.is_conserved() and built.counts.dropped.get("down_weighted", 0) == n_left_out
    assert conservation(built.handle).passed


def test_mixture_order_depends_on_neither_shards_nor_memory(tokenized):
    rows, weights = rows_of(90), {"books": 2.5, "mails": 0.3}
    built, ids = tokenized(rows, weights, rehydration="fineweb2")
    for n_shards in (1, 2, 7):
        assert tokenized(rows[::-1], weights, n_shards, rehydration="fineweb2")[1] == ids
    assert built.handle.digest == tokenized(rows, weights, 5, rehydration="fineweb2")[0].handle.digest


def test_mixture_bytes_do_not_depend_on_the_memory_of_the_shuffle(store, split_corpus, byte_tokenizer):
    weights = dict.fromkeys(SOURCES, 15.0)  # more than a megabyte of documents
    inputs = split_corpus(rows_of(300)), byte_tokenizer
    built = [
        replace(store, root=store.root / str(mb)).build(
            TOKENIZE,
            TokenizeRecipe(config=TokenizeConfig(shard_tokens=50_000, shuffle_memory_mb=mb), weights=weights),
            *inputs,
        )
        for mb in (1, 100)
    ]
    assert len({one.handle.digest for one in built}) == len({one.handle.fingerprint for one in built}) == 1
    left = {path.name for one in built for path in one.handle.directory.glob(".*")}
    assert left <= {".verified.json"}


def test_mixture_an_added_document_moves_no_other(tokenized):
    weights = {"books": 2, "mails": 3}
    before = tokenized(rows_of(60), weights)[1]
    after = tokenized([*rows_of(60), row("new", "another text", "mails")], weights)[1]
    assert Counter(after) - Counter(before) == {text_digest("new"): 3}
    assert [one for one in after if one != text_digest("new")] == before


def test_mixture_copies_lie_apart_and_a_chosen_part_is_spread(tokenized):
    ids = tokenized(rows_of(300), dict.fromkeys(SOURCES, 3))[1]
    assert sum(a == b for a, b in itertools.pairwise(ids)) <= 10  # two are expected of independent places
    third = tokenized(rows_of(300), {"books": 0.5})[1]
    books = {one["id"] for one in rows_of(300) if one["source"] == "books"}
    places = np.array([place for place, one in enumerate(third) if one in books]) / len(third)
    assert 0.35 < places.mean() < 0.65 and places.max() - places.min() > 0.8


def test_mixture_held_out_documents_stand_once_whatever_the_weights(tokenized):
    rows = [*rows_of(30, cluster_size=4), row("v", "abc", "books", split="validation", cluster_size=50)]
    rows.append(row("t", "abcd", "mails", split="test", cluster_size=50))
    built, _ = tokenized(rows, {"books": 3, "mails": 0}, rehydration="fineweb2")
    assert stream(built.handle.directory, "validation") == [text_digest("v")]
    assert stream(built.handle.directory, "test") == [text_digest("t")]
    assert built.counts.dropped == {"down_weighted": 10} and built.counts.is_conserved()


def test_mixture_left_out_documents_are_written_with_their_weight(tokenized):
    built, ids = tokenized(rows_of(60), {"mails": 0.25, "books": 0})
    dropped = [read_table(path, DROPPED) for path in shard_paths(built.handle.directory, "dropped")]
    rows = [one for table in dropped for one in table.to_pylist()]
    assert all(table.schema.equals(DROPPED) for table in dropped)
    assert {one["id"] for one in rows} == {one["id"] for one in rows_of(60)} - set(ids)
    assert {(one["source"], one["stage"], one["reason"], one["score"]) for one in rows} == {
        ("mails", "tokenize", "down_weighted", 0.25),
        ("books", "tokenize", "down_weighted", 0.0),
    }
    texts = {one["id"]: one["text"] for one in rows_of(60)}
    assert all(one["preview"] == texts[one["id"]][:200] for one in rows)
    assert "| books | 20 |" in (built.handle.directory / "mixture.md").read_text()
    assert built.record["measures"]["epochs_books"] == 0 and built.record["measures"]["tokens_books"] > 0


def test_mixture_weights_that_leave_nothing_are_refused(tokenized):
    with pytest.raises(ValueError, match=r"books 0, mails 0, manuals 0\) leave no document in the train stream"):
        tokenized(rows_of(9), dict.fromkeys(SOURCES, 0.0))


def test_rehydration_fineweb2_factors_are_those_of_its_readme():
    sizes = np.array([1, 2, 3, 4, 5, 99, 100, 999, 1000, 10**6])
    assert FACTORS["fineweb2"](sizes).tolist() == [1, 2, 3, 3, 5, 5, 8, 8, 1, 1]
    assert FACTORS["none"](sizes).tolist() == [1] * 10


def test_rehydration_multiplies_the_weight_of_the_source(tokenized):
    rows = [row(f"p{i}", "abc", "books", cluster_size=size) for i, size in enumerate([1, 2, 4, 50, 200, 2000])]
    ids = Counter(tokenized(rows, {"books": 2}, rehydration="fineweb2")[1])
    assert [ids[one["id"]] for one in rows] == [2, 4, 6, 10, 16, 2]


def test_mixture_bytes_of_train_count_every_copy(tokenized):
    built, ids = tokenized(rows_of(30), {"books": 2.5})
    texts = {one["id"]: one["text"] for one in rows_of(30)}
    shards = read_token_shards(built.handle.directory, "train")
    totals = read_description(built.handle.directory)["splits"]["train"]
    assert totals["bytes"] == sum(int(shard.n_bytes.sum()) for shard in shards) == sum(len(texts[one]) for one in ids)
    assert totals["documents"] == len(ids) and totals["repeats"] == len(ids) - 30


def test_mixture_batches_of_repeated_documents_name_each_once(tokenized):
    built, ids = tokenized(rows_of(30), dict.fromkeys(SOURCES, 3))
    batches = TokenBatches(read_token_shards(built.handle.directory, "train"), rows=4, seq_len=100, seed=1)
    for k in range(5):
        found = batches.documents_of_batch(k)
        assert len(found) == len(set(found)) and set(found) <= set(ids)
    assert batches.stream.document_ids(np.arange(len(ids))) == ids


def test_tokenize_config_rehydration_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="rehydration is 'fineweb'"):
        TokenizeConfig(rehydration="fineweb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shuffle_memory_mb is 0, expected"):
        TokenizeConfig(shuffle_memory_mb=0)
