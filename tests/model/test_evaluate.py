"""Log-loss over documents: every token exactly once, and equal to a plain pass."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model.data.token_shards import read_token_shard, write_token_shard
from model.evaluate import document_losses, windows_of_document
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=29, n_layers=2, n_heads=2, n_kv_heads=2, d_model=16, d_head=8, d_ff=24, max_seq_len=8
)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    return model


@pytest.fixture
def texts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 29, n) for n in (9, 2, 1, 30, 8, 10)]


@pytest.fixture
def shards(tmp_path, texts):
    for number, part in enumerate((texts[:4], texts[4:])):
        names = [f"{number}-{i}" for i in range(len(part))]
        write_token_shard(tmp_path / f"{number}.arrow", names, [3 * len(t) for t in part], part, vocab_size=29)
    return [read_token_shard(tmp_path / f"{number}.arrow") for number in range(2)]


@given(n_tokens=st.integers(0, 100), max_seq_len=st.integers(1, 20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_windows_predict_every_token_but_the_first_once_with_the_promised_context(n_tokens, max_seq_len, data):
    stride = data.draw(st.integers(1, max_seq_len))
    windows = windows_of_document(0, n_tokens, max_seq_len, stride)
    fresh = [target for w in windows for target in range(w.fresh, w.end + 1)]
    assert fresh == list(range(1, n_tokens))
    for window in windows:
        assert 0 <= window.start < window.end < n_tokens
        assert window.end - window.start <= max_seq_len
        for target in range(window.fresh, window.end + 1):
            context = target - window.start
            assert context == target or max_seq_len - stride + 1 <= context <= max_seq_len


def test_document_losses_equal_a_plain_pass_token_by_token(decoder, shards, texts):
    """Stride 1: every token from the longest context there is."""
    decoder.requires_grad_(False)
    losses = document_losses(decoder, shards, stride=1, rows=3)
    for text, nats, n in zip(texts, losses.nats, losses.n_tokens, strict=True):
        expected = 0.0
        for target in range(1, len(text)):
            context = torch.from_numpy(text[max(0, target - 8) : target])[None]
            expected += float(F.cross_entropy(decoder(context)[0, -1:], torch.tensor([text[target]])))
        assert nats == pytest.approx(expected, abs=1e-4)
        assert n == max(0, len(text) - 1)


def test_document_losses_do_not_depend_on_rows(decoder, shards):
    one, many = document_losses(decoder, shards, rows=1), document_losses(decoder, shards, rows=50)
    np.testing.assert_allclose(one.nats, many.nats, rtol=1e-5)
    assert one.document_ids == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"]


def test_document_losses_without_overlap_predict_the_same_tokens(decoder, shards):
    apart, overlapping = document_losses(decoder, shards, stride=8), document_losses(decoder, shards, stride=4)
    assert np.array_equal(apart.n_tokens, overlapping.n_tokens)
    assert not np.allclose(apart.nats, overlapping.nats)


def test_bits_per_byte_and_perplexity_of_a_uniform_model(shards, texts):
    model = Decoder(CONFIG).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    losses = document_losses(model, shards)
    n_tokens, n_bytes = sum(len(t) - 1 for t in texts), sum(3 * len(t) for t in texts)
    assert losses.perplexity == pytest.approx(29, rel=1e-5)
    assert losses.bits_per_byte == pytest.approx(math.log2(29) * n_tokens / n_bytes, rel=1e-5)


def test_stride_out_of_range_is_refused(decoder, shards):
    with pytest.raises(ValueError, match="stride=9"):
        document_losses(decoder, shards, stride=9)
