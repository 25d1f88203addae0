"""The cache: what goes in comes out, each row at its own length, in memory that is allocated once."""

import dataclasses

import pytest
import torch

from model.network import kv_cache
from model.network.decoder import new_decoder
from model.network.kv_cache import KVCache
from model.network.shape import DecoderConfig
from tests.model.generation.test_generate import decoder_of

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


def test_taken_tokens_put_into_another_row_are_read_as_if_it_had_read_them():
    cache, other, keys = (
        KVCache(CONFIG, 2, 6, CPU, torch.float32),
        KVCache(CONFIG, 3, 8, CPU, torch.float32),
        numbers(2, 2, 2, 5, 4),
    )
    read(cache, keys)
    row, new = other.part([1]), numbers(2, 1, 2, 1, 4, seed=1)
    row.put(*cache.part([1]).taken(0, 2))
    row.put(*cache.part([1]).taken(2, 4))
    assert other.lengths == [0, 4, 0]
    for layer, (keys_BGSK, values_BGSK) in enumerate(read(row, new)):
        torch.testing.assert_close(keys_BGSK, torch.cat([keys[layer, 1:, :, :4], new[layer]], dim=2))
        torch.testing.assert_close(values_BGSK, -keys_BGSK)


def test_resized_cache_has_the_same_rows():
    cache, old, new = (
        KVCache(CONFIG, 3, 4, CPU, torch.float32),
        numbers(2, 3, 2, 3, 4),
        numbers(2, 2, 2, 3, 4, seed=1),
    )
    read(cache, old)
    cache.truncate([3, 2, 0])
    for n_slots, max_len in [(5, 6), (2, 10)]:
        wider = cache.resized(n_slots, max_len)
        assert wider.lengths == [3, 2, 0, 0, 0][:n_slots] and wider.max_len == max_len
        for layer, (keys_BGSK, _) in enumerate(read(wider.part([0, 1]), new)):
            assert torch.equal(keys_BGSK[0], torch.cat([old[layer, 0], new[layer, 0]], dim=1))
            assert torch.equal(keys_BGSK[1, :, :5], torch.cat([old[layer, 1, :, :2], new[layer, 1]], dim=1))
    assert cache.lengths == [3, 2, 0]


def test_wiped_row_holds_nothing_and_its_neighbours_all():
    cache, keys = KVCache(CONFIG, 3, 4, CPU, torch.float32), numbers(2, 3, 2, 3, 4)
    read(cache, keys * torch.tensor([1, float("nan"), 1]).view(1, 3, 1, 1, 1))
    cache.part([1]).wipe()
    assert not cache.keys_LNGSK[:, 1].any() and not cache.values_LNGSK[:, 1].any()
    assert torch.equal(cache.keys_LNGSK[:, [0, 2], :, :3], keys[:, [0, 2]])


def test_row_beside_a_much_longer_one_is_computed_by_itself_with_the_same_result(monkeypatch):
    """On a CPU the longest row would decide what all of them cost."""
    decoder = decoder_of(dataclasses.replace(CONFIG, max_seq_len=40)).double()
    ids_BT = torch.randint(0, 5, (3, 31), generator=torch.Generator().manual_seed(0))

    def last(row_bytes: int) -> torch.Tensor:
        monkeypatch.setattr(kv_cache, "ROW_BYTES", row_bytes)
        cache = decoder.new_cache(3)
        decoder(ids_BT[:, :-1], cache=cache)
        cache.truncate([30, 4, 17])
        logits_BV = decoder(ids_BT[:, -1:], cache=cache)[:, 0]
        assert (cache.ends == [31, 5, 18]) == (row_bytes == 0)
        return logits_BV

    torch.testing.assert_close(last(0), last(10**9), rtol=1e-10, atol=1e-10)
    alone_V = decoder(torch.cat([ids_BT[1, :4], ids_BT[1, -1:]])[None])[0, -1]
    torch.testing.assert_close(last(0)[1], alone_V, rtol=1e-10, atol=1e-10)
