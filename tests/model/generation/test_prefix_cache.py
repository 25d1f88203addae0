"""Beginnings of texts: found exactly, shared, and dropped from their ends, the longest unused ones first."""

import dataclasses

import pytest
import torch

from model.generation.prefix_cache import BLOCK, PrefixCache
from model.network.kv_cache import KVCache
from tests.model.generation.test_generate import CONFIG, decoder_of


@pytest.fixture(scope="module")
def model():
    return decoder_of(dataclasses.replace(CONFIG, max_seq_len=8 * BLOCK)).double()


def ids_of(seed: int, n_blocks: int) -> list[int]:
    return torch.randint(0, 61, (n_blocks * BLOCK,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(model, ids: list[int]) -> KVCache:
    cache = model.new_cache(2).part([1])
    model.trunk(torch.tensor([ids]), cache=cache)
    return cache


def block_bytes(model) -> int:
    return BLOCK * model.new_cache(1, 1).bytes_per_token


def n_known(prefixes: PrefixCache, model, ids: list[int]) -> int:
    return prefixes.put_into(model.new_cache(1), ids) // BLOCK


def test_known_beginning_is_put_into_a_row_as_if_it_had_been_read(model):
    prefixes, ids = PrefixCache(10**9), ids_of(0, 3)
    prefixes.keep(read(model, ids), ids)
    cache, rest = model.new_cache(1), [7, 8, 9]
    assert prefixes.put_into(cache, [*ids[: 2 * BLOCK], *rest]) == 2 * BLOCK == cache.lengths[0]
    with torch.inference_mode():
        found_BTV = model(torch.tensor([rest]), cache=cache)
        expected_BTV = model(torch.tensor([[*ids[: 2 * BLOCK], *rest]]))[:, -3:]
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-10, atol=1e-10)


def test_last_token_and_a_block_that_is_not_whole_are_never_taken(model):
    prefixes, ids = PrefixCache(10**9), ids_of(0, 2)
    prefixes.keep(read(model, ids[:-1]), [*ids, 5, 5])  # of which the last three were not read
    assert n_known(prefixes, model, [*ids, 1]) == 1
    prefixes.keep(read(model, ids), ids)
    assert [n_known(prefixes, model, one) for one in (ids, [*ids, 1], ids[:BLOCK], [60, *ids])] == [1, 2, 0, 0]


def test_texts_with_a_common_beginning_share_its_blocks(model):
    prefixes, system, size = PrefixCache(10**9), ids_of(0, 2), block_bytes(model)
    for seed in (1, 2, 1):
        ids = [*system, *ids_of(seed, 1)]
        prefixes.keep(read(model, ids), ids)
    assert prefixes.n_bytes == 4 * size
    same_end = [*ids_of(3, 2), *ids_of(1, 1)]  # other tokens before it: other keys
    assert n_known(prefixes, model, [*same_end, 1]) == 0


def test_what_was_not_used_longest_goes_first_and_ends_before_beginnings(model):
    size = block_bytes(model)
    prefixes, first, second, third = PrefixCache(5 * size), ids_of(1, 2), ids_of(2, 2), ids_of(3, 2)
    for ids in (first, second):
        prefixes.keep(read(model, ids), ids)
    assert n_known(prefixes, model, [*first, 1]) == 2  # used again
    prefixes.keep(read(model, third), third)
    assert prefixes.n_bytes == 5 * size
    assert [n_known(prefixes, model, [*ids, 1]) for ids in (first, second, third)] == [2, 1, 2]


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_text_longer_than_the_memory_is_kept_in_part(model, n_blocks):
    prefixes, ids = PrefixCache(n_blocks * block_bytes(model) + 1), ids_of(1, 5)
    prefixes.keep(read(model, ids), ids)
    assert prefixes.n_bytes == n_blocks * block_bytes(model) and n_known(prefixes, model, [*ids, 1]) == n_blocks
