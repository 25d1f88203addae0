"""The cache: what goes in comes out, in memory that is taken once."""

import pytest
import torch

from model.network.kv_cache import KVCache
from model.network.shape import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=5, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, d_head=4, d_ff=8, max_seq_len=10
)
CPU = torch.device("cpu")


def filled(n_tokens: int) -> tuple[KVCache, torch.Tensor]:
    """A cache of 3 rows and room for 6 tokens, and the keys it was given; values are their negatives."""
    keys_LBGTK = torch.randn(2, 3, 2, n_tokens, 4, generator=torch.Generator().manual_seed(0))
    cache = KVCache(CONFIG, 3, 6, CPU, torch.float32)
    for layer in range(2):
        cache.extend(layer, keys_LBGTK[layer], -keys_LBGTK[layer])
    cache.advance(n_tokens)
    return cache, keys_LBGTK


def test_cache_returns_all_tokens_without_a_copy():
    cache, keys_LBGTK = filled(4)
    new_BGTK = torch.ones(3, 2, 2, 4)
    keys_BGSK, values_BGSK = cache.extend(1, new_BGTK, -new_BGTK)
    torch.testing.assert_close(keys_BGSK, torch.cat([keys_LBGTK[1], new_BGTK], dim=2))
    torch.testing.assert_close(values_BGSK, -keys_BGSK)
    assert keys_BGSK.data_ptr() == cache.keys_LNGSK[1].data_ptr()
    assert cache.position == 4  # moves after the last layer only


def test_cleared_cache_starts_again_in_the_same_memory():
    cache, _ = filled(4)
    memory = cache.keys_LNGSK.data_ptr()
    cache.clear()
    assert (cache.position, cache.keys_LNGSK.data_ptr()) == (0, memory)


def test_kept_rows_hold_what_their_numbers_held():
    cache, keys_LBGTK = filled(4)
    cache.keep_rows(torch.tensor([2, 0, 2, 1]))
    keys_BGSK, values_BGSK = cache.extend(0, torch.zeros(4, 2, 1, 4), torch.zeros(4, 2, 1, 4))
    assert cache.n_rows == 4
    torch.testing.assert_close(keys_BGSK[:, :, :4], keys_LBGTK[0][[2, 0, 2, 1]])
    torch.testing.assert_close(values_BGSK[:, :, :4], -keys_LBGTK[0][[2, 0, 2, 1]])


@pytest.mark.parametrize("max_len", [0, 11])
def test_cache_longer_than_the_context_is_refused(max_len):
    with pytest.raises(ValueError, match=rf"max_len={max_len} .* max_seq_len=10"):
        KVCache(CONFIG, 1, max_len, CPU, torch.float32)
