"""Replicas in threads: the same gradients as one pass, the same bits whoever is slow, errors, exact resume."""

import dataclasses
import threading

import pytest
import torch
from torch import Tensor, nn

from model.data.batch_layout import IGNORE_INDEX
from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard
from model.network.decoder import Decoder, new_decoder
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.loss import language_model_loss
from model.training.replicas import replicas_for
from model.training.run import run
from model.training.step import TrainState, new_state, train_step
from tests.model.training import test_run

DECODER = DecoderConfig(
    vocab_size=37, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=12,
    tie_embeddings=True,
)  # fmt: skip
TRAIN = TrainConfig(n_steps=6, rows=5, seq_len=12, micro_batch=5)


@pytest.fixture(autouse=True)
def undivided_operations():
    """Replicas are for operations of one thread each."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def decoder() -> Decoder:
    model = new_decoder(DECODER, 0)
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.add_(torch.empty(weight.shape).normal_(std=0.2, generator=torch.Generator().manual_seed(i)))
    return model


def batch(k: int = 0, n_rows: int = 5) -> dict[str, Tensor]:
    ids_BT = torch.randint(0, 37, (n_rows, 13), generator=torch.Generator().manual_seed(k))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[0, :9] = IGNORE_INDEX  # the shares have different numbers of targets
    return {"ids_BT": ids_BT[:, :-1], "targets_BT": targets_BT}


def state_with(n_threads: int, cfg: TrainConfig = TRAIN) -> TrainState:
    state = new_state(decoder(), cfg)
    state.use_replicas(replicas_for(state.model, n_threads, cfg.rows))
    return state


def weights(state: TrainState) -> list[Tensor]:
    return [weight.detach().clone() for weight in state.model.parameters()]


@pytest.mark.parametrize(("n_threads", "micro_batch"), [(2, 5), (3, 1), (16, 5)])
@pytest.mark.parametrize("muon_lr", [0.02, None])
def test_steps_of_replicas_are_those_of_one_model_but_for_rounding(n_threads, micro_batch, muon_lr):
    cfg = dataclasses.replace(TRAIN, micro_batch=micro_batch, muon_lr=muon_lr)
    alone, together = state_with(1, cfg), state_with(n_threads, cfg)
    assert alone.replicas is None
    assert together.replicas is not None
    for k in range(3):
        one, many = (train_step(state, batch(k), cfg) for state in (alone, together))
        torch.testing.assert_close(many.loss, one.loss)
        torch.testing.assert_close(many.gradient_norm, one.gradient_norm)
    torch.testing.assert_close(weights(together), weights(alone), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_row_and_a_frozen_weight_are_trained(n_rows=1):
    models = [decoder(), decoder()]
    for model in models:
        model.model.embed_tokens.weight.requires_grad_(False)
    states = [new_state(model, TRAIN) for model in models]
    states[1].use_replicas(replicas_for(models[1], 2, TRAIN.rows))
    for state in states:
        train_step(state, batch(n_rows=n_rows), TRAIN)
    torch.testing.assert_close(*(weights(state) for state in states))
    assert torch.equal(models[1].model.embed_tokens.weight, decoder().model.embed_tokens.weight)


@pytest.mark.parametrize("slow", ["main", "other"])
def test_whoever_is_slow_the_bits_are_the_same(slow):
    expected = state_with(2)
    train_step(expected, batch(), TRAIN)
    state, has_ended, threads = state_with(2), threading.Event(), set()

    def waiting_loss(model: nn.Module, rows) -> tuple[Tensor, Tensor]:
        is_main = threading.current_thread() is threading.main_thread()
        threads.add((threading.get_ident(), torch.get_num_threads()))
        if is_main == (slow == "main"):
            assert has_ended.wait(10)
            return language_model_loss(model, rows)
        loss = language_model_loss(model, rows)
        has_ended.set()
        return loss

    train_step(state, batch(), TRAIN, waiting_loss)
    assert [n_threads for _, n_threads in threads] == [1, 1]
    assert all(torch.equal(a, b) for a, b in zip(weights(state), weights(expected), strict=True))


@pytest.mark.parametrize("failing", ["main", "other"])
def test_an_error_in_a_replica_is_raised_and_leaves_no_gradient_behind(failing):
    state, expected = state_with(2), state_with(2)

    def loss(model: nn.Module, rows) -> tuple[Tensor, Tensor]:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main == (failing == "main"):
            raise ValueError("row 3 is spoilt")
        return language_model_loss(model, rows)

    with pytest.raises(ValueError, match="row 3 is spoilt"):
        train_step(state, batch(), TRAIN, loss)
    state.model.zero_grad()
    for either in (state, expected):
        train_step(either, batch(), TRAIN)
    assert all(torch.equal(a, b) for a, b in zip(weights(state), weights(expected), strict=True))


def test_loss_that_draws_from_torchs_generator_is_refused():
    """Which replica drew first depended on the load of the machine, and so did the weights."""

    def loss(model: nn.Module, rows) -> tuple[Tensor, Tensor]:
        loss_sum, n = language_model_loss(model, rows)
        return loss_sum * torch.rand(()), n

    with pytest.raises(ValueError, match="draw from row_seeds_B"):
        train_step(state_with(2), batch(), TRAIN, loss)
    train_step(state_with(2), batch(n_rows=1), TRAIN, loss)  # in one thread


def test_large_models_and_single_threads_have_no_replicas():
    assert replicas_for(decoder(), n_threads=1, n_rows=8) is None
    assert replicas_for(decoder(), n_threads=2, n_rows=1) is None
    with torch.device("meta"):
        large = nn.Linear(2**13, 2**13)
    assert replicas_for(large, n_threads=2, n_rows=8) is None


def test_run_leaves_no_thread_behind(tmp_path):
    test_run.write_tokens(tmp_path / "tokens.arrow")
    batches = TokenBatches([read_token_shard(tmp_path / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    before, during = set(threading.enumerate()), set()

    class Watching(test_run.Notebook):
        def metrics(self, step: int, values) -> None:
            during.update(thread.name for thread in threading.enumerate())

    job = test_run.job_on(batches, dataclasses.replace(test_run.TRAIN, n_steps=6, n_threads=2))
    run(tmp_path / "run", job, Watching(tmp_path / "heard"))
    assert {"replica_0", "checkpoint-writer_0"} <= during
    assert set(threading.enumerate()) <= before


def test_run_with_replicas_that_is_stopped_and_resumed_ends_with_the_same_bits(tmp_path):
    cfg = dataclasses.replace(test_run.TRAIN, n_threads=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for directory in (whole, stopped):
        directory.mkdir()
        test_run.write_tokens(directory / "tokens.arrow")
    test_run.train(whole, cfg)

    class Stopping(test_run.Notebook):
        def metrics(self, step: int, values) -> None:
            if step == 18:
                raise test_run.Stop

    batches = TokenBatches([read_token_shard(stopped / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    with pytest.raises(test_run.Stop):
        run(stopped / "run", test_run.job_on(batches, cfg), Stopping(stopped / "heard"))
    test_run.train(stopped, dataclasses.replace(cfg, n_threads=None))  # the checkpoint knows
    assert test_run.result(stopped) == test_run.result(whole)
