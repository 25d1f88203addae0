"""Log-loss over documents: every token exactly once, and equal to a plain pass."""

import contextlib
import dataclasses
import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard, write_token_shard
from model.evaluate import document_losses, mean_loss, windows_of_documents
from model.network.decoder import Decoder
from model.network.shape import DecoderConfig
from model.training.cross_entropy import CHUNK_BYTES
from model.training.loss import language_model_loss
from model.training.memory import OutOfMemory

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


@pytest.fixture
def no_memory():
    """A context in which the process may take 100 MB more, so that an allocation fails instead of filling memory."""

    @contextlib.contextmanager
    def limited():
        now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + 100_000_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited


@given(lengths=st.lists(st.integers(0, 100), max_size=4), max_seq_len=st.integers(1, 20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_windows_predict_every_token_but_the_first_once_with_the_promised_context(lengths, max_seq_len, data):
    stride = data.draw(st.integers(1, max_seq_len))
    windows = windows_of_documents(np.array(lengths, np.int64), max_seq_len, stride)
    fresh: list[list[int]] = [[] for _ in lengths]
    for document, start, end, first in zip(windows.document, windows.start, windows.end, windows.fresh, strict=True):
        fresh[document] += range(first, end + 1)
        assert 0 <= start < end < lengths[document]
        assert end - start <= max_seq_len
        for target in range(first, end + 1):
            context = target - start
            assert context == target or max_seq_len - stride + 1 <= context <= max_seq_len
    assert fresh == [list(range(1, n)) for n in lengths]


def test_document_losses_equal_a_plain_pass_token_by_token(decoder, shards, texts):
    """Stride 1: every token from the longest context there is."""
    decoder.requires_grad_(False)
    losses = document_losses(decoder, shards, stride=1, tokens_per_pass=24)
    for text, nats, n in zip(texts, losses.nats, losses.n_tokens, strict=True):
        expected = 0.0
        for target in range(1, len(text)):
            context = torch.from_numpy(text[max(0, target - 8) : target])[None]
            expected += float(F.cross_entropy(decoder(context)[0, -1:], torch.tensor([text[target]])))
        assert nats == pytest.approx(expected, abs=1e-4)
        assert n == max(0, len(text) - 1)


def test_document_losses_do_not_depend_on_how_many_windows_pass_together(decoder, shards):
    one, many = (document_losses(decoder, shards, tokens_per_pass=n) for n in (1, 1000))
    np.testing.assert_allclose(one.nats, many.nats, rtol=1e-5)
    assert one.document_ids == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"]


class Calls(TorchDispatchMode):
    """Counts how often numbers are read from tensors, and how many bytes the largest result of an operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_reads = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.n_reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        for tensor in result if isinstance(result, list | tuple) else [result]:
            self.largest = max(self.largest, tensor.nbytes if isinstance(tensor, torch.Tensor) else 0)
        return result


def test_document_losses_of_a_large_vocabulary_hold_few_logits_and_read_no_number_within(tmp_path):
    """All logits of a window were held at once: 600 tokens of 40,000 classes took 96 MB, and as much again."""
    cfg = dataclasses.replace(CONFIG, vocab_size=40_000, n_layers=1, max_seq_len=600)
    write_token_shard(tmp_path / "0.arrow", ["a"], [9], [np.arange(600)], vocab_size=40_000)
    model = Decoder(cfg).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    with Calls() as calls:
        losses = document_losses(model, [read_token_shard(tmp_path / "0.arrow")])
    assert losses.nats[0] == pytest.approx(599 * math.log(40_000), rel=1e-4)  # a head of zeros predicts nothing
    assert calls.largest <= CHUNK_BYTES["cpu"]
    assert calls.n_reads == 0


def test_mean_loss_reads_no_number_before_its_end(decoder, shards):
    batches = TokenBatches(shards, rows=2, seq_len=4, seed=0, vocab_size=29)
    with Calls() as calls:
        loss = mean_loss(decoder, batches, 3, language_model_loss, micro_batch=1)
    assert 1 < loss < 10
    assert calls.n_reads <= 2  # loss and targets, once each


def test_document_losses_without_room_are_an_error_of_one_line_that_says_what_to_change(decoder, tmp_path, no_memory):
    write_token_shard(tmp_path / "0.arrow", ["a"], [9], [np.zeros(2_000_000, np.int64)], vocab_size=29)
    shards = [read_token_shard(tmp_path / "0.arrow")]
    with no_memory(), pytest.raises(OutOfMemory, match=r"^out of memory .*give a smaller tokens_per_pass$") as error:
        document_losses(decoder, shards, stride=8, tokens_per_pass=10**7)
    assert "\n" not in str(error.value)


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
