"""Mixing sources: against batches of shards that hold one kind of text only, and against reading every batch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.batches import TokenBatches, token_batches
from model.data.mixture import Mixture, mixed_batches, mixture_of
from model.data.token_shards import TokenShard, read_token_shard, write_token_shard
from model.training.config import TrainConfig

FILES = [[5, 1, 30], [17, 2], [2, 9, 40, 8, 25, 3]]  # tokens of each document, by shard
SOURCES = ["wiki", "manual", "manual", "wiki", "guide", "wiki", "manual", "wiki", "guide", "wiki", "manual"]
MIXED = Mixture(general=("wiki",), general_share=0.3)
TRAIN = TrainConfig(n_steps=9, rows=3, seq_len=8, seed=4)
WAYS = [
    {},
    {"packing": "documents", "document_mask": True},
    {"batch_warmup_fraction": 0.5},
    {"document_mask": True, "rows": 40},
]


def write_shards(folder: Path, files: list[list[int]], kept=lambda source: True) -> list[TokenShard]:
    """Token i of all documents is i; only documents of kept sources are written."""
    folder.mkdir()
    token, number, read = 0, 0, []
    for name, lengths in enumerate(files):
        ids, texts, sources = [], [], []
        for length in lengths:
            if kept(SOURCES[number]):
                ids.append(f"doc{number}")
                texts.append(np.arange(token, token + length))
                sources.append(SOURCES[number])
            token, number = token + length, number + 1
        path = folder / f"{name}.arrow"
        write_token_shard(path, ids, [1] * len(ids), texts, 1000, sources=sources)
        read.append(read_token_shard(path))
    return read


@pytest.fixture
def shards(tmp_path) -> list[TokenShard]:
    return write_shards(tmp_path / "all", FILES)


def rows_of(batches: TokenBatches, n_steps: int) -> dict[str, torch.Tensor]:
    """The rows of all steps, one after another."""
    read = [batches.batch(k) for k in range(n_steps)]
    return {name: torch.cat([batch[name] for batch in read]) for name in read[0]}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_rows_are_those_of_each_kind_alone_dealt_out_by_share(tmp_path, shards, way):
    train = dataclasses.replace(TRAIN, **way)
    mixed = rows_of(mixed_batches(shards, MIXED, train), train.n_steps)
    n_rows = len(mixed["ids_BT"])
    is_general = torch.tensor([(i + 1) * 3 // 10 > i * 3 // 10 for i in range(n_rows)])
    for general in (False, True):
        own = write_shards(
            tmp_path / f"only_{general}", FILES, lambda source, wiki=general: (source == "wiki") == wiki
        )
        alone = token_batches(own, dataclasses.replace(train, rows=1, batch_warmup_fraction=0.0))
        expected = rows_of(alone, int((is_general == general).sum()))
        assert mixed.keys() == expected.keys()
        for name, rows in expected.items():
            assert torch.equal(mixed[name][is_general == general], rows), name


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 1 / 3, 0.9])
def test_mixed_share_of_tokens_is_exact_after_every_row(shards, share):
    mixture = Mixture(domain=("manual",), general=("wiki",) if share else (), general_share=share)
    ids_BT = rows_of(mixed_batches(shards, mixture, TRAIN), 40)["ids_BT"]
    source = np.repeat(SOURCES, np.concatenate(FILES))
    is_general = source[ids_BT.numpy()[:, 0]] == "wiki"
    assert set(source[ids_BT.numpy()].flat) == ({"manual", "wiki"} if share * 120 >= 1 else {"manual"})
    n_rows = np.arange(1, 121)
    assert np.array_equal(np.cumsum(is_general), n_rows * round(share * 1e6) // 10**6)


def test_mixed_domain_without_names_is_all_that_is_not_general(shards):
    mixed = mixed_batches(shards, MIXED, TRAIN)
    found = mixed.stream.document_ids(mixed.documents_of_batches(0, 200)[0])
    assert {SOURCES[int(name.removeprefix("doc"))] for name in found} == {"wiki", "manual", "guide"}
    only = mixed_batches(shards, Mixture(domain=("guide",)), TRAIN)
    assert {one for k in range(30) for one in only.documents_of_batch(k)} == {"doc4", "doc8"}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_rows_of_all_ranks_are_the_whole_batch_at_any_step(shards, way):
    train = dataclasses.replace(TRAIN, **way)
    one, other = (mixed_batches(shards, MIXED, train) for _ in range(2))
    for k in (7, 0, 3):
        whole, halves = one.batch(k), [other.batch(k, rank, 2) for rank in range(2)]
        for name, rows in whole.items():
            assert sorted(map(tuple, rows.tolist())) == sorted(
                tuple(row) for half in halves for row in half[name].tolist()
            )


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_mixed_steps_of_a_document_are_those_whose_batches_contain_it(shards, way):
    train = dataclasses.replace(TRAIN, **way)
    batches, number = mixed_batches(shards, MIXED, train), 0
    for shard, lengths in enumerate(FILES):
        for row in range(len(lengths)):
            expected = [k + 1 for k in range(12) if f"doc{number}" in batches.documents_of_batch(k)]
            assert batches.steps_of_document(shard, row, 12).tolist() == expected, number
            number += 1


@pytest.mark.parametrize("way", WAYS[:1] + WAYS[2:], ids=str)
def test_mixed_documents_of_batches_are_what_counting_tokens_gives(shards, way):
    batches = mixed_batches(shards, MIXED, dataclasses.replace(TRAIN, **way))
    owner = np.repeat([f"doc{i}" for i in range(len(SOURCES))], np.concatenate(FILES))
    for first, last in ((0, 1), (2, 7)):
        targets = torch.cat([batches.batch(k)["targets_BT"].flatten() for k in range(first, last)])
        names, counts = np.unique(owner[targets[targets >= 0].numpy()], return_counts=True)
        numbers, n_tokens = batches.documents_of_batches(first, last)
        found = dict(zip(batches.stream.document_ids(numbers), n_tokens.tolist(), strict=True))
        expected = dict(zip(names.tolist(), counts.tolist(), strict=True))
        if way.get("document_mask"):
            continue  # the token that opens the next document is a target of none
        assert {name: n for name, n in found.items() if n} == expected


def test_steps_of_a_document_that_is_not_mixed_in_are_none(shards):
    batches = mixed_batches(shards, Mixture(domain=("guide",)), TRAIN)
    assert batches.steps_of_document(0, 1, 100).tolist() == []


def test_mixture_survives_json_and_rounds_nothing():
    assert mixture_of(dataclasses.asdict(MIXED) | {"general": ["wiki"], "domain": []}) == MIXED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"general": ("wiki",), "general_share": 1.0}, r"general_share=1\.0 must be at least 0 and below 1"),
        ({"general": ("wiki",), "general_share": 1e-9}, r"must be 0, or from 0\.000001 to 0\.999999"),
        ({"general": ("wiki",), "general_share": 0.9999999}, r"must be 0, or from 0\.000001 to 0\.999999"),
        ({"general_share": 0.2}, "do not fit together"),
        ({"general": ("wiki",)}, "do not fit together"),
        ({"domain": ("a", "b"), "general": ("b",), "general_share": 0.1}, "'b' is in domain and in general"),
    ],
)
def test_mixture_that_breaks_a_rule_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**values)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Mixture(domain=("book",)), "domain: no document is from the source 'book'; there are guide, manual, wiki"),
        (Mixture(general=("guide", "manual", "wiki"), general_share=0.1), "no text of a domain is left"),
    ],
)
def test_mixture_of_sources_that_are_not_there_is_refused(shards, mixture, message):
    with pytest.raises(ValueError, match=message):
        mixed_batches(shards, mixture, TRAIN)


def test_mixture_of_shards_without_sources_is_refused(tmp_path):
    write_token_shard(tmp_path / "a.arrow", ["x"], [1], [np.arange(50)], 60)
    with pytest.raises(ValueError, match=r"a\.arrow has no column source"):
        mixed_batches([read_token_shard(tmp_path / "a.arrow")], MIXED, TRAIN)
