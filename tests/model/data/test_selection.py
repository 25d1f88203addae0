"""Parts of token shards: what is left, counted again from the texts."""

import dataclasses

import numpy as np
import pytest

from model.data.selection import beginnings, few_documents
from model.data.token_shards import TokenShard, read_token_shard, write_token_shard
from model.data.tokenizer import tokenizer_of

TEXTS = ["caf\u00e9 and tea", "", "a", "the cat sat on the mat", "dogs"]
SOURCES = ["web", "web", "books", "web", "books"]


@pytest.fixture
def shard(tmp_path) -> TokenShard:
    tokens = [np.array([256, *text.encode()]) for text in TEXTS]
    names, n_bytes = [f"doc{i}" for i in range(5)], [len(text.encode()) for text in TEXTS]
    weights = [np.arange(len(one)) for one in tokens]
    write_token_shard(tmp_path / "a.arrow", names, n_bytes, tokens, 257, weights, SOURCES)
    return read_token_shard(tmp_path / "a.arrow")


def rows_of(shard: TokenShard) -> list[tuple]:
    assert shard.sources is not None and shard.weights is not None
    spans = zip(shard.offsets[:-1].tolist(), shard.offsets[1:].tolist(), strict=True)
    parts = [(shard.tokens[a:b].tolist(), shard.weights[a:b].tolist()) for a, b in spans]
    names = zip(shard.document_ids.to_pylist(), shard.sources.to_pylist(), shard.n_bytes.tolist(), strict=True)
    return [(*name, *part) for name, part in zip(names, parts, strict=True)]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_few_documents_are_whole_and_at_most_so_many_of_each_source(shard, most):
    (found,) = few_documents([shard], most)
    chosen, rows = rows_of(found), rows_of(shard)
    assert [row for row in rows if row in chosen] == chosen  # in their order
    counts = [sum(source == one for _, source, *_ in chosen) for one in ("web", "books")]
    assert counts == [min(most, 3), min(most, 2)]


def test_few_documents_do_not_depend_on_the_shards_they_are_in(tmp_path, shard):
    tokens = [np.array([256, *text.encode()]) for text in TEXTS]
    parts = []
    for part in ([3, 4], [0, 2, 1]):
        path, names = tmp_path / f"{part[0]}.arrow", [f"doc{i}" for i in part]
        write_token_shard(
            path, names, [0] * len(part), [tokens[i] for i in part], 257, None, [SOURCES[i] for i in part]
        )
        parts.append(read_token_shard(path))
    one = {name for found in few_documents(parts, 1) for name in found.document_ids.to_pylist()}
    assert one == {name for found in few_documents([shard], 1) for name in found.document_ids.to_pylist()}


@pytest.mark.parametrize("n_tokens", [2, 5, 6, 100])
def test_beginnings_have_the_bytes_of_their_text(shard, n_tokens):
    tokenizer = tokenizer_of({bytes([i]): i for i in range(256)}, r"[\s\S]", {"<|endoftext|>": 256}, 257)
    found = beginnings(shard, n_tokens, tokenizer)
    for text, (_, _, n_bytes, tokens, weights) in zip(TEXTS, rows_of(found), strict=True):
        whole = [256, *text.encode()]
        assert tokens == whole[:n_tokens] and weights == list(range(len(whole)))[:n_tokens]
        assert n_bytes == len(tokens) - 1


def test_documents_without_sources_are_one_source(shard):
    (found,) = few_documents([dataclasses.replace(shard, sources=None)], 2)
    assert len(found.document_ids) == 2 and found.sources is None
