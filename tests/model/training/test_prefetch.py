"""Prefetching: the same batches as without it, errors where they belong, and nothing that stays behind."""

import threading

import pytest
import torch

from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard, write_token_shard
from model.network.decoder import new_decoder
from model.network.shape import DecoderConfig
from model.training import prefetch
from model.training.config import TrainConfig
from model.training.loop import fit
from model.training.prefetch import ON_HOST, Half, narrowed, prefetched, widened
from model.training.step import new_state

CPU = torch.device("cpu")
SHAPE = DecoderConfig(
    vocab_size=70, n_layers=1, n_heads=2, n_kv_heads=2, d_model=16, d_head=8, d_ff=32, max_seq_len=8
)


@pytest.fixture
def batches(tmp_path) -> TokenBatches:
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 70, (n,), generator=generator).numpy() for n in (30, 9, 51, 40)]
    weights = [torch.randint(0, 3, (len(d),), generator=generator).numpy() for d in documents]
    write_token_shard(tmp_path / "a.arrow", list("abcd"), [1] * 4, documents, 70, weights)
    shards = [read_token_shard(tmp_path / "a.arrow")]
    return TokenBatches(shards, rows=4, seq_len=8, seed=1, packing="documents", document_mask=True)


@pytest.fixture
def in_a_thread(monkeypatch):
    monkeypatch.setattr(prefetch, "IN_A_THREAD", {"cpu"})


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetched_batches_are_those_that_are_built_when_asked_for(batches, in_a_thread):
    with prefetched(batches, range(2, 9), CPU) as ahead:
        found = list(ahead)
    assert len(found) == 7 and not threads()
    for k, batch in enumerate(found, start=2):
        expected = batches.batch(k)
        assert batch.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensor.dtype == batch[name].dtype and torch.equal(tensor, batch[name]), name


def test_documents_stay_on_the_host_where_attention_reads_them(batches):
    """A kernel needs their borders as numbers; reading them from a GPU would wait for all it has to do."""
    half, batch = Half(torch.device("meta")), batches.batch(0)
    moved = half.to_device(half.pack(batch))
    assert moved.keys() == batch.keys()
    assert {name for name, tensor in moved.items() if tensor.device == CPU} == {"documents_BT"}
    assert torch.equal(moved["documents_BT"], batch["documents_BT"])


@pytest.mark.parametrize(
    ("numbers", "bits"),
    [
        ([-100, -1, 0, 65_435], 16),
        ([0, 65_436], 32),
        ([-101], 32),
        ([1 << 31], 64),
        ([-(1 << 31), (1 << 31) - 1], 32),
        ([], 64),
    ],
)
def test_numbers_travel_in_as_few_bits_as_hold_them_all(numbers, bits):
    tensor = torch.tensor(numbers, dtype=torch.int64)
    assert narrowed(tensor).dtype.itemsize * 8 == bits
    assert widened(narrowed(tensor)).dtype == torch.int64 and torch.equal(widened(narrowed(tensor)), tensor)


def test_an_error_is_raised_where_its_batch_is_asked_for(batches, in_a_thread):
    batches.vocab_size = 0
    with prefetched(batches, range(3), CPU) as ahead, pytest.raises(ValueError, match="holds the token id"):
        next(ahead)
    assert not threads()
    batches.vocab_size = None
    batches.batch, build = lambda k, *ranks: build(k, *ranks) if k < 2 else 1 / 0, batches.batch
    with prefetched(batches, range(4), CPU) as ahead:
        assert torch.equal(next(ahead)["ids_BT"], build(0)["ids_BT"])
        assert torch.equal(next(ahead)["ids_BT"], build(1)["ids_BT"])
        with pytest.raises(ZeroDivisionError):
            next(ahead)


def test_leaving_early_ends_the_thread_and_builds_nothing_more(batches, in_a_thread):
    built = []
    batches.batch, build = lambda k, *ranks: built.append(k) or build(k, *ranks), batches.batch
    with pytest.raises(KeyboardInterrupt), prefetched(batches, range(1000), CPU) as ahead:
        next(ahead)
        raise KeyboardInterrupt
    assert not threads() and built == [0, 1]


def test_training_with_batches_ahead_ends_with_the_same_bits(batches, monkeypatch, tmp_path):
    cfg = TrainConfig(n_steps=9, rows=4, seq_len=8, micro_batch=2, checkpoint_every=4, log_every=4)

    def trained() -> tuple[list[float], dict[str, torch.Tensor]]:
        state, losses = new_state(new_decoder(SHAPE, 0), cfg), []
        fit(state, batches, cfg, report=lambda _, values: losses.append(values["loss"]), save=lambda: tmp_path)
        return losses, state.model.state_dict()

    alone = trained()
    monkeypatch.setattr(prefetch, "IN_A_THREAD", {"cpu"})
    losses, weights = trained()
    assert losses == alone[0] and len(losses) == 9 and not threads()
    assert all(torch.equal(weight, alone[1][name]) for name, weight in weights.items())


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_host(batches):
    device = torch.device("cuda")
    with prefetched(batches, range(50), device) as ahead:
        for k, batch in enumerate(ahead):
            assert all(tensor.is_cuda != (name in ON_HOST) for name, tensor in batch.items())
            assert all(torch.equal(batch[name].cpu(), tensor) for name, tensor in batches.batch(k).items())
