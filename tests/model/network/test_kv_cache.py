"""The cache: what goes in comes out, each row at its own length, in memory that is allocated once."""

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.kv_cache import KVCache
from model.network.shape import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=5, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, d_head=4, d_ff=8, max_seq_len=10
)
CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read(cache: KVCache, keys_LBGTK: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A pass with these keys, and their negatives as values: what each layer attends to."""
    cache.begin(keys_LBGTK.size(3))
    read = [cache.extend(layer, keys_BGTK, -keys_BGTK) for layer, keys_BGTK in enumerate(keys_LBGTK)]
    cache.advance(keys_LBGTK.size(3))
    return read


def test_cache_returns_all_tokens_without_a_copy():
    cache, old, new = (
        KVCache(CONFIG, 3, 6, CPU, torch.float32),
        numbers(2, 3, 2, 4, 4),
        numbers(2, 3, 2, 2, 4, seed=1),
    )
    read(cache, old)
    for layer, (keys_BGSK, values_BGSK) in enumerate(read(cache, new)):
        torch.testing.assert_close(keys_BGSK, torch.cat([old[layer], new[layer]], dim=2))
        torch.testing.assert_close(values_BGSK, -keys_BGSK)
        assert keys_BGSK.data_ptr() == cache.keys_LNGSK[layer].data_ptr()
    assert cache.lengths == [6, 6, 6]


@pytest.mark.parametrize("slots", [[1, 2], [0, 3], [3, 1]], ids=["neighbours", "apart", "reversed"])
def test_rows_in_some_slots_are_written_while_the_others_keep_their_place(slots):
    cache, old, new = (
        KVCache(CONFIG, 4, 6, CPU, torch.float32),
        numbers(2, 4, 2, 3, 4),
        numbers(2, 2, 2, 1, 4, seed=1),
    )
    read(cache, old)
    for layer, (keys_BGSK, values_BGSK) in enumerate(read(cache.part(slots), new)):
        torch.testing.assert_close(keys_BGSK, torch.cat([old[layer][slots], new[layer]], dim=2))
        torch.testing.assert_close(values_BGSK, -keys_BGSK)
    others = [slot for slot in range(4) if slot not in slots]
    assert torch.equal(cache.keys_LNGSK[:, others, :, :3], old[:, others])
    assert cache.lengths == [4 if slot in slots else 3 for slot in range(4)]


def test_rows_of_different_lengths_each_go_on_from_their_own():
    cache, old, new = (
        KVCache(CONFIG, 2, 8, CPU, torch.float32),
        numbers(2, 2, 2, 5, 4),
        numbers(2, 2, 2, 2, 4, seed=1),
    )
    read(cache, old)
    cache.truncate([5, 2])
    cache.begin(2)
    assert cache.positions_BT is not None and cache.positions_BT.tolist() == [[5, 6], [2, 3]]
    for layer, (keys_BGSK, _) in enumerate(read(cache, new)):
        assert torch.equal(keys_BGSK[0], torch.cat([old[layer, 0], new[layer, 0]], dim=1))
        assert torch.equal(keys_BGSK[1, :, :4], torch.cat([old[layer, 1, :, :2], new[layer, 1]], dim=1))
    assert cache.lengths == [7, 4]
    with pytest.raises(ValueError, match="slot 1 has 4 tokens and can't be truncated to 5"):
        cache.truncate([7, 5])


def test_row_moves_to_a_free_slot_and_goes_on_there():
    cache, old, new = (
        KVCache(CONFIG, 3, 6, CPU, torch.float32),
        numbers(2, 3, 2, 4, 4),
        numbers(2, 1, 2, 1, 4, seed=1),
    )
    read(cache, old)
    cache.part([2]).truncate([3])
    cache.move(2, 0)
    for layer, (keys_BGSK, values_BGSK) in enumerate(read(cache.part([0]), new)):
        torch.testing.assert_close(keys_BGSK[0], torch.cat([old[layer, 2, :, :3], new[layer, 0]], dim=1))
        torch.testing.assert_close(values_BGSK, -keys_BGSK)
    assert torch.equal(cache.keys_LNGSK[:, 1, :, :4], old[:, 1])


def test_cleared_cache_starts_again_in_the_same_memory():
    cache = KVCache(CONFIG, 3, 6, CPU, torch.float32)
    read(cache, numbers(2, 3, 2, 4, 4))
    memory = cache.keys_LNGSK.data_ptr()
    cache.clear()
    assert (cache.lengths, cache.keys_LNGSK.data_ptr()) == ([0, 0, 0], memory)


@pytest.mark.parametrize("max_len", [0, 11])
def test_cache_longer_than_the_context_or_of_no_length_is_refused(max_len):
    with pytest.raises(ValueError, match=rf"max_len={max_len} .* max_seq_len=10"):
        new_decoder(CONFIG, seed=0).new_cache(1, max_len)


def test_cache_without_a_slot_is_refused():
    with pytest.raises(ValueError, match="n_slots=0 of a cache must be at least 1"):
        new_decoder(CONFIG, seed=0).new_cache(0)
